"""Beginnings: by how much the values of prompts differ between forwards of one prompt and forwards that rows share.

A *forward* is that of `requests`; its spans are ``(batch row, first column, one past the last, prompt, position)``: which
prompt stands there, from which of its positions on.
"""

from __future__ import annotations

from typing import Any

import torch

from emotrace.traced import requests


def deviations(model: Any, reads: list, alone: list, together: list, setup: tuple) -> tuple:
    """Relative deviation ‖got − want‖ / ‖want‖ of every token at every read.

    Args:
        model: an nnsight model.
        reads: sorted steps that read.
        alone: forwards of one prompt each.
        together: forwards that are compared with them.
        setup: of `caches`.

    Returns:
        ``(shapes, deviations)``: rows and columns that the reads of the first forward hold; one float64 ``[read · token]``
        for each forward of ``together``, none where the columns are not the tokens.
    """
    memo: dict = {}
    known = [_values(model, reads, one, setup, memo) for one in alone]
    shapes = [list(value.shape[:2]) for value in known[0].values()]
    if any(shape != list(alone[0][0]["input_ids"].shape) for shape in shapes):
        return shapes, []
    return shapes, [_compared(_values(model, reads, one, setup, memo), known, one[2]) for one in together]


def _compared(values: dict, known: list, spans: tuple) -> torch.Tensor:
    errors = []
    for number, value in values.items():
        for row, start, stop, prompt, position in spans:
            want = known[prompt][number][0, position : position + stop - start]
            off = (value[row, start:stop] - want).norm(dim=-1) / want.norm(dim=-1).clamp(min=1e-30)
            errors.append(torch.nan_to_num(off, nan=torch.inf))
    return torch.cat(errors)


def _values(model: Any, reads: list, one: tuple, setup: tuple, memo: dict) -> dict:
    found: dict = {}

    def keep(number, value):
        found[number] = value.detach().double().cpu()

    requests.forward(model, reads, one, setup, memo, keep)
    return found
