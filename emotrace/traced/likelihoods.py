"""Likelihoods: log-probabilities of given replies under edits, reduced where they are made.

Rows are padded on the left and end with their reply; the logits of a column predict the token of the next.
"""

from __future__ import annotations

import torch

from emotrace.traced import runs
from emotrace.traced.model import TracedModel


def edited(model: TracedModel, inputs: dict, program: list, n_edits: int, replies: list) -> tuple:
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
