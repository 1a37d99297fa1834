"""Edits inside a trace: what `emotrace.edits` lowers to, applied in execution order.

A *group* is everything that happens at one place, a step of a program; an *operation* is what one edit does there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from emotrace.traced import places
from emotrace.traced.places import Place


class Operation(NamedTuple):
    """What one edit does at one place.

    Attributes:
        number: of the edit.
        action: one of `CHANGES`.
        payload: ``[width]``, ``[batch, width]`` or None.
        strength: a factor, or a tensor of them that broadcasts.
        scale: ``raw``, ``unit`` or ``rms``: what the payload of ``add`` is measured in.
        columns: indices of the last dim that are edited, or None for all.
        mask: ``[batch, all columns of prompt and reply]`` bool, padding False.
        flags: for every column 0 (no row edited), 1 (some) or 2 (all), so that nothing is read where nothing is edited.
        width: of the last dim.
    """

    number: int
    action: str
    payload: Any
    strength: Any
    scale: str
    columns: Any
    mask: torch.Tensor
    flags: list
    width: int


class Group(NamedTuple):
    """The edits of one place, a step of a program.

    Attributes:
        order: when it happens in a forward.
        place: where.
        operations: in the order of the edits.
        base: order of the ``resid_pre`` that a ``resid_mid`` needs; None elsewhere.
    """

    order: float
    place: Place
    operations: list
    base: Any = None
    kind = "edit"


def flags(mask: torch.Tensor) -> list:
    """Of every column of a mask ``[batch, column]``: 0 where no row is edited, 1 for some, 2 for all."""
    return (mask.any(0).int() + mask.all(0).int()).tolist()


def live(group: Group, start: int, stop: int | None) -> list:
    """The operations of a group that edit any of the columns ``[start, stop)``."""
    return [op for op in group.operations if any(op.flags[start:stop])]


def apply(group: Group, kept: dict, batch: int, start: int, stop: int, fired: list) -> None:
    """Carry out one group in the forward that computes columns ``[start, stop)`` of the padded sequences.

    Args:
        group: the edits of one place.
        kept: values of ``resid_pre`` read earlier in this forward, by their order.
        batch: rows in the forward.
        start: first column of this forward (0 at the prompt, later the column of the new token).
        stop: one past its last column.
        fired: how often each edit was carried out; counted up here.
    """
    place, base = group.place, kept.get(group.base)
    here = live(group, start, stop)
    if not here:
        return
    count(here, fired)
    if only_add(here):
        h = places.fetch(place, base, batch).float() if sees(here) else None
        places.add(place, delta(here, h, start, stop))
        return
    before = places.fetch(place, base, batch)
    places.put(place, changed(here, before.float(), start, stop).to(before.dtype), base)


def count(operations: list, fired: list) -> None:
    """Operations were carried out."""
    for op in operations:
        fired[op.number] += 1


def only_add(operations: list) -> bool:
    """Whether nothing is done but additions."""
    return all(op.action == "add" for op in operations)


def sees(operations: list) -> bool:
    """Whether what is done depends on the value."""
    return any(op.action != "add" or op.scale == "rms" for op in operations)


def delta(operations: list, h: torch.Tensor | None, start: int, stop: int | None) -> torch.Tensor:
    """What additions add to a value, which those of the scale ``rms`` see."""
    total = torch.zeros(())
    for op in operations:
        total = total.to(op.mask.device if h is None else h.device) + _masked(_addition(op, h), op, start, stop)
    return total


def changed(operations: list, h0: torch.Tensor, start: int, stop: int | None) -> torch.Tensor:
    """A value after all operations, in their order."""
    h = h0
    for op in operations:
        h = h + _masked(_change(op, h, h0), op, start, stop)
    return h


def _addition(op: Operation, h0: torch.Tensor | None) -> torch.Tensor:
    """s·v, s·v/‖v‖ or s·RMS(h)·v/‖v‖, as ``[batch or 1, token or 1, width]``."""
    v = _payload(op, op.mask.device if h0 is None else h0.device)
    if op.scale == "raw":
        return op.strength * v
    v = v / v.norm(dim=-1, keepdim=True)
    if op.scale == "unit":
        return op.strength * v
    assert h0 is not None
    part = h0 if op.columns is None else h0[..., op.columns]
    return op.strength * torch.sqrt((part * part).mean(dim=-1, keepdim=True) + 1e-12) * v


def _payload(op: Operation, device: torch.device) -> torch.Tensor:
    """``[batch or 1, 1, width]``."""
    v = op.payload.to(device).float()
    return v[:, None, :] if v.ndim == 2 else v[None, None, :]


def _added(op: Operation, part: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    return _addition(op, h0)


def _scaled(op: Operation, part: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    return (op.strength - 1.0) * part


def _ablated(op: Operation, part: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    return (-part if op.payload is None else _payload(op, part.device) - part) + torch.zeros_like(part)


def _projected(op: Operation, part: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    v = _payload(op, part.device)
    v = v / v.norm(dim=-1, keepdim=True)
    return -op.strength * (part * v).sum(dim=-1, keepdim=True) * v


CHANGES: dict[str, Callable[[Operation, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": _added, "scale": _scaled, "ablate": _ablated, "project": _projected,
}  # fmt: skip
"""Action → what an operation adds to ``h`` over its own columns, given those and the value before all edits there."""


def _change(op: Operation, h: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    return CHANGES[op.action](op, h if op.columns is None else h[..., op.columns], h0)


def _masked(change: torch.Tensor, op: Operation, start: int, stop: int | None) -> torch.Tensor:
    """The change at the edited rows, tokens and columns; zero elsewhere."""
    if op.columns is not None:
        whole = torch.zeros((*change.shape[:-1], op.width), dtype=change.dtype, device=change.device)
        whole[..., op.columns] = change
        change = whole
    if all(flag == 2 for flag in op.flags[start:stop]):
        return change
    return change * op.mask[:, start:stop, None].to(change.device, change.dtype)
