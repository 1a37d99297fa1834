"""Unimodal: does a sample have one mode? Hartigan & Hartigan (1985), The dip test of unimodality, Annals of Statistics 13."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.signatures import typed


@typed
def dip(sample: ArrayLike) -> float:
    """The largest distance between the sample's distribution function and the nearest unimodal one; at least 1/(2n).

    A unimodal distribution function is convex up to its mode and concave beyond it. Within an interval that holds the
    mode, the greatest convex minorant (from below each step) and the least concave majorant (from above) are drawn; where they
    lie furthest apart the interval is narrowed, until they lie no further apart than what is already lost outside it.

    Raises:
        EmotraceError: for an empty sample or values that are not finite.
    """
    x = np.sort(arguments.values("dip(sample)", sample).ravel())
    n = len(x)
    if n == 0 or not np.isfinite(x).all():
        raise EmotraceError(f"dip: {n} values; at least one, and all of them finite.")
    below, above = np.arange(n) / n, np.arange(1, n + 1) / n
    low, high, lost = 0, n - 1, 1 / n
    while high > low:
        minorant, touching_below = _hull(x, below, low, high, 1)
        majorant, touching_above = _hull(x, above, low, high, -1)
        apart = majorant - minorant
        left = touching_below[np.argmax(apart[touching_below - low])]
        right = touching_above[np.argmax(apart[touching_above - low])]
        if max(apart[left - low], apart[right - low]) <= lost + 1e-14:
            break
        if apart[left - low] >= apart[right - low]:
            right = touching_above[np.searchsorted(touching_above, left)]
        else:
            left = touching_below[np.searchsorted(touching_below, right, "right") - 1]
        rising = (above[low : left + 1] - minorant[: left + 1 - low]).max()
        falling = (majorant[right - low :] - below[right : high + 1]).max()
        lost = max(lost, rising, falling)
        if (left, right) == (low, high):
            break
        low, high = int(left), int(right)
    return float(lost / 2)


@typed
def dip_test(sample: ArrayLike, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The dip and its p against a uniform sample of the same size, the unimodal distribution with the largest dip.

    p = (1 + uniform samples with at least this dip) / (1 + draws): small p, more than one mode. It is simulated, once per size
    and seed.

    Args:
        sample: numbers.
        draws: uniform samples.
        seed: of the draws.

    Returns:
        (dip, p).
    """
    arguments.resampling("dip_test", seed, draws=draws)
    if draws < 1:
        raise EmotraceError(f"dip_test(draws={draws}): at least 1.")
    found = dip(sample)
    null = _uniform(int(np.size(sample)), draws, seed)
    return found, float(1 + (null >= found - 1e-12).sum()) / (1 + draws)


@lru_cache(maxsize=32)
def _uniform(n: int, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([dip(rng.random(n)) for _ in range(draws)])


def _hull(x: np.ndarray, y: np.ndarray, low: int, high: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Greatest convex minorant (side 1) or least concave majorant (−1) of the points low … high, and those it touches."""
    px, py = x.tolist(), (side * y).tolist()
    kept: list[int] = []
    for i in range(low, high + 1):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (px[b] - px[a]) * (py[i] - py[a]) - (py[b] - py[a]) * (px[i] - px[a]) > 0:
                break
            kept.pop()
        kept.append(i)
    touching = np.array(kept)
    values = np.empty(high - low + 1)
    for a, b in itertools.pairwise(kept):
        here = slice(a - low, b - low + 1)
        width = x[b] - x[a]
        values[here] = y[a] + (y[b] - y[a]) * ((x[a : b + 1] - x[a]) / width) if width > 0 else y[a : b + 1]
    return values, touching
