"""Accuracy: judged rows → the leaves of ``report.json``, paired differences, confusion.

A row is a mapping with ``key``, ``skeleton_id``, ``emotion``, ``valence`` and a verdict ``{predicted, match, …}``;
``match`` None (or no verdict) means *unjudged*: left out of the value, counted as a miss in the worst case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emotrace.labels import ANSWERS, EMOTIONS, VALENCES, EmotraceError, emotion, unknown
from emotrace.stats.fluency import is_fluent
from emotrace.stats.intervals import bootstrap_ci, wilson

Row = Mapping[str, Any]


def accuracy_table(
    rows: Iterable[Row],
    verdict: str = "verdict",
    *,
    bounds: Mapping[str, Sequence[float]] | None = None,
    cluster: str = "skeleton_id",
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy overall, by emotion and by valence, each ``{value, n, n_unjudged, ci95: [lo, hi], worst_case}``.

    value = matches / n over the n judged rows, in 0..1 (None where n = 0, with ci95 ``[None, None]``);
    worst_case = matches / (n + n_unjudged). The interval is `bootstrap_ci` over clusters.

    Args:
        rows: judged rows of one method.
        verdict: ``verdict`` (blind), ``verdict_target`` or ``judge`` (published rows).
        bounds: of `fluency_bounds`; a reply then counts as a match only if it is fluent too (``accuracy_fluent``).
        cluster: what the bootstrap draws.
        n: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        EmotraceError: for no rows, a row without its labels, or a match that is not 0, 1 or None.
    """
    rows = list(rows)
    if not rows:
        raise EmotraceError("accuracy_table: no rows.")
    matches = [match_of(row, verdict) for row in rows]
    if bounds is not None:
        matches = [m and int(is_fluent(row, bounds)) for m, row in zip(matches, rows, strict=True)]
    hit = np.array([np.nan if m is None else m for m in matches], dtype=np.float64)
    emotions, valences = ([_label(row, name) for row in rows] for name in ("emotion", "valence"))
    clusters = np.array([str(_label(row, cluster)) for row in rows])

    def leaf(mine: np.ndarray) -> dict[str, Any]:
        judged = mine & np.isfinite(hit)
        hits, total = int(hit[judged].sum()), int(judged.sum())
        lo, hi = bootstrap_ci(hit[judged], clusters[judged], n=n, seed=seed) if total else (None, None)
        return {
            "value": hits / total if total else None,
            "n": total,
            "n_unjudged": int(mine.sum()) - total,
            "ci95": [lo, hi],
            "worst_case": hits / int(mine.sum()),
        }

    def by(labels: list[Any], vocabulary: Sequence[str]) -> dict[str, Any]:
        return {value: leaf(np.array([v == value for v in labels])) for value in _ordered(labels, vocabulary)}

    return {
        "overall": leaf(np.ones(len(rows), dtype=bool)),
        "by_emotion": by(emotions, EMOTIONS),
        "by_valence": by(valences, VALENCES),
    }


