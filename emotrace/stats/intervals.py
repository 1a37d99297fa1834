"""Intervals: cluster bootstrap of a mean, Wilson's of a share, and that of a mean whose fit was drawn too."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.stats.ties import TIED


@typed
def cluster_weights(n_clusters: int, n: int, seed: int = 0) -> np.ndarray:
    """How often each cluster is drawn in each bootstrap sample: ``[n, n_clusters]``, rows sum to ``n_clusters``.

    Args:
        n_clusters: that there are, and that each sample draws.
        n: bootstrap samples.
        seed: of the draws.
    """
    arguments.resampling("cluster_weights", seed, n=n)
    if n_clusters < 1 or n < 1:
        raise EmotraceError(f"a bootstrap needs at least one cluster and one draw, not {n_clusters} and {n}.")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_clusters, np.full(n_clusters, 1.0 / n_clusters), size=n).astype(np.float64)


@typed
def bootstrap_ci(
    values: ArrayLike,
    clusters: ArrayLike,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    *,
    shares: bool = False,
) -> tuple[Any, Any]:
    """Percentile interval of a mean, whole clusters being drawn with replacement.

    mean* = Σ_c w_c S_c / Σ_c w_c N_c, with S_c the sum and N_c the number of values of cluster c and w the counts of a
    multinomial draw of C clusters out of C. Where all draws agree (zero width) the bootstrap of a share says nothing about
    rare misses, and the Wilson interval of the mean with n = number of clusters (not of rows: the rows of a cluster are
    not independent) stands instead. What is a share is for the caller to say: numbers between 0 and 1 need not be any.

    Args:
        values: ``[rows]`` or ``[rows, ...]``; the trailing axes are separate means that share the draws.
        clusters: ``[rows]``, e.g. the skeleton of each row.
        n: bootstrap draws.
        seed: of the draws.
        level: coverage.
        shares: the mean is a share of hits (values 0 and 1, or shares of a row's draws), so Wilson's interval stands where
            all draws agree; without it such an interval has no width.

    Returns:
        (lo, hi), floats for ``[rows]``, arrays of the trailing shape otherwise.

    Raises:
        EmotraceError: for no rows, lengths that differ, values that are not finite, shares outside [0, 1], or a level
            outside (0, 1).
    """
    x = arguments.values("bootstrap_ci(values)", values)
    arguments.flag("bootstrap_ci(shares)", shares)
    names = np.asarray(clusters)
    _check_level(level)
    if x.ndim == 0 or len(x) == 0 or names.ndim != 1 or len(names) != len(x):
        raise EmotraceError(f"bootstrap_ci: {x.shape} values and {names.shape} clusters; they need one cluster a row.")
    if not np.isfinite(x).all():
        raise EmotraceError(f"bootstrap_ci: {int((~np.isfinite(x)).sum())} values are not finite.")
    if shares and (x.min() < 0 or x.max() > 1):
        raise EmotraceError(f"bootstrap_ci(shares=True): values from {x.min():g} to {x.max():g}; shares lie in 0 … 1.")
    if any(name is None or name != name for name in names.tolist()):
        raise EmotraceError("bootstrap_ci: a row has no cluster (None or NaN).")
    _, code = np.unique(names, return_inverse=True)
    n_clusters = int(code.max()) + 1
    flat = x.reshape(len(x), -1)
    sums = np.zeros((n_clusters, flat.shape[1]))
    np.add.at(sums, code, flat)
    weights = cluster_weights(n_clusters, n, seed)
    means = (weights @ sums) / (weights @ np.bincount(code, minlength=n_clusters))[:, None]
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if shares:
        same = hi - lo < TIED
        lo[same], hi[same] = _wilson(flat[:, same].mean(0), n_clusters, level)
    if x.ndim == 1:
        return float(lo[0]), float(hi[0])
    return lo.reshape(x.shape[1:]), hi.reshape(x.shape[1:])


@typed
def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: never of zero width, never outside [0, 1].

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), p = successes / n. ``successes`` may be fractional.

    Args:
        successes: hits.
        n: of so many.
        level: coverage.

    Raises:
        EmotraceError: unless 0 <= successes <= n and n > 0.
    """
    _check_level(level)
    successes, n = arguments.number("wilson(successes)", successes), arguments.number("wilson(n)", n)
    if not (n > 0 and -1e-9 <= successes <= n + 1e-9):
        raise EmotraceError(f"wilson({successes}, {n}): needs 0 <= successes <= n and n > 0.")
    lo, hi = _wilson(np.array(successes / n), n, level)
    return float(lo), float(hi)


@typed
def refit_ci(
    values: ArrayLike,
    clusters: ArrayLike,
    refits: ArrayLike,
    level: float = 0.95,
    *,
    least: float = 0.0,
    most: float = 1.0,
) -> tuple[float, float]:
    """Interval of a mean that was measured with one fit: over clusters measured on, and over what fitting anew would change.

    x̄ ± t_ν √(s²_c + s²_f), with s²_c = C/(C−1) · Σ_c (S_c − x̄ N_c)² / N² over the C clusters, s²_f the variance of the R means
    of refits (R − 1 below), and ν of Welch and Satterthwaite: (s²_c + s²_f)² / (s⁴_c/(C−1) + s⁴_f/(R−1)). Cut to what is
    possible. Where neither differs, Wilson's bounds over clusters stand in their place, on the scale of ``least`` to ``most``.

    Args:
        values: ``[rows]`` of the fit that is used.
        clusters: ``[rows]``.
        refits: ``[R]`` means of fits to other draws of what is fitted on, each measured on the same rows.
        level: coverage.
        least: smallest value that there can be.
        most: largest.

    Raises:
        EmotraceError: for fewer than two clusters or refits, or values that are not finite.
    """
    x, others = (arguments.values(f"refit_ci({name})", v) for name, v in (("values", values), ("refits", refits)))
    names, code = np.unique(np.asarray(clusters), return_inverse=True)
    _check_level(level)
    if x.ndim != 1 or len(code) != len(x) or len(names) < 2 or others.ndim != 1 or len(others) < 2:
        raise EmotraceError(
            f"refit_ci: {x.shape} values in {len(names)} clusters and {others.shape} refits; two of each are due, one a row."
        )
    if not (np.isfinite(x).all() and np.isfinite(others).all()):
        raise EmotraceError("refit_ci: values and refits must be finite.")
    mean = float(x.mean())
    within = np.bincount(code, weights=x) - mean * np.bincount(code)
    of_clusters = len(names) / (len(names) - 1) * float((within**2).sum()) / len(x) ** 2
    of_fits = float(others.var(ddof=1))
    spread = of_clusters + of_fits
    if spread < TIED:
        lo, hi = _wilson(np.array((mean - least) / (most - least)), len(names), level)
        return float(least + lo * (most - least)), float(least + hi * (most - least))
    degrees = spread**2 / (of_clusters**2 / (len(names) - 1) + of_fits**2 / (len(others) - 1))
    half = float(scipy.stats.t.ppf((1 + level) / 2, degrees)) * spread**0.5
    return max(least, mean - half), min(most, mean + half)


def _wilson(share: np.ndarray, n: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    z, p = float(scipy.stats.norm.ppf((1 + level) / 2)), np.clip(share, 0, 1)
    middle = p + z * z / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    lo, hi = (np.clip((middle + side * half) / (1 + z * z / n), 0, 1) for side in (-1, 1))
    return np.where(p == 0, 0.0, lo), np.where(p == 1, 1.0, hi)


def _check_level(level: float) -> None:
    if not 0 < arguments.number("level", level) < 1:
        raise EmotraceError(f"level={level!r}: the coverage of an interval lies in (0, 1), e.g. 0.95.")
