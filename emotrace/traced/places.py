"""Places: read and write one lowered site inside a trace.

A place is the tuple ``(kind, envoy, side, index, flat, scale, base)`` that ``Address.lower`` makes. Reads return
``[batch, token, width]`` whatever the module's own form (tensor, tuple, ``[batch·token, width]``); writes swap the
value and never change a tensor in place, because captured tensors alias live ones.
"""

from __future__ import annotations

from typing import Any

import torch


def fetch(place: tuple, base: torch.Tensor | None = None, batch: int | None = None) -> torch.Tensor:
    """The value at a place: ``[batch, token, width]``; for kind ``mid`` it is ``base + scale · value``.

    Args:
        place: a lowered address.
        base: ``resid_pre`` of the same layer, if it was read already (reads must follow execution order).
        batch: number of rows, needed where the module flattens batch and token.
    """
    kind, envoy, side, index, flat, scale, base_place = place
    if kind == "mid" and base is None:
        base = fetch(base_place, None, batch)
    value = envoy.input if side == "input" else envoy.output
    value = _element(value, index)
    if flat:
        value = _unflatten(value, batch)
    if kind == "mid":
        assert base is not None
        value = base + (value if scale == 1.0 else scale * value)
    return value


def put(place: tuple, new: torch.Tensor, base: torch.Tensor | None = None) -> None:
    """Swap the value at a place for ``new`` (``[batch, token, width]``); for kind ``mid`` by the attention's output."""
    kind, envoy, side, index, flat, scale, base_place = place
    old = envoy.input if side == "input" else envoy.output
    element = _element(old, index)
    if kind == "mid":
        if base is None:
            base = fetch(base_place, None, new.shape[0])
        new = new - base
        new = new if scale == 1.0 else new / scale
    new = new.to(element.dtype)
    if flat:
        new = new.reshape(element.shape)
    if isinstance(old, (tuple, list)):
        i = 0 if index is None else index
        new = tuple(old[:i]) + (new,) + tuple(old[i + 1 :])
    if side == "input":
        envoy.input = new
    else:
        envoy.output = new


def add(place: tuple, delta: torch.Tensor) -> None:
    """Add ``delta`` at a place; for kind ``mid`` that is ``delta / scale`` at the attention's output."""
    kind, envoy, side, index, flat, scale, _ = place
    old = envoy.input if side == "input" else envoy.output
    element = _element(old, index)
    if kind == "mid" and scale != 1.0:
        delta = delta / scale
    delta = delta.to(element.dtype)
    new = element + (delta.reshape(element.shape) if flat else delta)
    if isinstance(old, (tuple, list)):
        i = 0 if index is None else index
        new = tuple(old[:i]) + (new,) + tuple(old[i + 1 :])
    if side == "input":
        envoy.input = new
    else:
        envoy.output = new


def _element(value: Any, index: int | None) -> torch.Tensor:
    if isinstance(value, (tuple, list)):
        return value[0 if index is None else index]
    return value


def _unflatten(value: torch.Tensor, batch: int | None) -> torch.Tensor:
    if value.ndim == 2 and batch is not None:
        return value.reshape(batch, -1, value.shape[-1])
    return value
