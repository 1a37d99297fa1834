"""Central: derivatives where no graph is kept: the read-out with a small shift of a place, and with its opposite."""

from __future__ import annotations

from typing import Any

import torch

from emotrace.traced import runs
from emotrace.traced.precision import exactly


def base(model: Any, inputs: dict, program: list, at: list, covectors: torch.Tensor) -> tuple:
    """Without a shift: projections ``[label, row]`` and RMS of some places ``[rms, row]``, float64.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        program: sorted reads; number −1 is the read-out, the others are places of which the RMS is taken.
        at: column of the token, one per row.
        covectors: ``[label, width]``.
    """
    found: dict = {}

    def keep(number, value):
        found[number] = _token(value, at)

    _run(model, inputs, program, keep)
    scores = _projected(found.pop(-1), covectors)
    sizes = [found[number].square().mean(-1).sqrt().cpu() for number in sorted(found)]
    return scores, torch.stack(sizes) if sizes else torch.zeros((0, len(at)), dtype=torch.float64)


def slopes(model: Any, inputs: dict, work: list, read: tuple, at: list, covectors: torch.Tensor) -> list:
    """How fast the projection on a label changes along a direction: ``(s(+δ) − s(−δ)) / 2δ``, ``[row]`` float64 each.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        work: ``(order, place, factor, direction [width], δ [row], label)``; the place is shifted by factor · δ · direction.
        read: step of the read-out.
        at: column of the token, one per row.
        covectors: ``[label, width]``.
    """
    rows, width = inputs["input_ids"].shape
    mask = torch.zeros((rows, width), dtype=torch.bool)
    mask[torch.arange(rows), torch.tensor(at)] = True
    flags = (mask.any(0).int() + mask.all(0).int()).tolist()
    slopes = []
    for order, place, factor, direction, size, label in work:
        ends = []
        for sign in (1.0, -1.0):
            shift = (sign * factor * size[:, None] * direction).float()
            group = (order, place, [(0, "add", shift, 1.0, "raw", None, mask, flags, shift.shape[-1])], None)
            found: list = []
            _run(model, inputs, [("edit", order, group), read], lambda _, value: found.append(_token(value, at)))  # noqa: B023
            ends.append(_projected(found[0], covectors[label : label + 1])[0])
        slopes.append((ends[0] - ends[1]) / (2 * size))
    return slopes


def _projected(token: torch.Tensor, covectors: torch.Tensor) -> torch.Tensor:
    with exactly(token):
        return (covectors.double() @ token.cpu().T).cpu()


def _token(value: torch.Tensor, at: list) -> torch.Tensor:
    rows = torch.arange(len(at), device=value.device)
    return value[rows, torch.tensor(at, device=value.device)].detach().double()


def _run(model: Any, inputs: dict, program: list, sink: Any) -> None:
    rows, width = inputs["input_ids"].shape
    runs.capture(model, inputs, program, rows, (0, width), 1, sink)
