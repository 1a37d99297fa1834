"""Accuracy: judged replies → the leaves of ``report.json``, confusion, and the difference of two methods on the same prompts.

``match`` None (or no verdict) means *unjudged*: left out of the value, counted as a miss in the worst case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NotRequired, TypedDict

import numpy as np
import pandas as pd

from emotrace import arguments
from emotrace.labels import ANSWERS, EMOTIONS, NEUTRAL, VALENCES, EmotraceError, emotion
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import Bounds, by_key, mean_of, table
from emotrace.signatures import typed
from emotrace.stats.intervals import bootstrap_ci, wilson
from emotrace.stats.permutation import sign_flip

GROUPS: Final = {"by_emotion": ("emotion", EMOTIONS), "by_valence": ("valence", VALENCES)}
"""Part of an accuracy table → its label, and the order of its values."""


class Share(TypedDict):
    """A share of replies.

    Attributes:
        value: matches / n, 0..1; None where n = 0.
        n: judged replies.
        n_unjudged: the others.
        ci95: [lo, hi], [None, None] where n = 0.
        worst_case: matches / (n + n_unjudged).
        mean: of several draws, over them; ``value`` is then one draw's.
        draws: value of each of several draws.
    """

    value: float | None
    n: int
    n_unjudged: int
    ci95: list[float] | list[None]
    worst_case: float
    mean: NotRequired[float | None]
    draws: NotRequired[list[float | None]]


class Accuracy(TypedDict):
    """Shares of matches: of all replies, by emotion and by valence."""

    overall: Share
    by_emotion: dict[str, Share]
    by_valence: dict[str, Share]


class Difference(TypedDict):
    """What `paired_test` found.

    Attributes:
        value: mean difference; positive: a is better.
        n: keys judged in both.
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


@typed
def accuracy_table(
    rows: Iterable[Row],
    verdict: str = "verdict",
    *,
    bounds: Bounds | None = None,
    fluent: bool = False,
    cluster: str = "skeleton_id",
    n: int = 2000,
    seed: int = 0,
) -> Accuracy:
    """Accuracy overall, by emotion and by valence, each ``{value, n, n_unjudged, ci95: [lo, hi], worst_case}``.

    value = matches / n over the n judged rows, in 0..1 (None where n = 0, with ci95 ``[None, None]``);
    worst_case = matches / (n + n_unjudged). The interval is `bootstrap_ci` over clusters.

    Args:
        rows: judged rows of one method.
        verdict: ``verdict`` (blind), ``verdict_target`` or ``judge`` (published rows).
        bounds: of `fluency_bounds`; a reply then counts as a match only if it is fluent too (``accuracy_fluent``).
        fluent: the same by ``meta.fluent``, of `mark_fluent`.
        cluster: what the bootstrap draws.
        n: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        EmotraceError: for no rows, a row without its labels, or a match that is not 0, 1 or None.
    """
    arguments.resampling("accuracy_table", seed, n=n)
    column = "fluent_match" if fluent or bounds is not None else "match"
    lines = table(rows, (column, "emotion", "valence"), cluster=cluster, verdict=verdict, bounds=bounds)
    if lines.empty:
        raise EmotraceError("accuracy_table: no rows.")

    def leaf(part: pd.DataFrame) -> Share:
        found = mean_of(part, column, n, seed, shares=True)
        known = found.n > 0
        return {
            "value": found.value if known else None,
            "n": found.n,
            "n_unjudged": found.n_missing,
            "ci95": [found.lo, found.hi] if known else [None, None],
            "worst_case": float(np.nansum(part[column])) / len(part),
        }

    def by(part: str) -> dict[str, Share]:
        name, vocabulary = GROUPS[part]
        return {value: leaf(lines.loc[lines[name] == value]) for value in _ordered(lines[name], vocabulary)}

    return {"overall": leaf(lines), "by_emotion": by("by_emotion"), "by_valence": by("by_valence")}


@typed
def confusion_table(rows: Iterable[Row], verdict: str = "verdict") -> pd.DataFrame:
    """Counts: asked emotion × answer of the blind judge, with the columns ``neutral`` and ``unjudged`` last.

    The other columns are the six emotions, or where rows or judge name others, the names that occur.

    Raises:
        EmotraceError: for an answer that no blind judge may give.
    """
    rows = list(rows)
    asked = [label_of(row, "emotion") for row in rows]
    said = [(row.get(verdict) or {}).get("predicted") for row in rows]
    said = [
        a if a is None else emotion(a, ANSWERS, f"{verdict}.predicted of {row.get('key')!r}", own=True)
        for a, row in zip(said, rows, strict=True)
    ]
    counts = pd.DataFrame(
        0,
        index=pd.Index(_ordered(asked, EMOTIONS), name="emotion"),
        columns=pd.Index([*answers_among(asked, said), "unjudged"], name="answer"),
    )
    for name, answer in zip(asked, said, strict=True):
        counts.loc[name, "unjudged" if answer is None else answer] += 1
    return counts


def answers_among(asked: Iterable[Any], said: Iterable[Any]) -> list[str]:
    """Columns for the answers of a judge: the seven, or where other names occur, those asked and given (``neutral`` last)."""
    found = {str(emotion(str(a), ANSWERS, own=True)) for a in (*asked, *said) if a is not None}
    if found <= set(ANSWERS):
        return list(ANSWERS)
    return [*_ordered(found - {NEUTRAL}, EMOTIONS), NEUTRAL]


@typed
def paired_test(
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
        A `Difference`.

    Raises:
        EmotraceError: if no key is judged in both, a key changes its cluster, or a row lacks a label.
    """
    arguments.resampling("paired_test", seed, permutations=permutations, n=n)
    column = "match" if bounds is None else "fluent_match"
    both = [table(rows, ("key", column), cluster=cluster, verdict=verdict, bounds=bounds) for rows in (a, b)]
    mine, theirs = (by_key(lines, column) for lines in both)
    every = [set(lines["key"]) for lines in both]
    keys = [k for k in mine if k in theirs]
    if not keys:
        raise EmotraceError(f"paired_test: none of {len(every[0])} and {len(every[1])} keys is judged in both.")
    moved = [k for k in keys if mine[k][1] != theirs[k][1]]
    if moved:
        raise EmotraceError(f"paired_test: key {moved[0]!r} has another {cluster} in a than in b.")
    d = np.array([mine[k][0] - theirs[k][0] for k in keys])
    names, code = np.unique(np.array([mine[k][1] for k in keys]), return_inverse=True)
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


def _interval(d: np.ndarray, code: np.ndarray, clusters: int, n: int, seed: int) -> tuple[float, float]:
    if d[0] in (-1.0, 0.0, 1.0) and (d == d[0]).all():
        miss = 1.0 - wilson(clusters, clusters)[0]  # the largest rate of exceptions that no exception leaves possible
        return max(float(d[0]) - miss, -1.0), min(float(d[0]) + miss, 1.0)
    lo, hi = bootstrap_ci((d + 1) / 2, code, n=n, seed=seed, shares=True)  # of a difference of −1 … 1
    return 2 * lo - 1, 2 * hi - 1


def _ordered(values: Iterable[Any], vocabulary: Sequence[str]) -> list[Any]:
    found = set(values)
    return [v for v in vocabulary if v in found] + sorted(found - set(vocabulary), key=str)
