"""Patterns: captured rows as an array of concepts, seeds and neurons."""

from __future__ import annotations

import numpy as np
import xarray as xr

from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed


@typed
def patterns(
    x: xr.DataArray, concept: str = "emotion", over: str | None = "seed", *, average: bool = False
) -> xr.DataArray:
    """Rows ``[token, …]`` with the labels of concept and seed on them → ``[seed, emotion, …]``.

    Args:
        x: e.g. ``acts.sel(variable="neuron", position="last")``.
        concept: label of the concepts.
        over: label of the seeds, subjects or whatever else is crossed with the concepts; None: none.
        average: take the mean of several rows of one cell; False: that is an error.

    Raises:
        EmotraceError: for a missing label, a cell without a row, or one with several.
    """
    if "token" not in x.dims:
        raise unknown("dim", "token", map(str, x.dims), "patterns")
    keys = [concept] if over is None else [over, concept]
    for name in keys:
        if name not in x.coords or x[name].dims != ("token",):
            raise unknown("label", name, [str(c) for c in x.coords if x[c].dims == ("token",)], "patterns")
    levels = [list(dict.fromkeys(x[k].values.tolist())) for k in keys]
    shape = tuple(len(v) for v in levels)
    index = np.ravel_multi_index(
        [np.array([v.index(one) for one in x[k].values.tolist()]) for k, v in zip(keys, levels, strict=True)], shape
    )
    counts = np.bincount(index, minlength=int(np.prod(shape)))
    for cell in np.flatnonzero((counts == 0) | ((counts > 1) & (not average))):
        where = ", ".join(f"{k} {v[i]!r}" for k, v, i in zip(keys, levels, np.unravel_index(cell, shape), strict=True))
        raise EmotraceError(
            f"patterns: no row of {where}." if counts[cell] == 0
            else f"patterns: {counts[cell]} rows of {where}; select one position, or average=True."
        )  # fmt: skip
    x = x.transpose("token", ...)
    values = np.asarray(x.values)
    if average:
        summed = np.zeros((len(counts), *values.shape[1:]))
        np.add.at(summed, index, values)
        out = summed / counts.reshape(-1, *[1] * (values.ndim - 1))
    else:
        out = values[np.argsort(index, kind="stable")]
    coords = {d: x[d].values for d in x.dims[1:] if d in x.coords}
    return xr.DataArray(
        out.reshape(*shape, *values.shape[1:]),
        dims=(*keys, *x.dims[1:]),
        coords={**dict(zip(keys, levels, strict=True)), **coords},
        name=x.name,
        attrs=x.attrs,
    )
