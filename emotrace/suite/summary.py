"""Summary: every measure of every method with its interval, and its difference from the baseline on the same prompts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from emotrace.labels import EmotraceError, unknown
from emotrace.replies.doses import ALL
from emotrace.replies.row import Row, cluster_of
from emotrace.replies.table import by_key, mean_of, table
from emotrace.signatures import typed
from emotrace.stats import bootstrap_ci, fdr_bh, sign_flip

BINARY: Final = ("empty", "disclaimer", "disclaimer_wide", "on_target")
"""Measures of 0 or 1, whose interval is Wilson's where all draws agree; of others it has no width then."""
FLIPS: Final = 2000
"""Random sign patterns of a line's p, where there are too many clusters for all."""
COLUMNS: Final = (
    "method", "emotion", "measure", "value", "lo", "hi", "n", "n_missing", "n_clusters", "lowest_draw", "highest_draw",
    "difference", "difference_lo", "difference_hi", "n_paired", "p", "q",
)  # fmt: skip


@typed
def summarise(
    rows: Sequence[Row],
    *,
    cluster: str | None = None,
    baseline: str = "none",
    by_emotion: bool = True,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """One line per method, emotion (``all`` together first) and measure.

    Means are over replies, intervals 95 % bootstrap over clusters. With d_k = mean over draws of the measure of key k − that
    of the baseline's reply to the same key, ``difference`` is mean d with its bootstrap interval, ``p`` that of sign flips of
    whole clusters (two-sided), ``q`` adjusted over the table (Benjamini–Hochberg).

    Args:
        rows: that `measure` returned.
        cluster: label that is drawn as a whole; None takes ``prompt``, ``skeleton_id``, ``query_id``, ``question_id`` or
            ``key``, the first that all rows have.
        baseline: method that differences are taken from; nothing where no row is of it.
        by_emotion: add lines for each emotion.
        n: bootstrap draws.
        seed: of the draws and flips.

    Returns:
        Table with `COLUMNS`; numbers that do not exist are NaN. ``lowest_draw`` and ``highest_draw`` are the means of the draws
        that lie furthest apart.

    Raises:
        EmotraceError: for no rows, rows without measures, or two rows of one key, method and draw.
    """
    label = check_rows(rows, cluster, baseline)
    for row in rows:
        if "measures" not in row:
            raise EmotraceError(f"row {row.get('key')!r} has no measures: run measure first.")
    about = table(rows, ("key", "method", "draw", "aim"), cluster=label)
    measures = pd.DataFrame([row["measures"] for row in rows])
    lines, names = pd.concat([about, measures], axis=1), list(measures.columns)
    emotions = [e for e in dict.fromkeys(lines["aim"]) if e] if by_emotion else []
    out = []
    for method in dict.fromkeys(lines["method"]):
        for aim in (ALL, *emotions):
            part = lines.loc[(lines["method"] == method) & ((lines["aim"] == aim) | (aim == ALL))]
            base = lines.loc[(lines["method"] == baseline) & ((lines["aim"] == aim) | (aim == ALL))]
            if part.empty:
                continue
            for name in names:
                line = _mean(part, name, n, seed)
                line |= _difference(part, base, name, n, seed) if method != baseline else {}
                out.append({"method": method, "emotion": aim, "measure": name, **line})
    found = pd.DataFrame(out).reindex(columns=list(COLUMNS))
    known = found["p"].notna()
    if bool(known.any()):
        found.loc[known, "q"] = fdr_bh(np.asarray(found.loc[known, "p"]))
    return found


def check_rows(rows: Sequence[Row], cluster: str | None, baseline: str) -> str:
    """The label that `summarise` would draw, after checking what it needs of rows; nothing need be measured yet.

    Raises:
        EmotraceError: for no rows, a label that a row lacks, a baseline (other than ``none``) that no row is of, or two
            rows of one key, method and draw.
    """
    if not rows:
        raise EmotraceError("summarise: there are no rows.")
    label = cluster_of(rows, cluster)
    methods = list(dict.fromkeys(str(row.get("method", "none")) for row in rows))
    if baseline not in ("none", *methods):
        raise unknown("baseline", baseline, methods, "summarise(baseline=…)")
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        one = (row["key"], row.get("method", "none"), row.get("draw", 0))
        if one in seen:
            raise EmotraceError(f"two rows have key {one[0]!r}, method {one[1]!r} and draw {one[2]}.")
        seen.add(one)
    return label


@typed
def value_of(table: pd.DataFrame, method: str, measure: str, emotion: str = ALL) -> pd.Series:
    """The line of one method and measure.

    Args:
        table: of `summary`.
        method: of the line.
        measure: of the line.
        emotion: of the line; ``all`` for all together.

    Raises:
        EmotraceError: if there is none.
    """
    for column, wanted in (("method", method), ("measure", measure), ("emotion", emotion)):
        if wanted not in set(table[column]):
            raise unknown(column, wanted, list(dict.fromkeys(table[column])), "value_of")
    line = table.loc[(table["method"] == method) & (table["measure"] == measure) & (table["emotion"] == emotion)]
    if not len(line):
        raise EmotraceError(f"the table has no line of {method}, {measure}, {emotion}.")
    return pd.Series(line.iloc[0])


def _mean(part: pd.DataFrame, name: str, n: int, seed: int) -> dict[str, Any]:
    found = mean_of(part, name, n, seed, shares=name in BINARY)
    draws = part.loc[np.isfinite(part[name].astype(float))].groupby("draw")[name].mean()
    return {**found._asdict(), "lowest_draw": float(draws.min()), "highest_draw": float(draws.max())}


def _difference(part: pd.DataFrame, base: pd.DataFrame, name: str, n: int, seed: int) -> dict[str, Any]:
    """Mean difference on the keys that both have, draws averaged first."""
    if base.empty:
        return {}
    mine, theirs = (by_key(x, name) for x in (part, base))
    keys = [key for key in mine if key in theirs]
    if not keys:
        return {"n_paired": 0}
    d = np.array([mine[key].value - theirs[key].value for key in keys])
    clusters = np.array([mine[key].cluster for key in keys])
    lo, hi = bootstrap_ci(d, clusters, n, seed)
    _, code = np.unique(clusters, return_inverse=True)
    p, _ = sign_flip(np.bincount(code, weights=d), permutations=FLIPS, seed=seed)
    return {"difference": float(d.mean()), "difference_lo": lo, "difference_hi": hi, "n_paired": len(d), "p": p}
