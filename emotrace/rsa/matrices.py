"""Dissimilarity matrices: one row per pair of concepts, the concepts' names on it.

An RDM is ``[…, pair]`` in the order of `scipy.spatial.distance.pdist` (upper triangle, row by row), with the coordinates
``first`` and ``second``; `square` gives the matrix. Two RDMs are matched by these names, never by position.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
import scipy
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats.ties import EPS, TIED, constant, tied

METRICS: Final = (
    "cosine", "correlation", "euclidean", "sqeuclidean", "absolute", "cityblock", "chebyshev", "canberra", "braycurtis",
    "hamming", "jaccard",
)  # fmt: skip
"""Of scipy's `pdist`; ``absolute`` is |a − b| of a single feature."""
AVERAGES: Final = ("rdms", "patterns")


@typed
def rdm(
    x: xr.DataArray,
    metric: str = "cosine",
    *,
    concept: str = "emotion",
    features: str | Sequence[str] = ("layer", "unit"),
    over: str | None = None,
    average: str = "rdms",
) -> xr.DataArray:
    """Dissimilarities between the patterns of all pairs of concepts.

    A pattern is everything along ``features``. Dims that are neither concept nor feature nor ``over`` stay: with
    ``features="unit"`` there is one RDM per layer. The mean of RDMs and the RDM of the mean pattern are different
    estimators, so which one is meant must be said: ``average="rdms"`` (published) or ``"patterns"``.

    Args:
        x: e.g. ``[seed, emotion, layer, unit]``, finite; labels on ``concept``.
        metric: one of `METRICS`.
        concept: dim of the concepts, at least 3.
        features: dim or dims of one pattern; those that ``x`` lacks are ignored, but one must be there. ``()``: each number
            is a pattern by itself, for ``absolute``.
        over: dim to average over (seeds, subjects); None: no averaging.
        average: what is averaged: ``rdms`` or ``patterns``.

    Returns:
        float64 ``dissimilarity[…, pair]``; distances that differ by rounding alone are equal (`emotrace.stats.ties`), so
        that they tie where they are ranked.

    Raises:
        EmotraceError: for an unknown metric, a missing dim, repeated or too few concepts, values that are not finite, or a
            distance that is not defined (the cosine of a pattern of zeros, the correlation of a constant one).
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS, "rdm")
    if average not in AVERAGES:
        raise unknown("average", average, AVERAGES, "rdm")
    wanted = [features] if isinstance(features, str) else list(features)
    used = [d for d in wanted if d in x.dims]
    if wanted and not used:
        raise unknown("features", wanted, map(str, x.dims), "rdm")
    names = concepts(x, concept)
    if x.dtype.kind not in "fiu":
        raise EmotraceError(f"rdm: the patterns hold {x.dtype}; real numbers are due.")
    if over is not None:
        if over not in x.dims:
            raise unknown("dim to average over", over, map(str, x.dims), "rdm")
        if average == "patterns":
            x = x.astype(np.float64).mean(over)
    lead = [str(d) for d in x.dims if d not in (concept, *used)]
    x = x.transpose(*lead, concept, *used)
    width = int(np.prod([x.sizes[d] for d in used]))
    if metric == "absolute" and width != 1:
        raise EmotraceError(
            f"rdm(metric='absolute') is for a single feature, and the patterns have {width}: choose euclidean."
        )
    shape = x.shape[: len(lead)]
    out = np.empty((*shape, len(names) * (len(names) - 1) // 2))
    for index in itertools.product(*map(range, shape)):  # one pattern matrix in memory at a time
        values = np.asarray(x[index].values, dtype=np.float64).reshape(len(names), width)
        place = ", ".join(f"{d} {x[d].values[i] if d in x.coords else i}" for d, i in zip(lead, index, strict=True))
        if not np.isfinite(values).all():
            bad = names[int(np.argmin(np.isfinite(values).all(1)))]
            raise EmotraceError(f"rdm: the pattern of {bad!r}{' at ' + place if place else ''} is not finite.")
        _check_patterns(values, metric, names, place)
        out[index] = scipy.spatial.distance.pdist(values, "cityblock" if metric == "absolute" else metric)
        if not np.isfinite(out[index]).all():
            pair = list(itertools.combinations(names, 2))[int(np.argmin(np.isfinite(out[index])))]
            raise EmotraceError(
                f"rdm: the {metric} distance of {pair[0]!r} and {pair[1]!r} is not defined (zero pattern?)."
            )
        out[index] = tied(out[index], noise=_noise(values, metric))
    made = labelled(out, names, lead, {d: x[d].values for d in lead if d in x.coords})
    made.attrs.update(metric=metric, concept=concept, features=used, averaged="" if over is None else average)
    if over is not None and average == "rdms":
        made = made.mean(over, keep_attrs=True)
        made = made.copy(data=tied(made.values, axis=made.get_axis_num("pair")))
    if over is not None:
        made.attrs["over"] = over
    return made


def _check_patterns(values: np.ndarray, metric: str, names: Sequence[str], place: str) -> None:
    """Refuse patterns without a direction: rounding would give them one (the mean of 0.3s is not 0.3)."""
    if metric == "correlation":
        bad, what = constant(values), "constant"
    elif metric == "cosine":
        size = np.abs(values).max(1)
        bad, what = size <= TIED * size.max(), "zero"
    else:
        return
    if bad.any():
        at = int(np.argmax(bad))
        pair = (names[0], names[at]) if at else (names[0], names[1])
        where = f" at {place}" if place else ""
        raise EmotraceError(
            f"rdm: the {metric} distance of {pair[0]!r} and {pair[1]!r} is not defined: the pattern of {names[at]!r}{where} is "
            f"{what}."
        )


def _noise(values: np.ndarray, metric: str) -> float:
    """What rounding may do to distances made of differences of the values."""
    size = EPS * float(np.abs(values).max()) * values.shape[1]
    if metric in ("absolute", "euclidean", "cityblock", "chebyshev"):
        return size
    return size * float(np.ptp(values)) if metric == "sqeuclidean" else 0.0


@typed
def labelled(
    values: np.ndarray, names: Sequence[str], dims: Sequence[str] = (), coords: dict[str, np.ndarray] | None = None
) -> xr.DataArray:
    """An RDM from condensed values ``[…, pair]`` and the names of its concepts.

    Args:
        values: the last axis in the order of `pdist`.
        names: the concepts in that order.
        dims: names of the other axes.
        coords: their labels.

    Raises:
        EmotraceError: if there are not n(n − 1)/2 values for n names.
    """
    pairs = list(itertools.combinations(map(str, names), 2))
    if values.ndim != len(dims) + 1:
        raise EmotraceError(f"labelled(dims={list(dims)}): the values have {values.ndim} axes, the last of them pairs.")
    if values.shape[-1] != len(pairs) or len(pairs) < 3:
        raise EmotraceError(
            f"{values.shape[-1]} dissimilarities for {len(names)} concepts; {len(pairs)} are due, and at least 3 concepts."
        )
    first, second = zip(*pairs, strict=True)
    return xr.DataArray(
        values,
        dims=(*dims, "pair"),
        coords={**(coords or {}), "first": ("pair", list(first)), "second": ("pair", list(second))},
        name="dissimilarity",
    )


@typed
def concepts(x: xr.DataArray, dim: str = "emotion") -> list[str]:
    """The concepts of an RDM, or of the dim of any other array, in order.

    Raises:
        EmotraceError: if the pairs are not all pairs in the order of `pdist`, or the labels are missing or repeated.
    """
    if "pair" in x.dims:
        if "first" not in x.coords or "second" not in x.coords:
            raise EmotraceError(
                "an RDM needs the names of its pairs as coordinates 'first' and 'second'; see `labelled`."
            )
        first, second = x["first"].values.tolist(), x["second"].values.tolist()
        names = list(dict.fromkeys([*first, *second]))
        if list(itertools.combinations(names, 2)) != list(zip(first, second, strict=True)):
            raise EmotraceError(
                f"an RDM holds all pairs of its {len(names)} concepts in the order of pdist; this one does not."
            )
        return names
    if dim not in x.dims:
        raise unknown("concept dim", dim, map(str, x.dims), "rsa")
    if dim not in x.coords:
        raise EmotraceError(f"the dim {dim!r} has no labels, so its rows cannot be matched by name.")
    names = [str(v) for v in x[dim].values]
    twice = [n for n in names if names.count(n) > 1]
    if twice or len(names) < 3:
        raise EmotraceError(
            f"{dim}: {twice[0]!r} occurs twice." if twice else f"{len(names)} concepts; 3 are the least."
        )
    return names


@typed
def square(x: xr.DataArray) -> xr.DataArray:
    """The RDM as a symmetric matrix ``[…, concept, concept_other]`` with zeros on the diagonal."""
    names = concepts(x)
    x = x.transpose(..., "pair")
    lead = x.shape[:-1]
    flat = np.stack([scipy.spatial.distance.squareform(row) for row in x.values.reshape(-1, x.shape[-1])])
    coords = {d: x[d] for d in x.dims[:-1] if d in x.coords}
    return xr.DataArray(
        flat.reshape(*lead, len(names), len(names)),
        dims=(*x.dims[:-1], "concept", "concept_other"),
        coords={**coords, "concept": names, "concept_other": names},
        name=x.name,
        attrs=x.attrs,
    )


@typed
def condensed(x: xr.DataArray) -> xr.DataArray:
    """The RDM of a symmetric matrix ``[…, concept, concept_other]``.

    Raises:
        EmotraceError: if rows and columns differ, the matrix is not symmetric, or its diagonal is not zero.
    """
    lead = [str(d) for d in x.dims if d not in ("concept", "concept_other")]
    if len(lead) != x.ndim - 2:
        raise EmotraceError(f"condensed: dims {list(map(str, x.dims))}; 'concept' and 'concept_other' are needed.")
    x = x.transpose(*lead, "concept", "concept_other")
    names = concepts(x, "concept")
    if [str(v) for v in x["concept_other"].values] != names:
        raise EmotraceError("condensed: concept and concept_other are not the same, in the same order.")
    v = x.values
    if not np.allclose(v, v.swapaxes(-1, -2), atol=1e-9, rtol=1e-9) or np.abs(np.einsum("...ii->...i", v)).max() > 1e-9:
        raise EmotraceError("condensed: not symmetric with a diagonal of zeros; average x and its transpose first.")
    i, j = np.triu_indices(len(names), 1)
    return labelled(v[..., i, j], names, lead, {d: x[d].values for d in lead if d in x.coords}).assign_attrs(x.attrs)


@typed
def matched(x: xr.DataArray, to: Sequence[str]) -> xr.DataArray:
    """The same RDM with its concepts in another order; ``to`` may leave concepts out.

    Raises:
        EmotraceError: for a concept that the RDM lacks.
    """
    names = concepts(x)
    to = list(arguments.names("matched(to)", [str(n) for n in to]))
    if to == names:
        return x
    for name in to:
        if name not in names:
            raise unknown("concept", name, names, "this RDM")
    index = reordered(len(names), [names.index(n) for n in to])
    a, b = np.triu_indices(len(to), 1)
    chosen = x.transpose(..., "pair").isel(pair=index).drop_vars(["first", "second"])
    first, second = ([to[i] for i in side] for side in (a, b))
    return chosen.assign_coords(first=("pair", first), second=("pair", second))


def reordered(n: int, to: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each pair of the concepts ``to[0], to[1], …`` stands among the pairs of n concepts: ``[pair]``."""
    index = np.zeros((n, n), dtype=np.int64)
    i, j = np.triu_indices(n, 1)
    index[i, j] = index[j, i] = np.arange(len(i))
    at = np.asarray(to)
    a, b = np.triu_indices(len(at), 1)
    return index[at[a], at[b]]
