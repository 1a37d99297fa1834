"""Accuracy: judged rows → the leaves of ``report.json``, and confusion.

A row is a mapping with ``key``, ``skeleton_id``, ``emotion``, ``valence`` and a verdict ``{predicted, match, …}``;
``match`` None (or no verdict) means *unjudged*: left out of the value, counted as a miss in the worst case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emotrace import arguments
from emotrace.labels import ANSWERS, EMOTIONS, NEUTRAL, VALENCES, EmotraceError, emotion, unknown
from emotrace.stats.fluency import is_fluent
from emotrace.stats.intervals import bootstrap_ci

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
    arguments.resampling("accuracy_table", seed, n=n)
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
        lo, hi = bootstrap_ci(hit[judged], clusters[judged], n=n, seed=seed, shares=True) if total else (None, None)
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


def confusion(rows: Iterable[Row], verdict: str = "verdict") -> pd.DataFrame:
    """Counts: asked emotion × answer of the blind judge, with the columns ``neutral`` and ``unjudged`` last.

    The other columns are the six emotions, or where rows or judge name others, the names that occur.

    Raises:
        EmotraceError: for an answer that no blind judge may give.
    """
    rows = list(rows)
    asked = [_label(row, "emotion") for row in rows]
    said = [(row.get(verdict) or {}).get("predicted") for row in rows]
    said = [
        a if a is None else emotion(a, ANSWERS, f"{verdict}.predicted of {row.get('key')!r}", own=True)
        for a, row in zip(said, rows, strict=True)
    ]
    table = pd.DataFrame(
        0,
        index=pd.Index(_ordered(asked, EMOTIONS), name="emotion"),
        columns=pd.Index([*answers_among(asked, said), "unjudged"], name="answer"),
    )
    for emotion_, answer in zip(asked, said, strict=True):
        table.loc[emotion_, "unjudged" if answer is None else answer] += 1
    return table


def answers_among(asked: Iterable[Any], said: Iterable[Any]) -> list[str]:
    """Columns for the answers of a judge: the seven, or where other names occur, those asked and given (``neutral`` last)."""
    found = {str(emotion(str(a), ANSWERS, own=True)) for a in (*asked, *said) if a is not None}
    if found <= set(ANSWERS):
        return list(ANSWERS)
    return [*_ordered(found - {NEUTRAL}, EMOTIONS), NEUTRAL]


def match_of(row: Row, verdict: str = "verdict") -> int | None:
    """1, 0, or None for unjudged."""
    match = (row.get(verdict) or {}).get("match")
    if match is None:
        return None
    if match not in (0, 1):
        raise unknown(f"{verdict}.match", match, (0, 1, None), f"row {row.get('key')!r}")
    return int(match)


def _label(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise EmotraceError(f"row {row.get('key')!r} has no {name!r}; it has {', '.join(map(str, row))}.")
    return row[name]


def _ordered(values: Iterable[Any], vocabulary: Sequence[str]) -> list[Any]:
    found = set(values)
    return [v for v in vocabulary if v in found] + sorted(found - set(vocabulary), key=str)
