"""Places: read and write one lowered site inside a trace.

A place is the tuple ``(kind, envoy, side, index, flat, scale, base, mirror, overwritten)`` that ``Address.lower`` makes.
Reads return ``[batch, token, width]`` whatever the module's own form (tensor, tuple, ``[batch·token, width]``); writes
swap the value and never change a tensor in place, because captured tensors alias live ones.

``resid_mid`` of a sequential residual is of kind ``mid``: ``base + scale · value`` at the attention's output, with
``resid_pre`` (kind ``base``) as its base. Where the base was passed unread, ``mirror`` (the next norm's input) is read.
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator


def fetch(place: tuple, base: torch.Tensor | None = None, batch: int | None = None) -> torch.Tensor:
    """The value at a place: ``[batch, token, width]``; for kind ``mid`` it is ``base + scale · value``.

    Args:
        place: a lowered address.
        base: ``resid_pre`` of the same layer, if it was read already; else the one that this trace read last is taken.
        batch: number of rows of a module that flattens batch and token; None asks nnsight.
    """
    kind, envoy, side, index, flat, scale, _, mirror, overwritten = place
    if kind == "mid":
        base = _base(place, batch) if base is None else base
        if base is None:
            return fetch(mirror, None, batch)
    whole = _get(envoy, side)
    element = _element(whole, index)
    value = _unflatten(element, batch) if flat else element
    if kind == "mid":
        assert base is not None
        return base + (value if scale == 1.0 else scale * value)
    if overwritten:  # the model will change this very tensor in place: it goes on with a copy
        _set(envoy, side, _with(whole, index, element.clone()))
    if kind == "base":
        _remember(envoy, side, value)
    return value


def columns(place: tuple, batch: int) -> int:
    """How many columns arrive at a place in this forward; its value stays as it is."""
    _, envoy, side, index, *_ = place
    value = _element(_get(envoy, side), index)
    return value.shape[1] if value.ndim > 2 else value.shape[0] // batch


def put(place: tuple, new: torch.Tensor, base: torch.Tensor | None = None) -> None:
    """Swap the value at a place for ``new`` (``[batch, token, width]``); for kind ``mid`` by the attention's output.

    Raises:
        ValueError: if ``new`` does not have the shape of the value, or ``resid_pre`` was passed before ``resid_mid``.
    """
    kind, envoy, side, index, flat, scale, _, _, overwritten = place
    if kind == "mid":
        base = _base(place, new.shape[0] if new.ndim == 3 else None) if base is None else base
        if base is None:
            raise ValueError(
                f"resid_mid cannot be written at {envoy.path}: the trace ran past resid_pre of its layer without "
                "reading it. Read resid_pre (or resid_mid) before what comes between them."
            )
        new = new.to(base.device) - base
        new = new if scale == 1.0 else new / scale
    whole = _get(envoy, side)
    element = _element(whole, index)
    new = _shaped(new.to(element.device, element.dtype), element, flat, envoy.path)
    _set(envoy, side, _with(whole, index, new.clone() if overwritten else new))


def add(place: tuple, delta: torch.Tensor) -> None:
    """Add ``delta`` at a place (kind ``mid``: ``delta / scale`` at the attention's output), in float32 or wider, rounded once."""
    kind, envoy, side, index, flat, scale, *_ = place
    whole = _get(envoy, side)
    element = _element(whole, index)
    if kind == "mid" and scale != 1.0:
        delta = delta / scale
    wide = element.to(torch.promote_types(element.dtype, torch.float32))
    delta = _shaped(delta.to(wide.device, wide.dtype), torch.zeros_like(wide), flat, envoy.path)
    _set(envoy, side, _with(whole, index, (wide + delta).to(element.dtype)))


def _get(envoy: Any, side: str) -> Any:
    return envoy.input if side == "input" else envoy.output


def _set(envoy: Any, side: str, value: Any) -> None:
    if side == "input":
        envoy.input = value
    else:
        envoy.output = value


def _element(value: Any, index: int | None) -> torch.Tensor:
    if isinstance(value, (tuple, list)):
        return value[0 if index is None else index]
    return value


def _with(whole: Any, index: int | None, new: torch.Tensor) -> Any:
    if not isinstance(whole, (tuple, list)):
        return new
    i = 0 if index is None else index
    changed = (*tuple(whole[:i]), new, *tuple(whole[i + 1 :]))
    return list(changed) if isinstance(whole, list) else changed


def _mediator() -> Any:
    """The worker that runs this trace's block, or None where nnsight runs it in another way."""
    try:
        return Mediator.current("a place")
    except ValueError:
        return None


def _rows() -> tuple[int, int, int]:
    """``(all rows of the forward, first row of this block, rows of this block)``; zeros where nobody knows."""
    mediator = _mediator()
    if mediator is None or mediator.interleaver is None:
        return 0, 0, 0
    batcher = mediator.interleaver.batcher
    if batcher is None or not batcher.total:
        return 0, 0, 0
    start, size = mediator.batch_group or (0, batcher.total)
    return batcher.total, start, size


def _unflatten(value: torch.Tensor, batch: int | None) -> torch.Tensor:
    """``[batch·token, width]`` as ``[batch, token, width]``, with the rows of this block of the trace only."""
    if value.ndim != 2:
        return value
    total, start, size = _rows()
    if not total or (batch is not None and batch not in (size, total)):  # e.g. beams: more rows than prompts
        return value if batch is None else value.reshape(batch, -1, value.shape[-1])
    if value.shape[0] < total:  # one token: nnsight took the rows itself
        return value.reshape(size, -1, value.shape[-1])
    return value.reshape(total, -1, value.shape[-1])[start : start + size]


def _shaped(new: torch.Tensor, element: torch.Tensor, flat: bool, path: str) -> torch.Tensor:
    """``new`` in the shape of what it replaces; one row, token or vector stands for all."""
    total, start, size = _rows()
    shape = tuple(element.shape)
    split = False  # whether other blocks of the trace have rows here too
    if flat and element.ndim == 2:
        split = size != total and shape[0] >= total
        rows = new.shape[0] if new.ndim == 3 and new.shape[0] > 1 else size or 1
        shape = (size, shape[0] // total, shape[1]) if split else (rows, shape[0] // rows, shape[1])
    try:
        new = new.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"a value of shape {tuple(new.shape)} cannot be written at {path}, which holds {shape}."
        ) from None
    if split:
        whole = element.reshape(total, -1, shape[-1]).clone()
        whole[start : start + size] = new
        new = whole
    return new.reshape(element.shape).contiguous()


def _remember(envoy: Any, side: str, value: torch.Tensor) -> None:
    """Keep the last ``resid_pre`` of this trace, for the ``resid_mid`` of the same layer."""
    mediator = _mediator()
    if mediator is not None:
        location = f"{envoy.path}.{side}"
        mediator.emotrace_base = (location, mediator.occurrence(location), value)


def _base(place: tuple, batch: int | None) -> torch.Tensor | None:
    """``resid_pre`` for a ``mid`` place: the one just read, or read now; None if the model ran past it."""
    mediator = _mediator()
    envoy, base_place = place[1], place[6]
    if mediator is None:
        return fetch(base_place, None, batch)
    here = f"{envoy.path}.{place[2]}"
    there = f"{base_place[1].path}.{base_place[2]}"
    wanted = mediator.wanted(here)
    location, visit, value = getattr(mediator, "emotrace_base", (None, None, None))
    if location == there and visit == wanted:
        return value
    if mediator.occurrence(there) > wanted:
        return None
    return fetch(base_place, None, batch)
