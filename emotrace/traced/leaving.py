"""Leaving: greedy replies of a batch whose rows leave it once they have ended, so that nothing is computed for them any more.

A generation goes on in passes: one ends as soon as half of its rows have, the next has the others, with their keys and values.
"""

from __future__ import annotations

from typing import Any

import torch

from emotrace.traced import caches, edits, runs
from emotrace.traced.edits import Group, Operation
from emotrace.traced.model import TracedModel
from emotrace.traced.runs import Generation


class Half:
    """Called by transformers with every new token; ends a pass once half of its rows have ended.

    Args:
        ends: tokens that end a reply.
    """

    def __init__(self, ends: tuple) -> None:
        self.ends, self.over = ends, None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row is done: all of them, or none that another criterion does not know of."""
        over: Any = self.over
        now = torch.isin(input_ids[:, -1], torch.tensor(self.ends, device=input_ids.device))
        self.over = now if over is None else over | now
        return torch.full_like(now, 2 * int(self.over.sum()) >= len(now))


def generate(model: TracedModel, one: Generation, cache: Any) -> tuple:
    """As `runs.generate`, behind the keys and values of a cache; a row that ended is filled up with its last token.

    Args:
        model: an nnsight model.
        one: what is to be generated, greedily.
        cache: of the first ``one.before`` columns; grows.
    """
    rows = list(range(one.inputs["input_ids"].shape[0]))
    found: list = [None] * len(rows)
    counts = [0] * one.n_edits
    while rows:
        options = one.options | {"past_key_values": cache, "stopping_criteria": [Half(one.ends)]}
        ids, fired = runs.generate(model, one._replace(options=options))
        counts = [a + b for a, b in zip(counts, fired, strict=True)]
        for row, reply in zip(rows, ids, strict=True):
            found[row] = reply
        width = one.inputs["input_ids"].shape[1]
        over = torch.isin(ids[:, width:], torch.tensor(one.ends, device=ids.device)).any(1).tolist()
        left = [at for at, ended in enumerate(over) if not ended and ids.shape[1] < width + one.steps]
        if left:
            cache.batch_select_indices(torch.tensor(left))  # of layers on several devices, too
            one = _narrowed(one, ids, left)
        rows = [rows[at] for at in left]
    longest = max(map(len, found))
    return torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in found]), counts


def _narrowed(one: Generation, ids: torch.Tensor, left: list) -> Generation:
    """What is left to be generated of some of the rows, whose tokens until now are given."""
    batch, width = one.inputs["input_ids"].shape
    new = ids.shape[1] - width
    mask = torch.cat([one.inputs["attention_mask"][left], one.inputs["attention_mask"].new_ones((len(left), new))], 1)
    program = [_of_rows(step, left, batch) if step.kind == "edit" else step for step in one.program]
    config = caches.twin(one.options["generation_config"])
    config.max_new_tokens = one.steps - new
    if config.min_new_tokens is not None:
        config.min_new_tokens = max(0, config.min_new_tokens - new)
    watches = [watch.of_rows(left) for watch in one.options["logits_processor"]]
    options = one.options | {"generation_config": config, "logits_processor": watches}
    return one._replace(
        inputs={"input_ids": ids[left], "attention_mask": mask}, program=program, steps=one.steps - new, options=options,
        before=ids.shape[1] - 1,
    )  # fmt: skip


def _of_rows(group: Group, left: list, batch: int) -> Group:
    return group._replace(operations=[_operation(op, left, batch) for op in group.operations])


def _operation(op: Operation, left: list, batch: int) -> Operation:
    """The same for some of the rows."""
    mask, strength, payload = op.mask[left], op.strength, op.payload
    if isinstance(strength, torch.Tensor) and strength.ndim and strength.shape[0] == batch:
        strength = strength[left]
    if payload is not None and payload.ndim == 2:
        payload = payload[left]
    return op._replace(mask=mask, flags=edits.flags(mask), strength=strength, payload=payload)
