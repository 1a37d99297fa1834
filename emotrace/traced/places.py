"""Places: read and write one lowered site inside a trace.

Reads return ``[batch, token, width]`` whatever the module's own form (tensor, tuple, ``[batch·token, width]``); writes
swap the value and never change a tensor in place, because captured tensors alias live ones.

``resid_mid`` of a sequential residual is of kind ``mid``: ``base + scale · value`` at the attention's output, with
``resid_pre`` (kind ``base``) as its base. Where the base was passed unread, ``mirror`` (the next norm's input) is read.

A base belongs to its forward. nnsight counts visits where the model is; where a block runs apart from it, nothing is counted,
and a forward is known by the step that the block is at, and by the order of the places that it asks for: an earlier one after a
later is another forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from emotrace.traced.inner import block_rows, counts, worker


class Place(NamedTuple):
    """A proven place of a model, as ``Address.lower`` makes it.

    Attributes:
        kind: ``plain``, ``scaled``, ``mid`` or ``base``.
        envoy: nnsight's, of the module.
        side: ``input`` or ``output`` of it.
        index: element of a tuple; None takes a tensor as it is, or the first element.
        flat: whether the module holds ``[batch·token, width]``.
        scale: of the value, in kinds ``mid`` and ``scaled``.
        base: place of ``resid_pre``, in kind ``mid``.
        mirror: place of the next norm's input, in kind ``mid``.
        overwritten: whether the model changes this very tensor later on.
        order: when it is there in a forward; None where nobody knows.
    """

    kind: str
    envoy: Any
    side: str
    index: Any = None
    flat: bool = False
    scale: float = 1.0
    base: Any = None
    mirror: Any = None
    overwritten: bool = False
    order: Any = None


class LastBase(NamedTuple):
    """The ``resid_pre`` that a trace read last: where, at which visit (None where nothing is counted), and its value."""

    location: str
    visit: Any
    value: torch.Tensor


def fetch(place: Place, base: torch.Tensor | None = None, batch: int | None = None) -> torch.Tensor:
    """The value at a place: ``[batch, token, width]``; for kind ``mid`` it is ``base + scale · value``.

    Args:
        place: a lowered address.
        base: ``resid_pre`` of the same layer, if it was read already; else the one that this trace read last is taken.
        batch: number of rows of a module that flattens batch and token; None asks nnsight.
    """
    if place.kind == "mid":
        base = _base(place, batch) if base is None else base
        if base is None:
            return fetch(place.mirror, None, batch)
    whole = _get(place)
    element = _element(whole, place.index)
    value = _unflatten(element, batch) if place.flat else element
    if place.kind == "mid":
        assert base is not None
        return base + (value if place.scale == 1.0 else place.scale * value)
    if place.kind == "scaled":
        return place.scale * value
    if place.overwritten:  # the model will change this very tensor in place: it goes on with a copy
        _set(place, _with(whole, place.index, element.clone()))
    if place.kind == "base":
        _remember(place, value)
    return value


def columns(place: Place, batch: int) -> int:
    """How many columns arrive at a place in this forward; its value stays as it is."""
    value = _element(_get(place), place.index)
    return value.shape[1] if value.ndim > 2 else value.shape[0] // batch


def put(place: Place, new: torch.Tensor, base: torch.Tensor | None = None) -> None:
    """Swap the value at a place for ``new`` (``[batch, token, width]``); for kind ``mid`` by the attention's output.

    Raises:
        ValueError: if ``new`` does not have the shape of the value, or ``resid_pre`` was passed before ``resid_mid``.
    """
    if place.kind == "mid":
        if base is None:
            base = _base(place, new.shape[0] if new.ndim == 3 else None)
            _used()
        if base is None:
            raise ValueError(
                f"resid_mid cannot be written at {place.envoy.path}: the trace ran past resid_pre of its layer without "
                "reading it. Read resid_pre (or resid_mid) before what comes between them."
            )
        new = new.to(base.device) - base
        new = new if place.scale == 1.0 else new / place.scale
    new = new / place.scale if place.kind == "scaled" else new
    whole = _get(place)
    element = _element(whole, place.index)
    new = _shaped(new.to(element.device, element.dtype), element, place)
    _set(place, _with(whole, place.index, new.clone() if place.overwritten else new))


def add(place: Place, delta: torch.Tensor) -> None:
    """Add ``delta`` at a place (kind ``mid``: ``delta / scale`` at the attention's output), in float32 or wider, rounded once."""
    _set(place, added(_get(place), place, delta))


def added(whole: Any, place: Place, delta: torch.Tensor) -> Any:
    """What a module gives or takes, with ``delta`` added at a place in it."""
    element = _element(whole, place.index)
    if place.kind in ("mid", "scaled") and place.scale != 1.0:
        delta = delta / place.scale
    wide = element.to(torch.promote_types(element.dtype, torch.float32))
    delta = _shaped(delta.to(wide.device, wide.dtype), torch.zeros_like(wide), place)
    return _with(whole, place.index, (wide + delta).to(element.dtype))


def replaced(whole: Any, place: Place, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What a module gives or takes, with what a function makes of the value at a place that holds it as it is."""
    element = _element(whole, place.index)
    return _with(whole, place.index, function(element).to(element.dtype))


def leaf(place: Place, batch: int) -> torch.Tensor:
    """δ = 0, added at a place; what follows can be differentiated to it: ``[batch, token, width]`` in the dtype of the value."""
    element = _element(_get(place), place.index)
    value = _unflatten(element, batch) if place.flat else element
    delta = torch.zeros_like(value, requires_grad=True)
    add(place, delta)
    return delta


def _get(place: Place) -> Any:
    _pass(place)
    return place.envoy.input if place.side == "input" else place.envoy.output


def _set(place: Place, value: object) -> None:
    _pass(place)
    if place.side == "input":
        place.envoy.input = value
    else:
        place.envoy.output = value


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


def _unflatten(value: torch.Tensor, batch: int | None) -> torch.Tensor:
    """``[batch·token, width]`` as ``[batch, token, width]``, with the rows of this block of the trace only."""
    if value.ndim != 2:
        return value
    total, start, size = block_rows()
    if batch is None and size and not total:
        raise ValueError(
            "a module that holds batch and token in one axis does not say here which rows are this block's. Capture it, or "
            "read a module that keeps them apart."
        )
    if not total or (batch is not None and batch not in (size, total)):  # e.g. beams: more rows than prompts
        return value if batch is None else value.reshape(batch, -1, value.shape[-1])
    if value.shape[0] < total:  # one token: nnsight took the rows itself
        return value.reshape(size, -1, value.shape[-1])
    return value.reshape(total, -1, value.shape[-1])[start : start + size]


def _shaped(new: torch.Tensor, element: torch.Tensor, place: Place) -> torch.Tensor:
    """``new`` in the shape of what it replaces; one row, token or vector stands for all."""
    total, start, size = block_rows()
    shape = tuple(element.shape)
    split = False  # whether other blocks of the trace have rows here too
    if place.flat and element.ndim == 2:
        split = bool(total) and size != total and shape[0] >= total
        rows = new.shape[0] if new.ndim == 3 and new.shape[0] > 1 else size or 1
        shape = (size, shape[0] // total, shape[1]) if split else (rows, shape[0] // rows, shape[1])
    try:
        new = new.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"a value of shape {tuple(new.shape)} cannot be written at {place.envoy.path}, which holds {shape}."
        ) from None
    if split:
        whole = element.reshape(total, -1, shape[-1]).clone()
        whole[start : start + size] = new
        new = whole
    return new.reshape(element.shape).contiguous()


def _pass(place: Place) -> None:
    """Note that a block asks for a place; one that comes before the last is of another forward, with other bases."""
    mediator = worker()
    if mediator is None or place.order is None or counts(mediator):
        return
    if place.order < _reached(mediator):
        mediator.emotrace_base = None
    mediator.emotrace_order = place.order


def _reached(mediator: Any) -> float:
    """The order of the place that a block asked for last in this forward; a new step of a loop has reached nothing."""
    step = mediator.iteration  # None from the first place of a later step on
    if step is not None and step != getattr(mediator, "emotrace_step", 0):
        mediator.emotrace_step, mediator.emotrace_order, mediator.emotrace_base = step, -float("inf"), None
    return getattr(mediator, "emotrace_order", -float("inf"))


def _remember(place: Place, value: torch.Tensor) -> None:
    """Keep the last ``resid_pre`` of this trace, for the ``resid_mid`` of the same layer."""
    mediator = worker()
    if mediator is not None:
        location = _location(place)
        visit = mediator.occurrence(location) if counts(mediator) else None
        mediator.emotrace_base = LastBase(location, visit, value)


def _used() -> None:
    """Where nothing is counted, a base serves one write: the next may be of another forward."""
    mediator = worker()
    if mediator is not None and not counts(mediator):
        mediator.emotrace_base = None


def _location(place: Place) -> str:
    return f"{place.envoy.path}.{place.side}"


def _base(place: Place, batch: int | None) -> torch.Tensor | None:
    """``resid_pre`` for a ``mid`` place: the one just read, or read now; None if the model ran past it."""
    mediator = worker()
    if mediator is None:
        return fetch(place.base, None, batch)
    there, counted = _location(place.base), counts(mediator)
    gone = not counted and _reached(mediator) > place.base.order
    last = getattr(mediator, "emotrace_base", None)
    if last is not None and last.location != there:
        last = None
    if not counted:
        if last is not None:
            return last.value
        return None if gone else fetch(place.base, None, batch)
    wanted = mediator.wanted(_location(place))
    if last is not None and last.visit == wanted:
        return last.value
    if mediator.occurrence(there) > wanted:
        return None
    return fetch(place.base, None, batch)
