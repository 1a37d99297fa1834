"""Patterns: captured rows as an array of concepts, seeds and neurons."""

from __future__ import annotations

import numpy as np
import xarray as xr

from emotrace.directions.groups import require_labels
from emotrace.directions.source import BLOCK_BYTES, ActivationsLike, Source, source
from emotrace.labels import EmotraceError
from emotrace.signatures import typed


@typed
def patterns(
    x: ActivationsLike,
    concept: str = "emotion",
    over: str | None = "seed",
    *,
    average: bool = False,
    variable: str = "neuron",
) -> xr.DataArray:
    """Rows ``[token, …]`` with the labels of concept and seed on them → ``[seed, emotion, …]``.

    Args:
        x: open activations, all of whose rows count (``acts.where(position="last")`` narrows them), or an array of them. They are
            read in blocks of rows.
        concept: label of the concepts.
        over: label of the seeds, subjects or whatever else is crossed with the concepts; None: none.
        average: take the mean of several prompts of one cell, each as the mean over its rows; False: that is an error.
        variable: of open activations.

    Raises:
        EmotraceError: for a label that all or some rows lack, a cell without a row, or one with several.
    """
    rows = source(x, variable, "all")
    x, keys = rows.array, [concept] if over is None else [over, concept]
    require_labels(rows.table, keys, "patterns")
    named = [rows.table[k].tolist() for k in keys]
    levels = [list(dict.fromkeys(values)) for values in named]
    shape = tuple(len(v) for v in levels)
    index = np.ravel_multi_index(
        [np.array([v.index(one) for one in values]) for values, v in zip(named, levels, strict=True)], shape
    )
    counts = np.bincount(index, minlength=int(np.prod(shape)))
    for cell in np.flatnonzero((counts == 0) | ((counts > 1) & (not average))):
        where = ", ".join(f"{k} {v[i]!r}" for k, v, i in zip(keys, levels, np.unravel_index(cell, shape), strict=True))
        raise EmotraceError(
            f"patterns: no row of {where}." if counts[cell] == 0
            else f"patterns: {counts[cell]} rows of {where}; select one position, or average=True."
        )  # fmt: skip
    x = x.transpose("token", ...)
    out = np.zeros((len(counts), *x.shape[1:]), dtype=np.float64 if average else x.dtype)
    weight = _weights(rows, index, len(counts))
    step = max(1, BLOCK_BYTES // (8 * max(1, int(np.prod(x.shape[1:])))))
    for start in range(0, len(index), step):
        part = slice(start, start + step)
        values = np.asarray(x.isel(token=part).values)
        if average:
            np.add.at(out, index[part], values * weight[part].reshape(-1, *[1] * (values.ndim - 1)))
        else:
            out[index[part]] = values
    coords = {d: x[d].values for d in x.dims[1:] if d in x.coords}
    return xr.DataArray(
        out.reshape(*shape, *x.shape[1:]),
        dims=(*keys, *x.dims[1:]),
        coords={**dict(zip(keys, levels, strict=True)), **coords},
        name=x.name,
        attrs=x.attrs,
    )


def _weights(rows: Source, index: np.ndarray, n: int) -> np.ndarray:
    """Of every row, its share of its cell: every prompt alike, and of a prompt every row."""
    if "key" not in rows.table:
        return 1 / np.bincount(index, minlength=n)[index]
    key = np.unique(rows.table["key"].to_numpy().astype(str), return_inverse=True)[1]
    _, of, times = np.unique(index * (key.max() + 1) + key, return_inverse=True, return_counts=True)
    prompts = np.bincount(index, weights=1 / times[of], minlength=n)
    return 1 / (times[of] * prompts[index])
