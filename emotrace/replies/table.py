"""Table: replies as a data frame, one line each, and the mean of a column with its doubt. Every score of replies is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from emotrace.labels import NEUTRAL, EmotraceError, unknown
from emotrace.replies.fluency import is_fluent
from emotrace.replies.row import Row, label_of
from emotrace.replies.texts import distinct
from emotrace.signatures import typed
from emotrace.stats.intervals import bootstrap_ci

Bounds = Mapping[str, Sequence[float]]
"""Of `fluency.fluency_bounds`."""


@typed
def table(
    rows: Iterable[Row],
    columns: Sequence[str],
    *,
    cluster: str | None = None,
    verdict: str = "verdict",
    bounds: Bounds | None = None,
) -> pd.DataFrame:
    """One line per reply.

    Args:
        rows: replies.
        columns: some of `READINGS`, or labels that every row must have.
        cluster: label that becomes the column ``cluster``, as text.
        verdict: which verdict counts, e.g. ``verdict`` (blind) or ``verdict_target``.
        bounds: what is fluent; without them ``fluent_match`` takes ``meta.fluent``, and ``fluent`` is NaN.

    Returns:
        The columns in the order asked for; what a row does not say is NaN.

    Raises:
        EmotraceError: for a row without one of the labels, or a match that is not 0, 1 or None.
    """

    def line(row: Row) -> dict[str, Any]:
        found = {
            name: READINGS[name](row, verdict, bounds) if name in READINGS else label_of(row, name) for name in columns
        }
        return found if cluster is None else {**found, "cluster": str(label_of(row, cluster))}

    names = [*columns, *([] if cluster is None else ["cluster"])]
    return pd.DataFrame([line(row) for row in rows], columns=pd.Index(names))


class Mean(NamedTuple):
    """Mean of the finite values of a column with its 95 % interval; NaN where there is none."""

    value: float
    lo: float
    hi: float
    n: int
    n_missing: int
    n_clusters: int


@typed
def mean_of(part: pd.DataFrame, column: str, n: int = 2000, seed: int = 0, *, shares: bool = False) -> Mean:
    """Mean of a column over replies, its interval a bootstrap over the column ``cluster`` (`emotrace.stats.bootstrap_ci`).

    Args:
        part: lines of `table`.
        column: whose mean is taken; what is not finite is *missing*.
        n: bootstrap draws.
        seed: of the draws.
        shares: the values are hits, 0 or 1.
    """
    known = part.loc[np.isfinite(part[column].astype(float))]
    if known.empty:
        return Mean(np.nan, np.nan, np.nan, 0, len(part), 0)
    clusters = np.asarray(known["cluster"])
    lo, hi = bootstrap_ci(np.asarray(known[column], dtype=np.float64), clusters, n, seed, shares=shares)
    return Mean(finite_mean(part[column]), lo, hi, len(known), len(part) - len(known), len(set(clusters)))


def finite_mean(values: Iterable[float]) -> float:
    """The one mean of replies: that of the values that are finite, the others being *missing*; NaN where none is."""
    found = np.asarray(list(values), dtype=np.float64)
    known = found[np.isfinite(found)]
    return float(known.mean()) if known.size else np.nan


class KeyMean(NamedTuple):
    """The mean over the draws of one key, and the cluster that the key is in."""

    value: float
    cluster: str


def by_key(part: pd.DataFrame, column: str) -> dict[str, KeyMean]:
    """Mean over draws of each key's finite values."""
    found: dict[str, list[float]] = {}
    where: dict[str, str] = {}
    for key, cluster, value in zip(part["key"], part["cluster"], part[column], strict=True):
        where[key] = cluster
        if np.isfinite(value):
            found.setdefault(key, []).append(float(value))
    return {key: KeyMean(finite_mean(values), where[key]) for key, values in found.items()}


@typed
def fluent_rows(rows: Iterable[Row], bounds: Bounds | None = None) -> list[Row]:
    """The rows that are fluent, by bounds or by their ``meta.fluent``."""
    return [row for row in rows if _is_fluent(row, bounds)]


def match_of(row: Mapping[str, Any], verdict: str = "verdict") -> int | None:
    """1, 0, or None for unjudged.

    Raises:
        EmotraceError: for a match that is none of them.
    """
    match = (row.get(verdict) or {}).get("match")
    if match is None:
        return None
    if match not in (0, 1):
        raise unknown(f"{verdict}.match", match, (0, 1, None), f"row {row.get('key')!r}")
    return int(match)


def _match(row: Row, verdict: str, bounds: Bounds | None) -> float:
    match = match_of(row, verdict)
    return np.nan if match is None else float(match)


def _fluent_match(row: Row, verdict: str, bounds: Bounds | None) -> float:
    match = match_of(row, verdict)
    return np.nan if match is None else float(bool(match) and _is_fluent(row, bounds))


def _is_fluent(row: Row, bounds: Bounds | None) -> bool:
    if bounds is not None:
        return is_fluent(row, bounds)
    meta = row.get("meta") or {}
    if "fluent" not in meta:
        raise EmotraceError(f"row {row.get('key')!r} has no meta.fluent: call mark_fluent first.")
    return bool(meta["fluent"])


def _fluent(row: Row, verdict: str, bounds: Bounds | None) -> float:
    return np.nan if bounds is None else float(is_fluent(row, bounds))


def _as(other: bool) -> Callable[[Row, str, Bounds | None], float]:
    """1 where a miss was read as another emotion (or as none), 0 elsewhere, NaN for unjudged."""

    def reading(row: Row, verdict: str, bounds: Bounds | None) -> float:
        said: Mapping[str, Any] = row.get(verdict) or {}
        match = said.get("match")
        return np.nan if match is None else float(not match and (said.get("predicted") != NEUTRAL) == other)

    return reading


def _meta(name: str) -> Callable[[Row, str, Bounds | None], float]:
    def reading(row: Row, verdict: str, bounds: Bounds | None) -> float:
        value = (row.get("meta") or {}).get(name)
        return np.nan if value is None else float(value)

    return reading


READINGS: Final[Mapping[str, Callable[[Row, str, Bounds | None], Any]]] = {
    "method": lambda row, *_: row.get("method", "none"),
    "draw": lambda row, *_: row.get("draw", 0),
    "aim": lambda row, *_: row.get("emotion") or "",
    "match": _match,
    "fluent_match": _fluent_match,
    "other": _as(True),
    "neutral": _as(False),
    "fluent": _fluent,
    **{name: _meta(name) for name in ("perplexity", "length", "repetition", "kl")},
    "distinct_1": lambda row, *_: distinct(label_of(row, "gen_text")),
}
"""Column → how it is read from a row: ``match`` (1, 0, NaN unjudged), with fluency, misread as another emotion or as none, …"""
