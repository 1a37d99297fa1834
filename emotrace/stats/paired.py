"""Paired: is one method better than another on the same prompts? Whole skeletons are flipped, never single rows."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.stats.accuracy import match_of
from emotrace.stats.fluency import is_fluent
from emotrace.stats.intervals import bootstrap_ci, wilson
from emotrace.stats.ties import TIED

EXACT: Final = 16
"""Up to so many clusters that differ, all sign patterns are tried instead of random ones."""
_ROUNDING: Final = 1e-9
"""Share of Σ |S_c| by which a sum may fall short of the observed one and be as extreme."""
_PATTERNS: Final = 4096


def paired_test(
    a: Iterable[Mapping[str, Any]],
    b: Iterable[Mapping[str, Any]],
    cluster: str = "skeleton_id",
    *,
    verdict: str = "verdict",
    bounds: Mapping[str, Sequence[float]] | None = None,
    permutations: int = 10_000,
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of a minus accuracy of b on the keys judged in both, with interval and p over skeletons.

    d_k = match_a(k) − match_b(k), several draws of a key being averaged first; value = mean d, positive: a is better.
    p, two-sided, is that of `sign_flip` on the sums of d over skeletons: under the null hypothesis the two methods
    are exchangeable within a skeleton. The interval is `bootstrap_ci` of d; where all d are the same −1, 0 or 1 that has no
    width, and the Wilson bounds of a rate with n = number of skeletons stand instead.

    Args:
        a: judged rows with ``key``, the cluster label and a verdict ``{match}``; None is unjudged and left out.
        b: rows of the other method.
        cluster: label that is exchanged and drawn as a whole.
        verdict: ``verdict`` (blind), ``verdict_target`` or ``judge``.
        bounds: of `fluency_bounds`; a match then counts only if the reply is fluent.
        permutations: random sign patterns where there are too many clusters for all.
        n: bootstrap draws.
        seed: of both.

    Returns:
        ``{value, n, n_clusters, n_unpaired, ci95: [lo, hi], p, exact, p_floor}``; n_unpaired = keys without a judged partner;
        p_floor: a p that random patterns cannot go below (p = p_floor says p ≤ p_floor), 0 where it is exact.

    Raises:
        EmotraceError: if no key is judged in both, a key changes its cluster, or a row lacks a label.
    """
    arguments.resampling("paired_test", seed, permutations=permutations, n=n)
    mean_a, where_a, all_a = _matches(a, verdict, cluster, bounds)
    mean_b, where_b, all_b = _matches(b, verdict, cluster, bounds)
    keys = [k for k in mean_a if k in mean_b]
    if not keys:
        raise EmotraceError(f"paired_test: none of {len(all_a)} and {len(all_b)} keys is judged in both.")
    moved = [k for k in keys if where_a[k] != where_b[k]]
    if moved:
        raise EmotraceError(f"paired_test: key {moved[0]!r} has another {cluster} in a than in b.")
    d = np.array([mean_a[k] - mean_b[k] for k in keys])
    names, code = np.unique(np.array([where_a[k] for k in keys]), return_inverse=True)
    p, exact = sign_flip(np.bincount(code, weights=d), permutations=permutations, seed=seed)
    return {
        "value": float(d.mean()),
        "n": len(keys),
        "n_clusters": len(names),
        "n_unpaired": len(all_a | all_b) - len(keys),
        "ci95": list(_interval(d, code, len(names), n, seed)),
        "p": p,
        "exact": exact,
        "p_floor": 0.0 if exact else 1 / (1 + permutations),
    }


def sign_flip(sums: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of Σ_c S_c against Σ_c ±S_c, all signs being equally likely.

    Clusters with S_c = 0 change nothing and are left out. With at most `EXACT` others every pattern is tried: p = share of
    the 2^C patterns, the observed one among them, whose |sum| is at least the observed. With more, random patterns are
    drawn and p = (1 + extreme) / (1 + permutations), which is never 0.

    Args:
        sums: ``[cluster]`` sums of differences.
        permutations: random patterns, where not all are tried.
        seed: of the patterns.

    Returns:
        (p, whether it is exact).

    Raises:
        EmotraceError: for no clusters, or sums that are not finite.
    """
    arguments.resampling("sign_flip", seed, permutations=permutations)
    s = arguments.values("sign_flip(sums)", sums)
    if s.ndim != 1 or s.size == 0 or not np.isfinite(s).all():
        raise EmotraceError(f"sign_flip takes one finite sum per cluster, not an array of shape {s.shape}.")
    if permutations < 1:
        raise EmotraceError(f"sign_flip(permutations={permutations}): at least 1.")
    total_size = float(np.abs(s).sum())
    observed = abs(float(s.sum())) - _ROUNDING * total_size
    moving = s[np.abs(s) > TIED * total_size]
    if moving.size <= EXACT:  # a pattern and its opposite are equally extreme, so the first sign stays
        patterns = itertools.product((1.0, -1.0), repeat=max(moving.size - 1, 0))
        first, others = moving[:1].sum(), moving[1:]
        extreme = total = 0
        while block := list(itertools.islice(patterns, _PATTERNS)):
            flipped = first + np.array(block).reshape(len(block), -1) @ others
            extreme += int((np.abs(flipped) >= observed).sum())
            total += len(block)
        return extreme / total, True
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, permutations, _PATTERNS):
        signs = rng.integers(0, 2, size=(min(_PATTERNS, permutations - start), moving.size)) * 2.0 - 1.0
        extreme += int((np.abs(signs @ moving) >= observed).sum())
    return (1 + extreme) / (1 + permutations), False


def _interval(d: np.ndarray, code: np.ndarray, clusters: int, n: int, seed: int) -> tuple[float, float]:
    if d[0] in (-1.0, 0.0, 1.0) and (d == d[0]).all():
        miss = 1.0 - wilson(clusters, clusters)[0]  # the largest rate of exceptions that no exception leaves possible
        return max(float(d[0]) - miss, -1.0), min(float(d[0]) + miss, 1.0)
    lo, hi = bootstrap_ci((d + 1) / 2, code, n=n, seed=seed, shares=True)  # of a difference of −1 … 1
    return 2 * lo - 1, 2 * hi - 1


def _matches(
    rows: Iterable[Mapping[str, Any]], verdict: str, cluster: str, bounds: Mapping[str, Sequence[float]] | None
) -> tuple[dict[str, float], dict[str, str], set[str]]:
    """Mean match of each judged key over its draws, the cluster of each key, and all keys."""
    found: dict[str, list[int]] = defaultdict(list)
    where: dict[str, str] = {}
    for row in rows:
        for name in ("key", cluster):
            if row.get(name) is None:
                raise EmotraceError(f"row {row.get('key')!r} has no {name!r}; it has {', '.join(map(str, row))}.")
        where[row["key"]] = str(row[cluster])
        match = match_of(row, verdict)
        if match is not None:
            found[row["key"]].append(match if bounds is None else match and int(is_fluent(row, bounds)))
    return {k: sum(v) / len(v) for k, v in found.items()}, where, set(where)
