"""Axes: principal components of labelled activations."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy
import xarray as xr

from emotrace import arguments
from emotrace.directions.groups import Within, accepted_attrs, counting, missing
from emotrace.directions.source import ActivationsLike, source
from emotrace.labels import EmotraceError, Positions, unknown
from emotrace.signatures import typed


@typed
def pca(
    acts: ActivationsLike,
    within: Within = None,
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    *,
    k: int = 2,
    variable: str = "residual",
) -> xr.DataArray:
    """First k principal axes of the rows, after taking away the mean of all, or of each group (``within``).

    Sign: the entry of largest absolute value is positive.

    Args:
        acts: stored activations, or a DataArray with labelled rows.
        within: labels whose groups are centred one by one; None takes away one mean.
        accepted: keys that count; None for all.
        position: of the rows that are taken.
        k: how many axes.
        variable: of stored activations.

    Returns:
        ``direction[component, layer, sublayer, dim]`` unit float32, with the coordinates ``norm`` (standard deviation along the
        axis) and ``explained`` (share of the variance).

    Raises:
        EmotraceError: for k outside 1..min(rows − 1, dim), or rows without variance.
    """
    rows = source(acts, variable, position)
    table = rows.table
    keep = counting(table, accepted)
    said = accepted_attrs(table, keep)
    code = np.zeros(len(table), dtype=np.int64)
    if within:
        names = (within,) if isinstance(within, str) else arguments.names("pca(within)", within)
        for name in names:
            if name not in table:
                raise unknown("label", name, table.columns, "pca(within=…)")
            keep &= ~missing(table[name])
        code = table.groupby(list(names), sort=False, dropna=False).ngroup().to_numpy()
    used = np.flatnonzero(keep)
    _, code = np.unique(code[used], return_inverse=True)
    n_layers, n_sub, width = rows.shape
    if not 1 <= k <= min(len(used) - 1, width):
        raise EmotraceError(f"pca(k={k}): {len(used)} rows of width {width} allow 1..{min(len(used) - 1, width)}.")
    axes = np.empty((k, n_layers, n_sub, width))
    spread, explained = np.empty((k, n_layers, n_sub)), np.empty((k, n_layers, n_sub))
    per_group = np.bincount(code)
    for layer in range(n_layers):
        whole = np.concatenate([x for _, x in rows.blocks(layer, used)], axis=1)
        for sub, x in enumerate(whole):
            means = np.zeros((len(per_group), width))
            np.add.at(means, code, x)
            x = x - (means / per_group[:, None])[code]
            wide = width > len(used)
            gram = x @ x.T if wide else x.T @ x
            top = [len(gram) - k, len(gram) - 1]
            values, vectors = scipy.linalg.eigh(gram, subset_by_index=top)
            values, vectors = values[::-1], vectors[:, ::-1]
            total = float(np.trace(gram))
            if values[-1] <= 1e-12 * total or total == 0:
                raise EmotraceError(f"pca(k={k}): fewer than {k} axes with variance at {rows.place(layer, sub)}.")
            v = (x.T @ vectors if wide else vectors).T
            v /= np.linalg.norm(v, axis=1, keepdims=True)
            v *= np.sign(v[np.arange(k), np.abs(v).argmax(1)])[:, None]
            axes[:, layer, sub], explained[:, layer, sub] = v, values / total
            spread[:, layer, sub] = np.sqrt(values / (len(used) - len(per_group)))
    out, _ = rows.label(axes.astype(np.float32), "component", {"component": np.arange(k)}, "direction")
    norm, dims = rows.label(spread, "component", {}, "norm")
    share, _ = rows.label(explained, "component", {}, "explained")
    out = out.assign_coords(norm=(dims, norm.values), explained=(dims, share.values))
    return out.assign_attrs(
        method="pca", sign="the largest entry is positive", n_rows=len(used), n_groups=len(per_group), space="residual",
        **said, **rows.provenance(),
    )  # fmt: skip