def paired_difference(
    rows_a: Iterable[Row],
    rows_b: Iterable[Row],
    cluster: str = "skeleton_id",
    *,
    verdict: str = "verdict",
    bounds: Mapping[str, Sequence[float]] | None = None,
    n: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of a minus accuracy of b on the same keys, with a cluster interval and a sign-flip p.

    d_k = match_a(k) − match_b(k) over the keys judged in both (several draws of a key are averaged first); value =
    mean d. p, two-sided: the share of ``permutations`` random sign patterns over clusters, the observed one included,
    whose |Σ_c ± Σ_{k∈c} d_k| is at least the observed. Where all d are the same −1, 0 or 1 the bootstrap has no width, and the
    Wilson bounds of a rate with n = number of clusters stand instead. Positive: a is better.

    Returns:
        ``{value, n, n_clusters, n_unpaired, ci95: [lo, hi], p}``; n_unpaired = keys without a judged partner.

    Raises:
        EmotraceError: if no key is judged in both.
    """
    a, where_a = _by_key(rows_a, verdict, cluster, bounds)
    b, where_b = _by_key(rows_b, verdict, cluster, bounds)
    keys = [k for k in a if k in b and a[k] is not None and b[k] is not None]
    if not keys:
        raise EmotraceError(f"paired_difference: none of {len(a)} and {len(b)} keys is judged in both.")
    moved = [k for k in keys if where_a[k] != where_b[k]]
    if moved:
        raise EmotraceError(f"paired_difference: key {moved[0]!r} has another {cluster} in a than in b.")
    d = np.array([_mean(a[k]) - _mean(b[k]) for k in keys])
    names, code = np.unique(np.array([str(where_a[k]) for k in keys]), return_inverse=True)
    lo, hi = (2 * bound - 1 for bound in bootstrap_ci((d + 1) / 2, code, n=n, seed=seed))
    if d[0] in (-1.0, 0.0, 1.0) and (d == d[0]).all():
        c = len(names)
        lo = -wilson(0, c)[1] if d[0] == 0 else (wilson(c, c)[0] if d[0] > 0 else -1.0)
        hi = wilson(0, c)[1] if d[0] == 0 else (1.0 if d[0] > 0 else -wilson(c, c)[0])
    sums = np.bincount(code, weights=d, minlength=len(names))
    signs = np.random.default_rng(seed).integers(0, 2, size=(permutations, len(names))) * 2.0 - 1.0
    extreme = int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum())
    return {
        "value": float(d.mean()),
        "n": len(keys),
        "n_clusters": len(names),
        "n_unpaired": len(set(a) | set(b)) - len(keys),
        "ci95": [lo, hi],
        "p": (1 + extreme) / (1 + permutations),
    }


def confusion(rows: Iterable[Row], verdict: str = "verdict") -> pd.DataFrame:
    """Counts: asked emotion × answer of the blind judge, with the columns ``neutral`` and ``unjudged`` last.

    Raises:
        EmotraceError: for an answer that no blind judge may give.
    """
    rows = list(rows)
    asked = _ordered([_label(row, "emotion") for row in rows], EMOTIONS)
    columns = [*ANSWERS, "unjudged"]
    table = pd.DataFrame(0, index=pd.Index(asked, name="emotion"), columns=pd.Index(columns, name="answer"))
    for row in rows:
        said = (row.get(verdict) or {}).get("predicted")
        answer = "unjudged" if said is None else emotion(said, ANSWERS, f"{verdict}.predicted of {row.get('key')!r}")
        table.loc[_label(row, "emotion"), answer] += 1
    return table


def match_of(row: Row, verdict: str = "verdict") -> int | None:
    """1, 0, or None for unjudged."""
    match = (row.get(verdict) or {}).get("match")
    if match is None:
        return None
    if match not in (0, 1):
        raise unknown(f"{verdict}.match", match, (0, 1, None), f"row {row.get('key')!r}")
    return int(match)


def _by_key(
    rows: Iterable[Row], verdict: str, cluster: str, bounds: Mapping[str, Sequence[float]] | None
) -> tuple[dict[str, list[int] | None], dict[str, Any]]:
    """Matches of each key over its draws (None where none is judged), and the cluster of each key."""
    matches: dict[str, list[int] | None] = {}
    where: dict[str, Any] = {}
    for row in rows:
        key = _label(row, "key")
        where[key] = _label(row, cluster)
        match = match_of(row, verdict)
        if match is None:
            matches.setdefault(key, None)
            continue
        if bounds is not None:
            match = match and int(is_fluent(row, bounds))
        matches[key] = [*(matches.get(key) or []), match]
    return matches, where


def _mean(values: list[int] | None) -> float:
    return sum(values) / len(values) if values else 0.0


def _label(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise EmotraceError(f"row {row.get('key')!r} has no {name!r}; it has {', '.join(map(str, row))}.")
    return row[name]


def _ordered(values: Iterable[Any], vocabulary: Sequence[str]) -> list[Any]:
    found = set(values)
    return [v for v in vocabulary if v in found] + sorted(found - set(vocabulary), key=str)
