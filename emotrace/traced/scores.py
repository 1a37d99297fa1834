"""Scores: log-probabilities of given replies, and how far edits move the predictions along them, reduced where they are made.

Rows are padded on the left and end with their reply; the logits of a column predict the token of the next.
"""

from __future__ import annotations

import torch

from emotrace.traced import kept, runs
from emotrace.traced.kept import Begun
from emotrace.traced.model import TracedModel
from emotrace.traced.steps import Sink


def replies(model: TracedModel, inputs: dict, program: list, n_edits: int, replies: list, begun: Begun | None) -> tuple:
    """Log-probability (nats) of every reply token, and whether it is the likeliest token, while a program edits.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        program: the edits' steps, and last the read of the model's output.
        n_edits: how many edits to count.
        replies: token ids of each row's reply, none of them empty.
        begun: what the rows begin with, as `kept.follow` takes it; None for nothing.

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

    return scores, likeliest, _carried_out(model, inputs, program, keep, n_edits, begun)


def divergences(
    model: TracedModel, inputs: dict, read: tuple, program: list, n_edits: int, counts: list, base: list, begun: tuple
) -> tuple:
    """Mean KL(base ‖ edited) of each row over the columns that predict its reply.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        read: step that reads the model's output.
        program: the edits' steps and the read.
        n_edits: how many edits to count.
        counts: tokens of each row's reply.
        base: for each row, the row of the same tokens whose un-edited predictions it is compared with.
        begun: what the distinct rows of ``base`` begin with without, and all rows with the edits; None for nothing.

    Returns:
        The means, and how often each edit fired.
    """
    known: dict = {}
    means: list = []
    distinct = sorted(set(base))

    def keep(number, output):  # the un-edited model, only where it predicts a reply
        for i, row in zip(distinct, output.logits, strict=True):
            known[i] = row[-counts[i] - 1 : -1].detach().clone()

    def compare(number, output):
        for i, row, count in zip(base, output.logits, counts, strict=True):
            p, q = known[i].double().log_softmax(-1), row[-count - 1 : -1].double().log_softmax(-1)
            terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))  # 0 · ln 0 = 0, where a model rules a token out
            means.append(float(terms.sum(-1).mean()))

    first = {k: v[distinct] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    _carried_out(model, first, [read], keep, 0, begun[0])
    return means, _carried_out(model, inputs, program, compare, n_edits, begun[1])


def _carried_out(
    model: TracedModel, inputs: dict, program: list, sink: Sink, n_edits: int, begun: Begun | None
) -> list:
    """One forward behind what its rows begin with; how often each edit fired."""
    fed, columns, before = kept.follow(model, inputs, n_edits, begun)
    fired = runs.capture(model, fed, program, sink, n_edits, columns)
    return [a + b for a, b in zip(fired, before, strict=True)]
