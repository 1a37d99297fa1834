"""Projection: how far labelled activations lie along directions, with the labels of both kept apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import provenance
from emotrace.directions.source import ActivationsLike, source
from emotrace.labels import EmotraceError, Positions
from emotrace.signatures import typed

OF: Final = "direction"
"""The dim of a projection that says along which direction it is."""


@typed
def project(
    acts: ActivationsLike, directions: xr.DataArray, position: Positions = "all", *, variable: str = "residual"
) -> xr.DataArray:
    """Scalar product of every row with every direction at the same place: ``p[d, layer, sublayer, token] = ⟨h, v_d⟩``.

    Along a unit vector that is the signed length of the row's part in its direction, in units of the activations;
    positive = more of what the direction points to. The rows keep all their labels, and the directions' own label becomes the
    dim ``direction``, so that ``project(acts, dirs).groupby("emotion").mean()`` is the mean by the emotion of the rows.

    Args:
        acts: labelled array or open activations; read in blocks of one layer, summed in float64.
        directions: ``[(label), (layer), (sublayer), dim]``, e.g. of `centered_mean`, all or one of them. Layers and sublayers are
            matched by name: those that both have are projected.
        position: policy or span of the rows; every row by default.
        variable: which array of open activations.

    Returns:
        ``projection[(direction), (layer), (sublayer), token]`` float64.

    Raises:
        EmotraceError: for directions of another model or width, no layer or sublayer in common, or more than one label dim.
    """
    rows = source(acts, variable, position)
    provenance.together("project", acts=rows.attrs, directions=directions)
    array = rows.array
    missing = [d for d in rows.features if d not in directions.dims]
    wrong = [d for d in rows.features if d not in missing and array.sizes[d] != directions.sizes[d]]
    if missing or wrong:
        raise EmotraceError(
            f"project: rows of {_sizes(array, rows.features)} on directions with the dims {_sizes(directions, directions.dims)}."
        )
    extra = [d for d in directions.dims if d not in ("layer", "sublayer", *rows.features)]
    if len(extra) > 1:
        raise EmotraceError(
            f"project: directions of one label are due; these have the dims {', '.join(map(str, extra))}."
        )
    shared = {dim: _shared(array, directions, dim) for dim in ("layer", "sublayer")}
    for dim, names in shared.items():
        if names is not None:
            array = array.sel({dim: names}) if dim in array.dims else array
            directions = directions.sel({dim: names}) if dim in directions.dims else directions
    here = replace(rows, array=array)
    if any(directions.sizes.get(dim, 1) > array.sizes.get(dim, 1) for dim in ("layer", "sublayer")):
        raise EmotraceError("project: the rows do not say their layer or sublayer; choose the directions of one place.")
    places = [d for d in ("layer", "sublayer") if d in directions.dims]
    vectors = directions.transpose(*extra, *places, *rows.features).values.astype(np.float64)
    n_layers, n_sub, width = here.shape
    n = directions.sizes[extra[0]] if extra else 1
    vectors = vectors.reshape(n, directions.sizes.get("layer", 1), directions.sizes.get("sublayer", 1), width)
    values = np.broadcast_to(vectors, (n, n_layers, n_sub, width))
    if not np.isfinite(values).all():
        raise EmotraceError("project: the directions hold NaN or infinity.")
    found = np.empty((n, n_layers, n_sub, len(rows.rows)))
    for layer in range(n_layers):
        for part, x in here.blocks(layer, np.arange(len(rows.rows))):
            found[:, layer, :, part] = np.einsum("esf,srf->esr", values[:, layer], x)
    taken = array.isel(token=rows.rows)
    dims = (*here.lead, "token")
    coords: dict[Any, Any] = {name: c for name, c in taken.coords.items() if set(c.dims) <= set(dims)}
    named = [c for c in directions.coords if c not in ("layer", "sublayer", "norm") and directions[c].ndim == 0]
    if extra and extra[0] in directions.coords:
        coords[OF] = (OF, directions[extra[0]].values)
    elif len(named) == 1:
        coords[OF] = directions[named[0]].values
    shape = [n] * len(extra) + [taken.sizes[d] for d in dims]
    out = xr.DataArray(found.reshape(shape), dims=(*([OF] if extra else []), *dims), coords=coords, name="projection")
    return out.assign_attrs(
        method="projection", sign="positive = more of what the direction points to", label=str(extra[0]) if extra else "",
        unit=int(directions.attrs.get("unit", 0)), **rows.provenance(),
    )  # fmt: skip


def _shared(array: xr.DataArray, directions: xr.DataArray, dim: str) -> list[Any] | None:
    """The names of a dim that both have, in the order of the rows; None where one of them does not say."""
    if dim not in array.coords or dim not in directions.coords:
        return None
    theirs = np.atleast_1d(directions[dim].values).tolist()
    mine = np.atleast_1d(array[dim].values).tolist()
    names = [name for name in mine if name in theirs]
    if not names:
        raise EmotraceError(f"project: the rows are at {dim} {mine}, the directions at {theirs}: none in common.")
    return names


def _sizes(array: xr.DataArray, dims: Iterable[Hashable]) -> str:
    return ", ".join(f"{d} {array.sizes[d]}" for d in dims)
