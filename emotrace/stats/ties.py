"""Ties: numbers that differ by rounding alone are equal, whatever they are counted, ranked or compared for.

|0.3 − 0.2| and |0.2 − 0.1| differ in the last bit, and so do sums in another order. Here values no further apart than
`TIED` of the largest magnitude beside them are one value; a difference that data can hold is far larger.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

TIED: Final = 1e-12
"""Share of the largest magnitude up to which two computed numbers count as equal."""
EPS: Final = 8 * float(np.finfo(np.float64).eps)
"""Share of a term's magnitude that a few operations on it may lose."""


def tolerance(values: ArrayLike, axis: int = -1, noise: ArrayLike = 0.0) -> np.ndarray:
    """How far apart equal values along an axis may lie: `TIED` of the largest finite magnitude, or the noise if that is more.

    Args:
        values: of any shape.
        axis: along which they are compared.
        noise: known rounding error, e.g. `EPS` of the numbers that they are differences of.

    Returns:
        One tolerance for each line, with an axis of length 1.
    """
    x = np.asarray(values, dtype=np.float64)
    size = np.abs(np.where(np.isfinite(x), x, 0)).max(axis=axis, keepdims=True, initial=0)
    return np.maximum(TIED * size, noise)


def tied(values: ArrayLike, axis: int = -1, noise: ArrayLike = 0.0) -> np.ndarray:
    """The values, those that differ by rounding alone made equal (to the smallest of them).

    Args:
        values: of any shape; what is not finite stays.
        axis: along which they are compared.
        noise: of `tolerance`.
    """
    x = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    if x.shape[-1] < 2:
        return np.moveaxis(x.copy(), -1, axis)
    limit = np.moveaxis(np.broadcast_to(tolerance(values, axis, noise), (*np.shape(values),)), axis, -1)[..., :1]
    order = np.argsort(x, axis=-1, kind="stable")
    rising = np.take_along_axis(x, order, axis=-1)
    with np.errstate(invalid="ignore"):
        new = ~(np.diff(rising, axis=-1) <= limit)  # NaN and infinities begin anew
    starts = np.where(new, np.arange(1, x.shape[-1]), 0)
    starts = np.concatenate([np.zeros((*x.shape[:-1], 1), dtype=np.int64), starts], axis=-1)
    found = np.empty_like(x)
    np.put_along_axis(
        found, order, np.take_along_axis(rising, np.maximum.accumulate(starts, axis=-1), axis=-1), axis=-1
    )
    return np.moveaxis(found, -1, axis)


def descending(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """Order from the largest to the smallest; equal values (`tied`) in the order they stand in, NaN last."""
    return np.argsort(-tied(values, axis), axis=axis, kind="stable")


def constant(values: ArrayLike, axis: int = -1, noise: ArrayLike = 0.0) -> np.ndarray:
    """Whether all values along an axis are one value, up to rounding."""
    x = np.asarray(values, dtype=np.float64)
    limit = np.squeeze(tolerance(x, axis, noise), axis=axis)
    return np.ptp(x, axis=axis) <= limit
