"""Payloads: the vectors that edits carry, taken by name for one place of a model and checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from emotrace import aligned
from emotrace.edits.kinds import Edit
from emotrace.edits.sizes import directed
from emotrace.labels import SUBLAYERS, EmotraceError, unknown, value_dims
from emotrace.sites import Address


class ByLabel(NamedTuple):
    """A payload with a label dim: ``values[rows[label]]`` is the vector of a prompt with that label."""

    dim: str
    rows: dict[Any, int]
    values: torch.Tensor


class Spot(NamedTuple):
    """Where a payload goes.

    Attributes:
        edit: that carries it.
        address: that it acts at.
        columns: edited ones; None for all.
        place: of the edit in a list, for messages.
    """

    edit: Edit
    address: Address
    columns: list[int] | None
    place: str


def vector_at(spot: Spot) -> torch.Tensor | ByLabel | None:
    """The payload of an edit at one address, ``[width]`` or one row for each value of a label."""
    vector, place = spot.edit.payload, spot.place
    if vector is None:
        return None
    if not isinstance(vector, xr.DataArray):
        return _tensor(vector, spot)
    vector = _chosen(vector, spot)
    own = value_dims(vector.dims)
    vector = _in_order(vector, own, spot)
    if len(own) > 1:
        vector = vector.stack({"dim": own})
    feature = "dim" if len(own) > 1 else next(iter(own), None)
    rest = [d for d in vector.dims if d != feature]
    if not rest:
        return _tensor(vector.values, spot)
    if len(rest) > 1:
        raise EmotraceError(f"{place}: the payload has the dims {vector.dims}; at most one label dim can remain.")
    labelled = vector.transpose(rest[0], feature)
    values = labelled[rest[0]].values.tolist() if rest[0] in labelled.coords else list(range(labelled.shape[0]))
    rows = {v: i for i, v in enumerate(values)}
    if len(rows) < len(values):
        twice = next(v for i, v in enumerate(values) if v in values[:i])
        raise EmotraceError(f"{place}: the payload has two vectors of {rest[0]} {twice!r}; a label names one.")
    return ByLabel(str(rest[0]), rows, _tensor(labelled.values, spot, values))


def _chosen(vector: xr.DataArray, spot: Spot) -> xr.DataArray:
    """A payload at the layer and the site of its address, where it has dims of these.

    Raises:
        EmotraceError: for one that lacks them, has one twice, or is of another sublayer.
    """
    address, place = spot.address, spot.place
    for dim, wanted in (("layer", address.layer), ("sublayer", address.site)):
        if dim not in vector.dims:
            continue
        held = vector[dim].values.tolist()
        if dim in vector.coords and len(set(held)) < len(held):
            raise EmotraceError(f"{place}: the payload has a {dim} twice: {held}.")
        if wanted not in held:
            raise unknown(f"{dim} in the payload", wanted, held, place)
        vector = vector.sel({dim: wanted})
    mine = vector.coords.get("sublayer")
    if mine is not None and mine.ndim == 0 and address.site in SUBLAYERS and str(mine.item()) != address.site:
        raise EmotraceError(f"{place}: the payload belongs to {mine.item()!r}, but the edit acts on {address.site!r}.")
    return vector


def _in_order(vector: xr.DataArray, dims: Sequence[str], spot: Spot) -> xr.DataArray:
    """A payload in the order of the model's heads, units or columns, or of those that the edit picks.

    Where coordinates number them: so an array that was sorted or narrowed is taken by name.

    Raises:
        EmotraceError: for one that lacks a number, or has one twice.
    """
    edit, address = spot.edit, spot.address
    heads = max(address.heads, 1)
    sizes = (address.width,) if len(dims) == 1 else (address.heads, address.width // heads)
    for dim, n in zip(dims, sizes, strict=True):
        picked = edit.heads if dim == "head" else edit.units if len(dims) == 1 else None
        if n > 0:
            wanted = range(n) if picked is None or vector.sizes[dim] == n else picked
            vector = aligned.numbered(vector, dim, wanted, f"{spot.place}: the payload")
    return vector


def named(place: str, address: Address) -> str:
    """A place in a list of edits, with the layer of a site that has layers."""
    return place if address.layer is None else f"{place} at layer {address.layer}"


def _tensor(values: ArrayLike | torch.Tensor, spot: Spot, names: Sequence[Any] | None = None) -> torch.Tensor:
    """Numbers as a tensor ``[width]``, or ``[label, width]`` where labels are named.

    Raises:
        EmotraceError: for what is no finite real number, of another width, or a vector of zero whose direction is asked for.
    """
    address, columns, place = spot.address, spot.columns, spot.place
    ndim = 1 if names is None else 2
    try:
        given = torch.as_tensor(values if isinstance(values, torch.Tensor) else np.asarray(values))
    except (TypeError, ValueError) as error:
        raise EmotraceError(f"{place}: the payload is no array of numbers ({error}).") from None
    if given.dtype == torch.bool or given.is_complex():
        raise EmotraceError(f"{place}: the payload holds {given.dtype}; real numbers are due.")
    tensor = given.float().cpu()
    allowed = {address.width, len(columns) if columns else address.width}  # whole, or the edited columns in their order
    if tensor.ndim != ndim or (address.width >= 0 and tensor.shape[-1] not in allowed):
        edited = f", {len(columns)} of it edited" if columns else ""
        raise EmotraceError(
            f"{place}: the payload has shape {tuple(tensor.shape)}; {address.site!r} at layer {address.layer} has "
            f"width {address.width}{edited}."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise EmotraceError(f"{place}: the payload has NaN or infinite values at layer {address.layer}.")
    own = columns if tensor.shape[-1] == address.width else None
    return directed(tensor, spot.edit, own, named(place, address), names or ())
