"""Ranks: the components with the highest scores, and how well scores find components that are known. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
import xarray as xr
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import COUNTED, EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats.ties import descending, tied


@typed
def top(contributions: xr.Dataset | xr.DataArray, k: int, by: str = "contrast") -> xr.DataArray:
    """Indices of the k components with the highest scores in every layer, the highest first.

    Scores are signed: a component that lowers the projection comes last. Equal scores (`stats.ties`) are ordered by
    index.

    Args:
        contributions: Dataset of `neuron_contributions` or `head_contributions`, or one array of scores with the dim ``unit``
            or ``head``.
        k: components per label and layer.
        by: variable of the Dataset.

    Returns:
        ``[label, layer, rank]`` int64: the coordinate of the component (its index where there is none).

    Raises:
        EmotraceError: for an unknown variable, a k outside 1..components, or scores that are NaN.
    """
    if isinstance(contributions, xr.Dataset):
        if by not in contributions.data_vars:
            raise unknown("score", by, contributions.data_vars, "top(by=…)")
        scores = contributions[by]
    else:
        scores = contributions
    dim = feature(scores)
    size = scores.sizes[dim]
    arguments.whole("top(k)", k, 1, size)
    scores = scores.transpose(..., dim)
    values = np.asarray(scores.values, dtype=np.float64)
    if np.isnan(values).any():
        raise EmotraceError(f"top(by={by!r}): the scores hold NaN.")
    order = descending(values)[..., :k]
    names = scores[dim].values if dim in scores.coords else np.arange(size)
    dims = (*scores.dims[:-1], "rank")
    coords: dict[Any, Any] = {d: scores[d] for d in dims[:-1] if d in scores.coords}
    coords["rank"] = np.arange(k)
    attrs = {"by": by if isinstance(contributions, xr.Dataset) else str(scores.name), "component": dim}
    return xr.DataArray(names[order].astype(np.int64), dims=dims, coords=coords, name=dim, attrs=attrs)


def feature(scores: xr.Dataset | xr.DataArray) -> str:
    """The dim that counts components: ``unit`` or ``head``.

    Raises:
        EmotraceError: for an array with neither, or both.
    """
    found = [d for d in tuple(COUNTED) if d in scores.dims]
    if len(found) != 1:
        raise EmotraceError(f"scores need one of the dims {tuple(COUNTED)}; these have {tuple(map(str, scores.dims))}.")
    return found[0]


@typed
def planted_auroc(scores: ArrayLike, planted: ArrayLike) -> float:
    """Probability that a planted component scores higher than another one, ties counted half; 1 is perfect.

    Args:
        scores: numbers of any shape.
        planted: booleans of the same shape; two DataArrays are matched by their labels.

    Raises:
        EmotraceError: for different shapes or labels, NaN, or where all or none are planted.
    """
    if isinstance(scores, xr.DataArray) and isinstance(planted, xr.DataArray):
        if set(scores.dims) != set(planted.dims):
            raise EmotraceError(f"planted_auroc: scores have the dims {scores.dims}, planted has {planted.dims}.")
        try:
            scores, planted = xr.align(scores, planted, join="exact")
        except ValueError as error:
            raise EmotraceError(f"planted_auroc: scores and planted have other labels ({error}).") from error
        planted = planted.transpose(*scores.dims)
    values, mask = np.asarray(scores, dtype=np.float64), np.asarray(planted)
    if values.shape != mask.shape or mask.dtype != bool:
        raise EmotraceError(
            f"planted_auroc: planted is a boolean array of shape {values.shape}, not {mask.dtype} {mask.shape}."
        )
    if np.isnan(values).any():
        raise EmotraceError("planted_auroc: the scores hold NaN.")
    positive = int(mask.sum())
    negative = mask.size - positive
    if not positive or not negative:
        raise EmotraceError(
            f"planted_auroc: {positive} of {mask.size} components are planted; it needs some and some others."
        )
    ranks = scipy.stats.rankdata(tied(values.ravel()))
    return float((ranks[mask.ravel()].sum() - positive * (positive + 1) / 2) / (positive * negative))
