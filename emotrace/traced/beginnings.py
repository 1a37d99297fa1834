"""Beginnings: by how much the values of prompts differ between forwards of one prompt and forwards that rows share.

The spans of its forwards are `Stretch` es.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from emotrace.traced import requests
from emotrace.traced.caches import Setup
from emotrace.traced.model import TracedModel


class Stretch(NamedTuple):
    """Neighbouring columns of one row, and what stands there.

    Attributes:
        row: of the batch.
        start: first column.
        stop: one past the last.
        prompt: whose tokens they are.
        position: of the first of them in that prompt.
    """

    row: int
    start: int
    stop: int
    prompt: int
    position: int


def deviations(model: TracedModel, reads: list, alone: list, together: list, setup: Setup) -> tuple:
    """Relative deviation ‖got − want‖ / ‖want‖ of every token at every read.

    Args:
        model: an nnsight model.
        reads: sorted steps that read.
        alone: forwards of one prompt each.
        together: forwards that are compared with them.
        setup: the empty cache, the last step, and whether the model takes positions.

    Returns:
        ``(shapes, deviations)``: rows and columns that the reads of the first forward hold; one float64 ``[read · token]``
        for each forward of ``together``, none where the columns are not the tokens.
    """
    memo: dict = {}
    known = [_values(model, reads, one, setup, memo) for one in alone]
    shapes = [list(value.shape[:2]) for value in known[0].values()]
    if any(shape != list(alone[0].inputs["input_ids"].shape) for shape in shapes):
        return shapes, []
    return shapes, [_compared(_values(model, reads, one, setup, memo), known, one.spans) for one in together]


def _compared(values: dict, known: list, spans: tuple) -> torch.Tensor:
    errors = []
    for number, value in values.items():
        for here in spans:
            want = known[here.prompt][number][0, here.position : here.position + here.stop - here.start]
            off = (value[here.row, here.start : here.stop] - want).norm(dim=-1) / want.norm(dim=-1).clamp(min=1e-30)
            errors.append(torch.nan_to_num(off, nan=torch.inf))
    return torch.cat(errors)


def _values(model: TracedModel, reads: list, one: requests.Forward, setup: Setup, memo: dict) -> dict:
    values: dict = {}

    def keep(number, value):
        values[number] = value.detach().double().cpu()

    requests.forward(model, reads, one, setup, memo, keep)
    return values
