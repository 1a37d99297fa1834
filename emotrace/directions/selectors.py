"""Selectors: which coordinates and layers of a vector are kept. They compose; each says in ``attrs`` that it was there.

A vector that nothing is taken from is *dense*.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from emotrace import aligned, arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats.ties import descending


@typed
def top_k(vectors: xr.DataArray, k: int, by: xr.DataArray | None = None) -> xr.DataArray:
    """The k coordinates of largest |by| in every layer; the others become zero.

    Ties: the lower index first, so that the choice is the same on every machine.

    Args:
        vectors: ``[…, dim]``.
        k: at least 1, at most the width.
        by: what is ranked, of the dims of ``vectors``: None for the vectors themselves (as published), or Cohen's d of
            `contrast`, so that the outlier dimensions of a model do not take every place. NaN ranks last.

    Raises:
        EmotraceError: for k out of range, or a ranking of another shape or with other coordinates.
    """
    width = arguments.having("top_k(vectors=…)", vectors, "dim").sizes["dim"]
    if not 1 <= k <= width:
        raise EmotraceError(f"top_k(k={k}): the vectors have {width} coordinates; k lies between 1 and that.")
    score = vectors if by is None else aligned.like(by, vectors)
    size = np.abs(score.transpose(*vectors.dims).values.astype(np.float64))
    axis = vectors.get_axis_num("dim")
    order = descending(size, axis=axis)
    keep = np.zeros(vectors.shape, dtype=bool)
    np.put_along_axis(keep, np.take(order, range(k), axis=axis), True, axis=axis)
    ranked = "absolute value" if by is None else str(by.name)
    return _kept(vectors, np.where(keep, vectors.values, 0), f"top {k} by {ranked}")


@typed
def orthogonal_to(vectors: xr.DataArray, base: xr.DataArray) -> xr.DataArray:
    """v − ⟨v, b̂⟩ b̂ at every layer: what is left of each emotion without the shared part.

    Args:
        vectors: ``[…, layer, dim]``.
        base: ``[layer, dim]``, e.g. of `base_vector`; matched by its coordinates.

    Raises:
        EmotraceError: for a base that lacks a layer, has another width, or is zero somewhere.
    """
    arguments.having("orthogonal_to(vectors=…)", vectors, "dim")
    b = aligned.like(arguments.having("orthogonal_to(base=…)", base, "dim"), vectors, whole=False).astype(np.float64)
    norm = np.sqrt((b * b).sum("dim"))
    if bool((norm == 0).any()):
        raise EmotraceError("orthogonal_to: the base is zero at some layer, so it has no direction there.")
    unit = b / norm
    v = _bare(vectors).astype(np.float64)
    left = v - (v * unit).sum("dim") * unit
    return _kept(vectors, left.transpose(*vectors.dims).values, "orthogonal to base")


@typed
def without(vectors: xr.DataArray, axes: xr.DataArray) -> xr.DataArray:
    """The vectors without their part in a subspace, e.g. the first principal components of neutral activations.

    v − Σ_c ⟨v, u_c⟩ u_c, with u an orthonormal basis of the axes at each layer.

    Args:
        vectors: ``[…, layer, (sublayer), dim]``.
        axes: ``[component, layer, (sublayer), dim]``, e.g. of `pca`.

    Raises:
        EmotraceError: for axes without the dim ``component``, or that lack a layer.
    """
    arguments.having("without(vectors=…)", vectors, "dim")
    arguments.having("without(axes=…)", axes, "component", "dim")
    a = aligned.like(axes, vectors, whole=False).astype(np.float64)
    lead = [d for d in a.dims if d not in ("component", "dim")]
    a = a.transpose(*lead, "component", "dim")
    basis = np.linalg.svd(a.values, full_matrices=False)[2]
    u = a.copy(data=basis)
    v = _bare(vectors).astype(np.float64)
    left = v - ((v * u).sum("dim") * u).sum("component")
    return _kept(vectors, left.transpose(*vectors.dims).values, f"without {a.sizes['component']} axes")


@typed
def only_layers(vectors: xr.DataArray, layers: Iterable[int]) -> xr.DataArray:
    """The vectors of some layers, which keep their numbers; the order is that of the layers.

    Raises:
        EmotraceError: for a layer that the vectors lack, or none.
    """
    wanted = sorted(arguments.wholes("only_layers(layers)", layers))
    known = arguments.having("only_layers(vectors=…)", vectors, "layer")["layer"].values.tolist()
    for layer in wanted:
        if layer not in known:
            raise unknown("layer", layer, known, "only_layers")
    return vectors.sel(layer=wanted)


def _bare(x: xr.DataArray) -> xr.DataArray:
    return x.drop_vars([str(c) for c in x.coords if c not in x.dims])


def _kept(vectors: xr.DataArray, values: np.ndarray, what: str) -> xr.DataArray:
    """The same labels over other numbers, with their norms and what was done."""
    out = vectors.copy(data=values.astype(np.float32))
    norm = np.linalg.norm(values.astype(np.float64), axis=vectors.get_axis_num("dim")).astype(np.float32)
    out = out.assign_coords(norm=(tuple(d for d in vectors.dims if d != "dim"), norm))
    done = [s for s in [vectors.attrs.get("selected", ""), what] if s]
    return out.assign_attrs(selected="; ".join(done), unit=0)
