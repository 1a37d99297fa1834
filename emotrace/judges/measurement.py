"""Measurement: a judge's answers beside the labels of rows, with recall, macro-F1 and their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import scipy

from emotrace import arguments, shown
from emotrace.datasets.prompts import Prompts
from emotrace.judges.base import Judge, named
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats import cluster_weights, wilson

TEXTS: Final = ("gen_text", "text")
"""Fields that may hold the text of a row, the first that there is."""


class Labelled(NamedTuple):
    """Texts with their labels, and which of them belong together."""

    texts: list[str]
    labels: list[str]
    groups: np.ndarray


class Bounded(NamedTuple):
    """A figure with its interval."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Measurement:
    """A judge on labelled rows.

    Attributes:
        judge: its name.
        on: what the rows are.
        n: rows.
        n_groups: groups of rows that belong together, which the intervals draw.
        accuracy: share of right answers; what was left unjudged is wrong.
        macro_f1: mean over labels of 2·TP / (answered + labelled).
        recall: label → share of its rows that were named so, with Wilson's interval of so many rows.
        confusion: label → answer → rows; ``unjudged`` is an answer here.
    """

    judge: str
    on: str
    n: int
    n_groups: int
    accuracy: Bounded
    macro_f1: Bounded
    recall: Mapping[str, Bounded]
    confusion: Mapping[str, Mapping[str, int]]
    __repr__ = shown.brief

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {
            "accuracy": list(self.accuracy), "macro_f1": list(self.macro_f1),
            "recall": {name: list(found) for name, found in self.recall.items()},
        }  # fmt: skip

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Measurement:
        """What `Measurement.record` gave."""
        bounded = {name: Bounded(*record[name]) for name in ("accuracy", "macro_f1")}
        recall = {str(name): Bounded(*found) for name, found in record["recall"].items()}
        return cls(**{**record, **bounded, "recall": recall})

    def __str__(self) -> str:
        lines = [
            f"{self.judge} on {self.on}: {self.n} rows in {self.n_groups} groups",
            f"  accuracy {_shown(self.accuracy)}, macro-F1 {_shown(self.macro_f1)}",
            *(f"  recall of {name:>12} {_shown(found)}" for name, found in self.recall.items()),
        ]
        table = pd.DataFrame(self.confusion).T.fillna(0).astype(int)
        return "\n".join([*lines, table.rename_axis(index="label", columns="answer").to_string()])


@typed
def measure_judge(
    judge: Judge,
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame | Prompts,
    label: str = "emotion",
    *,
    on: str,
    text: str | None = None,
    groups: str | None = None,
    n: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> Measurement:
    """A judge's answers to labelled rows beside their labels.

    Intervals of accuracy and macro-F1 are percentiles over draws of whole groups.

    Args:
        judge: any judge.
        rows: mappings, a table, or prompts of plain text.
        label: the field that holds the right answer.
        on: what the rows are, in words.
        text: the field that holds the text; None: the first of `TEXTS` that rows have.
        groups: the field of what belongs together, e.g. ``skeleton_id``; None: each text alone.
        n: bootstrap draws.
        seed: of the draws.
        progress: show a bar.

    Raises:
        EmotraceError: for rows without text or label, or labels that the judge has no name for.
    """
    arguments.resampling("measure_judge", seed, n=n)
    found = labelled(rows, label, text, groups)
    choices = getattr(judge, "choices", None)
    labels = [named(name, choices, f"label {label!r}") for name in found.labels]
    answers = [v["predicted"] or "unjudged" for v in judge.judge(found.texts, progress=progress)]
    return compared(judge.name, on, labels, answers, found.groups, n, seed)


def compared(
    judge: str, on: str, labels: Sequence[str], answers: Sequence[str], groups: np.ndarray, n: int = 2000, seed: int = 0
) -> Measurement:
    """Answers beside labels, both by their names; ``groups`` are numbers from 0."""
    names = sorted(set(labels))
    columns = [*names, *sorted(set(answers) - set(names))]
    at = {name: i for i, name in enumerate(columns)}
    counts = np.zeros((int(groups.max()) + 1, len(names), len(columns)))
    place = (np.asarray(groups), np.array([at[x] for x in labels]), np.array([at[x] for x in answers]))
    np.add.at(counts, place, 1)
    whole, drawn = counts.sum(0), np.tensordot(cluster_weights(len(counts), n, seed), counts, 1)

    def bounded(score: Callable[[np.ndarray], np.ndarray]) -> Bounded:
        lo, hi = np.quantile(score(drawn), [0.025, 0.975])
        return Bounded(float(score(whole)), float(lo), float(hi))

    recall = {}
    for i, name in enumerate(names):
        right, of = float(whole[i, i]), float(whole[i].sum())
        recall[name] = Bounded(right / of, *wilson(right, of))
    confusion = {a: {b: int(whole[i, j]) for j, b in enumerate(columns)} for i, a in enumerate(names)}
    return Measurement(judge, on, len(labels), len(counts), bounded(_accuracy), bounded(_macro_f1), recall, confusion)


def labelled(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame | Prompts, label: str, text: str | None, groups: str | None
) -> Labelled:
    """Texts, labels and groups of rows; rows with one text are in one group, whatever theirs are.

    Raises:
        EmotraceError: for no rows, and for one without text, label or group, which is named.
    """
    if isinstance(rows, Prompts):
        found: list[Mapping[str, Any]] = [{**p.labels, "text": p.text} for p in rows]
    else:
        found = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)  # type: ignore[assignment]
    if not found:
        raise EmotraceError("there are no labelled rows.")
    field = text or next((name for name in TEXTS if name in found[0]), TEXTS[0])
    columns: dict[str, list[str]] = {}
    for name in (field, label, *([groups] if groups else [])):
        columns[name] = []
        for i, row in enumerate(found):
            if name not in row:
                raise unknown("field", name, row, f"row {i}")
            value = row[name]
            if not isinstance(value, str) or (name != field and not value.strip()):
                raise EmotraceError(f"{arguments.said(f'row {i}: {name}', value)}: a text is due.")
            columns[name].append(value)
    _, same = np.unique(columns[field], return_inverse=True)
    of = np.unique(columns[groups], return_inverse=True)[1] if groups else np.arange(len(found))
    edges = scipy.sparse.coo_array(
        (np.ones(len(of)), (of, of.max() + 1 + same)), shape=2 * (int(of.max() + same.max() + 2),)
    )
    _, part = scipy.sparse.csgraph.connected_components(edges, directed=False)
    return Labelled(columns[field], columns[label], np.unique(part[of], return_inverse=True)[1])


def _accuracy(counts: np.ndarray) -> np.ndarray:
    labels = counts.shape[-2]
    return np.trace(counts[..., :labels], axis1=-2, axis2=-1) / counts.sum((-2, -1))


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """Over the labels that a draw holds."""
    square = counts[..., : counts.shape[-2]]
    right, given = np.diagonal(square, axis1=-2, axis2=-1), counts.sum(-1)
    both = given + square.sum(-2)
    f1 = np.where(given > 0, 2 * right / np.where(both > 0, both, 1), np.nan)
    return np.nanmean(f1, axis=-1)


def _shown(found: Bounded) -> str:
    return f"{found.value:.1%} [{found.lo:.1%}, {found.hi:.1%}]"
