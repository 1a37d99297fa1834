"""Edits inside a trace: what `emotrace.edits` lowers to, applied in execution order.

A *group* is everything that happens at one place: ``(order, place, operations, base_key)``; an *operation* is
``(number, kind, payload, strength, scale, columns, mask, flags, width)``:

* ``kind``: ``add``, ``scale``, ``ablate`` or ``project``;
* ``payload``: ``[width]``, ``[batch, width]`` or None;
* ``columns``: indices of the last dim that are edited, or None for all;
* ``mask``: ``[batch, all columns of prompt and reply]`` bool, padding False;
* ``flags``: for every column 0 (no row edited), 1 (some) or 2 (all), so that nothing is read where nothing is edited.
"""

from __future__ import annotations

import torch

from emotrace.traced import places


def live(group: tuple, start: int, stop: int | None) -> list:
    """The operations of a group that edit any of the columns ``[start, stop)``."""
    return [op for op in group[2] if any(op[7][start:stop])]


def apply(group: tuple, kept: dict, batch: int, start: int, stop: int, fired: list) -> None:
    """Carry out one group in the forward that computes columns ``[start, stop)`` of the padded sequences.

    Args:
        group: see above.
        kept: values of ``resid_pre`` read earlier in this forward, by place key.
        batch: rows in the forward.
        start: first column of this forward (0 at the prompt, later the column of the new token).
        stop: one past its last column.
        fired: how often each edit was carried out; counted up here.
    """
    _, place, _, base_key = group
    here = live(group, start, stop)
    if not here:
        return
    if all(op[1] == "add" for op in here):
        h = None
        if any(op[4] == "rms" for op in here):
            h = places.fetch(place, kept.get(base_key), batch).float()
        delta = torch.zeros(())
        for op in here:
            delta = delta.to(op[6].device if h is None else h.device) + _masked(_addition(op, h), op, start, stop)
            fired[op[0]] += 1
        places.add(place, delta)
        return
    before = places.fetch(place, kept.get(base_key), batch)
    h0 = before.float()
    h = h0
    for op in here:
        h = h + _masked(_change(op, h, h0), op, start, stop)
        fired[op[0]] += 1
    places.put(place, h.to(before.dtype), kept.get(base_key))


def _addition(op: tuple, h0: torch.Tensor | None) -> torch.Tensor:
    """s·v, s·v/‖v‖ or s·RMS(h)·v/‖v‖, as ``[batch or 1, token or 1, width]``."""
    _, _, payload, strength, scale, columns, mask, _, _ = op
    v = payload.to(mask.device if h0 is None else h0.device).float()
    v = v[:, None, :] if v.ndim == 2 else v[None, None, :]
    if scale == "raw":
        return strength * v
    v = v / v.norm(dim=-1, keepdim=True)
    if scale == "unit":
        return strength * v
    assert h0 is not None
    part = h0 if columns is None else h0[..., columns]
    return strength * torch.sqrt((part * part).mean(dim=-1, keepdim=True) + 1e-12) * v


def _change(op: tuple, h: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
    """What an operation adds to ``h``, over its own columns."""
    _, kind, payload, strength, _, columns, _, _, _ = op
    if kind == "add":
        return _addition(op, h0)
    part = h if columns is None else h[..., columns]
    if kind == "scale":
        return (strength - 1.0) * part
    v = None
    if payload is not None:
        v = payload.to(h.device).float()
        v = v[:, None, :] if v.ndim == 2 else v[None, None, :]
    if kind == "ablate":
        return (-part if v is None else v - part) + torch.zeros_like(part)
    assert v is not None
    v = v / v.norm(dim=-1, keepdim=True)
    return -strength * (part * v).sum(dim=-1, keepdim=True) * v


def _masked(change: torch.Tensor, op: tuple, start: int, stop: int) -> torch.Tensor:
    """The change at the edited rows, tokens and columns; zero elsewhere."""
    columns, mask, flags, width = op[5], op[6], op[7], op[8]
    if columns is not None:
        whole = torch.zeros((*change.shape[:-1], width), dtype=change.dtype, device=change.device)
        whole[..., columns] = change
        change = whole
    if all(flag == 2 for flag in flags[start:stop]):
        return change
    return change * mask[:, start:stop, None].to(change.device, change.dtype)
