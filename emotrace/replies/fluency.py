"""Fluency: is a reply as perplexing, as long and as repetitive as the model's own prompted replies?

A row carries ``meta`` with ``perplexity`` (reply tokens under the un-edited model), ``length`` (tokens of the reply) and
``repetition`` (share of repeated 3-grams).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.replies.row import Row, label_of
from emotrace.signatures import typed

MEASURES: Final = ("perplexity", "length", "repetition")


@typed
def repetition(token_ids: Sequence[int], n: int = 3) -> float:
    """Share of repeated n-grams: 1 − distinct / all; 0 for a reply shorter than n tokens."""
    arguments.whole("repetition(n)", n, 1)
    ids = [arguments.whole("repetition(token_ids): an id", i) for i in token_ids]
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


@typed
def fluency_bounds(reference_rows: Iterable[Row]) -> dict[str, list[float]]:
    """1st and 99th percentile of each measure over the prompted replies to the training skeletons.

    Where more than one in a hundred of them ends at the limit of new tokens, that limit is the upper bound of length, which
    then leaves out no reply made under the same limit.

    Args:
        reference_rows: rows of method ``prompt``; a perplexity that is not finite (empty reply) is left out.

    Returns:
        ``{perplexity: [lo, hi], length: [lo, hi], repetition: [lo, hi]}``, ready for JSON.

    Raises:
        EmotraceError: for no rows, or a row without a measure.
    """
    rows = list(reference_rows)
    bounds = {}
    for name in MEASURES:
        values = np.array([_measure(row, name) for row in rows], dtype=np.float64)
        values = values[np.isfinite(values)]
        if values.size == 0:
            raise EmotraceError(f"fluency_bounds: no reference row has a finite {name} (of {len(rows)} rows).")
        lo, hi = np.percentile(values, [1, 99])
        bounds[name] = [float(lo), float(hi)]
    return bounds


@typed
def is_fluent(row: Row, bounds: Mapping[str, Sequence[float]]) -> bool:
    """Whether every measure of the row lies within its bounds, both ends included; not finite is not fluent."""
    missing = [name for name in MEASURES if name not in bounds]
    if missing:
        raise EmotraceError(f"is_fluent: the bounds lack {', '.join(missing)}; make them with fluency_bounds.")
    for name in MEASURES:
        if not bounds[name][0] <= bounds[name][1]:
            raise EmotraceError(f"is_fluent: the bounds of {name} are {list(bounds[name])}; the lower one first.")
    values = {name: _measure(row, name) for name in MEASURES}
    return all(math.isfinite(v) and bounds[name][0] <= v <= bounds[name][1] for name, v in values.items())


@typed
def add_length_and_repetition(rows: Iterable[Row]) -> None:
    """Write ``meta.repetition`` and ``meta.length`` into rows: with ``meta.perplexity``, what fluency is measured by.

    Args:
        rows: replies, changed in place.

    Raises:
        EmotraceError: for a row without ``token_ids`` (an empty reply has none in the list).
    """
    for row in rows:
        ids, meta = label_of(row, "token_ids"), row.setdefault("meta", {})
        meta["repetition"] = repetition(ids)
        meta["length"] = len(ids)


@typed
def mark_fluent(rows: Iterable[Row], bounds: Mapping[str, Sequence[float]]) -> None:
    """Write ``meta.fluent`` into rows: whether each is within the bounds (`is_fluent`).

    Args:
        rows: replies, changed in place, with what `add_length_and_repetition` and `emotrace.scoring.add_perplexity` write.
        bounds: of `fluency_bounds`.

    Raises:
        EmotraceError: for a row without one of the measures.
    """
    for row in rows:
        row.setdefault("meta", {})["fluent"] = is_fluent(row, bounds)


def _measure(row: Row, name: str) -> float:
    meta = row.get("meta") or {}
    if name not in meta:
        raise EmotraceError(f"row {row.get('key')!r} has no meta.{name}; fluency needs {', '.join(MEASURES)} in meta.")
    return float("nan") if meta[name] is None else float(meta[name])
