"""Accuracy: judged replies → the leaves of ``report.json``, and what was asked against what was read.

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
from emotrace.replies.table import Bounds, fluent_rows, mean_of, table
from emotrace.signatures import typed
from emotrace.stats.ties import TIED

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


@typed
def accuracy_table(
    rows: Iterable[Row],
    verdict: str = "verdict",
    *,
    bounds: Bounds | None = None,
    fluent: bool = False,
    given_fluent: bool = False,
    cluster: str = "skeleton_id",
    n: int = 2000,
    seed: int = 0,
) -> Accuracy:
    """Accuracy overall, by emotion and (where there is one) valence, each ``{value, n, n_unjudged, ci95: [lo, hi], worst_case}``.

    value = matches / n over the n judged rows, in 0..1 (None where n = 0, with ci95 ``[None, None]``);
    worst_case = matches / (n + n_unjudged). The interval is `bootstrap_ci` over clusters. Where each text stands for several
    emotions, of which it matches as many as every other text does (the un-edited model's replies, each of one emotion, count for
    all six), the share is fixed by the design, and its interval has no width.

    Args:
        rows: judged rows of one method.
        verdict: ``verdict`` (blind), ``verdict_target`` or ``judge`` (published rows).
        bounds: of `fluency_bounds`; a reply then counts as a match only if it is fluent too (``accuracy_fluent``).
        fluent: the same by ``meta.fluent``, of `mark_fluent`.
        given_fluent: only fluent replies are counted at all, n of them (``accuracy_given_fluent``).
        cluster: what the bootstrap draws.
        n: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        EmotraceError: for no rows, two of one name, a row without its labels, or a match that is not 0, 1 or None.
    """
    arguments.resampling("accuracy_table", seed, n=n)
    column = "match" if given_fluent else "fluent_match" if fluent or bounds is not None else "match"
    rows = list(rows)
    if not rows:
        raise EmotraceError("accuracy_table: no rows.")
    named = [(label_of(row, "key"), row.get("method", "none"), row.get("draw", 0)) for row in rows]
    if len(set(named)) < len(named):
        key, method, draw = next(name for i, name in enumerate(named) if name in named[:i])
        raise EmotraceError(f"accuracy_table: two rows have key {key!r}, method {method!r} and draw {draw}.")
    labels = ("emotion", "valence") if any("valence" in row for row in rows) else ("emotion",)
    every = table(rows, labels)
    counted = fluent_rows(rows, bounds) if given_fluent else rows
    lines = table(counted, (column, *labels), cluster=cluster, verdict=verdict, bounds=bounds)
    lines["text"] = [(c, row.get("gen_text", row["key"])) for c, row in zip(lines["cluster"], counted, strict=True)]

    def leaf(part: pd.DataFrame) -> Share:
        found = mean_of(part, column, n, seed, shares=not _fixed(part, column))
        known = found.n > 0
        return {
            "value": found.value if known else None,
            "n": found.n,
            "n_unjudged": found.n_missing,
            "ci95": [found.lo, found.hi] if known else [None, None],
            "worst_case": float(np.nansum(part[column])) / max(len(part), 1),
        }

    def by(part: str) -> dict[str, Share]:
        name, vocabulary = GROUPS[part]
        if name not in labels:
            return {}
        return {value: leaf(lines.loc[lines[name] == value]) for value in _ordered(every[name], vocabulary)}

    return {"overall": leaf(lines), "by_emotion": by("by_emotion"), "by_valence": by("by_valence")}


def _fixed(part: pd.DataFrame, column: str) -> bool:
    """Whether every text, each of several emotions, matches the same share of them, neither none nor all."""
    by_text = part.groupby("text", sort=False)
    share = np.asarray(by_text[column].mean(), dtype=np.float64)
    several = np.asarray(by_text["emotion"].nunique()) > 1
    return bool(len(share) and several.all() and 0 < share[0] < 1 and np.ptp(share) < TIED)


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


def _ordered(values: Iterable[Any], vocabulary: Sequence[str]) -> list[Any]:
    found = set(values)
    return [v for v in vocabulary if v in found] + sorted(found - set(vocabulary), key=str)
