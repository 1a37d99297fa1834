"""Scores: log-probabilities of given replies, and how far edits move the predictions along them, reduced where they are made.

Rows are padded on the left and end with their reply; the logits of a column predict the token of the next.
"""

from __future__ import annotations

import torch

from emotrace.traced import runs
from emotrace.traced.model import TracedModel


def replies(model: TracedModel, inputs: dict, program: list, n_edits: int, replies: list) -> tuple:
    """Log-probability (nats) of every reply token, and whether it is the likeliest token, while a program edits.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        program: the edits' steps, and last the read of the model's output.
        n_edits: how many edits to count.
        replies: token ids of each row's reply, none of them empty.

    Returns:
        ``(scores, likeliest, fired)``: one float64 and one bool tensor per row, and how often each edit fired.
    """
    scores: list = []
    likeliest: list = []

    def keep(number, output):
        for row, reply in zip(output.logits, replies, strict=True):
            logits = row[-len(reply) - 1 : -1].double()
            wanted = torch.tensor(reply, device=logits.device)
            scores.append(logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].cpu())
            likeliest.append((logits.argmax(-1) == wanted).cpu())

    fired = runs.capture(model, inputs, program, keep, n_edits)
    return scores, likeliest, fired


def divergences(model: TracedModel, inputs: dict, read: tuple, program: list, n_edits: int, firsts: list) -> tuple:
    """Mean KL(base ‖ edited) of each row over the columns from its ``first`` to the one before the last.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        read: step that reads the model's output.
        program: the edits' steps and the read.
        n_edits: how many edits to count.
        firsts: of each row, the column whose logits predict its first reply token.

    Returns:
        The means, and how often each edit fired.
    """
    base: list = []
    means: list = []

    def keep(number, output):  # the un-edited model, only where it predicts a reply
        for row, start in zip(output.logits, firsts, strict=True):
            base.append(row[start:-1].detach().clone())

    def compare(number, output):
        for before, row, start in zip(base, output.logits, firsts, strict=True):
            p, q = before.double().log_softmax(-1), row[start:-1].double().log_softmax(-1)
            terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))  # 0 · ln 0 = 0, where a model rules a token out
            means.append(float(terms.sum(-1).mean()))

    runs.capture(model, inputs, [read], keep)
    fired = runs.capture(model, inputs, program, compare, n_edits)
    return means, fired
