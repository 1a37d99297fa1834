"""Central: derivatives where no graph is kept: the read-out with a small shift of a place, and with its opposite."""

from __future__ import annotations

from typing import NamedTuple

import torch

from emotrace.traced import edits, runs
from emotrace.traced.edits import Group, Operation
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
from emotrace.traced.precision import exactly
from emotrace.traced.steps import Read


class Nudge(NamedTuple):
    """A small shift whose effect is asked: the place is shifted by factor · size · direction.

    Attributes:
        order: when it happens in a forward.
        place: what is shifted.
        factor: of a shift there, for a shift of 1 of the residual.
        direction: ``[width]``.
        size: δ, ``[row]``.
        label: which covector is read.
    """

    order: float
    place: Place
    factor: float
    direction: torch.Tensor
    size: torch.Tensor
    label: int


def base(model: TracedModel, inputs: dict, program: list, at: list, covectors: torch.Tensor) -> tuple:
    """Without a shift: projections ``[label, row]`` and RMS of some places ``[rms, row]``, float64.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        program: sorted reads; number −1 is the read-out, the others are places of which the RMS is taken.
        at: column of the token, one per row.
        covectors: ``[label, width]``.
    """
    tokens: dict = {}

    def keep(number, value):
        tokens[number] = _token(value, at)

    runs.capture(model, inputs, program, keep)
    scores = _projected(tokens.pop(-1), covectors)
    sizes = [tokens[number].square().mean(-1).sqrt().cpu() for number in sorted(tokens)]
    return scores, torch.stack(sizes) if sizes else torch.zeros((0, len(at)), dtype=torch.float64)


def slopes(model: TracedModel, inputs: dict, work: list, read: Read, at: list, covectors: torch.Tensor) -> list:
    """How fast the projection on a label changes along a direction: ``(s(+δ) − s(−δ)) / 2δ``, ``[row]`` float64 each.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        work: `Nudge` s.
        read: step of the read-out.
        at: column of the token, one per row.
        covectors: ``[label, width]``.
    """
    rows, width = inputs["input_ids"].shape
    mask = torch.zeros((rows, width), dtype=torch.bool)
    mask[torch.arange(rows), torch.tensor(at)] = True
    flags = edits.flags(mask)
    slopes = []
    for nudge in work:
        ends = []
        for sign in (1.0, -1.0):
            shift = (sign * nudge.factor * nudge.size[:, None] * nudge.direction).float()
            add = Operation(0, "add", shift, 1.0, "raw", None, mask, flags, shift.shape[-1])
            tokens: list = []
            program = [Group(nudge.order, nudge.place, [add]), read]
            runs.capture(model, inputs, program, lambda _, value: tokens.append(_token(value, at)), 1)  # noqa: B023
            ends.append(_projected(tokens[0], covectors[nudge.label : nudge.label + 1])[0])
        slopes.append((ends[0] - ends[1]) / (2 * nudge.size))
    return slopes


def _projected(token: torch.Tensor, covectors: torch.Tensor) -> torch.Tensor:
    with exactly(token):
        return (covectors.double() @ token.cpu().T).cpu()


def _token(value: torch.Tensor, at: list) -> torch.Tensor:
    rows = torch.arange(len(at), device=value.device)
    return value[rows, torch.tensor(at, device=value.device)].detach().double()
