"""Paired: the difference between two methods on the same prompts, with its interval and its test over skeletons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.replies.row import Row
from emotrace.replies.table import Bounds, by_key, fluent_rows, table
from emotrace.signatures import typed
from emotrace.stats.intervals import bootstrap_ci, cluster_weights, wilson
from emotrace.stats.permutation import exchange, sign_flip


class Difference(TypedDict):
    """What `paired_test` or `fluent_test` found.

    Attributes:
        value: mean difference; positive: a is better.
        n: keys judged in both; of `fluent_test` the fluent replies of both.
        n_clusters: of these keys.
        n_unpaired: keys without a judged partner.
        ci95: [lo, hi].
        p: two-sided.
        exact: whether every sign pattern was tried.
        p_floor: a p that random patterns cannot go below (p = p_floor says p ≤ p_floor), 0 where it is exact.
    """

    value: float
    n: int
    n_clusters: int
    n_unpaired: int
    ci95: list[float]
    p: float
    exact: bool
    p_floor: float


class Test(TypedDict):
    """What a comparison of a with b says of its test.

    Attributes:
        difference: mean of a − b.
        ci95: [lo, hi].
        p: two-sided.
        p_floor: below which p cannot come.
        n: keys (given fluency: replies).
        n_skeletons: clusters.
    """

    difference: float
    ci95: list[float]
    p: float
    p_floor: float
    n: int
    n_skeletons: int


@typed
def paired_test(
    a: Iterable[Row],
    b: Iterable[Row],
    cluster: str = "skeleton_id",
    *,
    verdict: str = "verdict",
    bounds: Bounds | None = None,
    fluent: bool = False,
    permutations: int = 10_000,
    n: int = 2000,
    seed: int = 0,
) -> Difference:
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
        fluent: the same by ``meta.fluent``, of `mark_fluent`.
        permutations: random sign patterns where there are too many clusters for all.
        n: bootstrap draws.
        seed: of both.

    Returns:
        A `Difference`.

    Raises:
        EmotraceError: if no key is judged in both, a key changes its cluster, or a row lacks a label.
    """
    arguments.resampling("paired_test", seed, permutations=permutations, n=n)
    column = "fluent_match" if fluent or bounds is not None else "match"
    both = [table(rows, ("key", column), cluster=cluster, verdict=verdict, bounds=bounds) for rows in (a, b)]
    mine, theirs = (by_key(lines, column) for lines in both)
    every = [set(lines["key"]) for lines in both]
    keys = [k for k in mine if k in theirs]
    if not keys:
        raise EmotraceError(f"paired_test: none of {len(every[0])} and {len(every[1])} keys is judged in both.")
    moved = [k for k in keys if mine[k].cluster != theirs[k].cluster]
    if moved:
        raise EmotraceError(f"paired_test: key {moved[0]!r} has another {cluster} in a than in b.")
    d = np.array([mine[k].value - theirs[k].value for k in keys])
    names, code = np.unique(np.array([mine[k].cluster for k in keys]), return_inverse=True)
    p, exact = sign_flip(np.bincount(code, weights=d), permutations=permutations, seed=seed)
    return {
        "value": float(d.mean()),
        "n": len(keys),
        "n_clusters": len(names),
        "n_unpaired": len(every[0] | every[1]) - len(keys),
        "ci95": list(_interval(d, code, len(names), n, seed)),
        "p": p,
        "exact": exact,
        "p_floor": 0.0 if exact else 1 / (1 + permutations),
    }


@typed
def fluent_test(
    a: Iterable[Row],
    b: Iterable[Row],
    cluster: str = "skeleton_id",
    *,
    verdict: str = "verdict",
    bounds: Bounds | None = None,
    permutations: int = 10_000,
    n: int = 2000,
    seed: int = 0,
) -> Difference:
    """Share of matches among the fluent replies of a, minus that among those of b, whichever prompts they reply to.

    Where edits cost fluency, few prompts have a fluent reply in both, so shares are compared, not pairs. p is that of
    `emotrace.stats.exchange`: under the null hypothesis the two methods are exchangeable within a skeleton. The interval is a
    bootstrap of the difference over skeletons.

    Args:
        a: judged rows with the cluster label, a verdict, and what says whether they are fluent.
        b: rows of the other method; of several draws all count.
        cluster: label that is exchanged and drawn as a whole.
        verdict: ``verdict`` (blind), ``verdict_target`` or ``judge``.
        bounds: of `fluency_bounds`; None takes ``meta.fluent``.
        permutations: random patterns where there are too many clusters for all.
        n: bootstrap draws.
        seed: of both.

    Raises:
        EmotraceError: where a method has no fluent reply that was judged, or a row lacks a label.
    """
    arguments.resampling("fluent_test", seed, permutations=permutations, n=n)
    both = [table(fluent_rows(rows, bounds), ("match",), cluster=cluster, verdict=verdict) for rows in (a, b)]
    both = [lines.loc[np.isfinite(lines["match"].astype(float))] for lines in both]
    if any(lines.empty for lines in both):
        raise EmotraceError(
            f"fluent_test: {' and '.join(str(len(x)) for x in both)} fluent replies were judged; both need some."
        )
    names = sorted({*both[0]["cluster"], *both[1]["cluster"]})
    at = {name: i for i, name in enumerate(names)}
    code = [[at[c] for c in lines["cluster"]] for lines in both]
    weights = [np.asarray(lines["match"], dtype=np.float64) for lines in both]
    hits = np.array([np.bincount(c, w, len(names)) for c, w in zip(code, weights, strict=True)])
    counts = np.array([np.bincount(c, minlength=len(names)) for c in code], dtype=np.float64)
    p, exact = exchange(hits, counts, permutations=permutations, seed=seed)
    drawn = cluster_weights(len(names), n, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (drawn @ hits.T) / (drawn @ counts.T)
    lo, hi = np.nanquantile(shares[:, 0] - shares[:, 1], [0.025, 0.975])
    return {
        "value": float(np.subtract(*(hits.sum(1) / counts.sum(1)))),
        "n": int(counts.sum()),
        "n_clusters": len(names),
        "n_unpaired": 0,
        "ci95": [float(lo), float(hi)],
        "p": p,
        "exact": exact,
        "p_floor": 0.0 if exact else 1 / (1 + permutations),
    }


def _interval(d: np.ndarray, code: np.ndarray, clusters: int, n: int, seed: int) -> tuple[float, float]:
    if d[0] in (-1.0, 0.0, 1.0) and (d == d[0]).all():
        miss = 1.0 - wilson(clusters, clusters)[0]  # the largest rate of exceptions that no exception leaves possible
        return max(float(d[0]) - miss, -1.0), min(float(d[0]) + miss, 1.0)
    lo, hi = bootstrap_ci((d + 1) / 2, code, n=n, seed=seed, shares=True)  # of a difference of −1 … 1
    return 2 * lo - 1, 2 * hi - 1
