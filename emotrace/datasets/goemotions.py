"""GoEmotions: short texts with one or more of 27 emotions or neutral, as plain-text prompts.

Source: Demszky et al. 2020, arXiv 2005.00547. Class ids are places in `LABELS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emotrace import arguments, labels
from emotrace.datasets.prompts import Prompt, Prompts
from emotrace.datasets.tables import SourceTable, open_table, text_of
from emotrace.labels import NEUTRAL, EmotraceError, unknown
from emotrace.signatures import typed

GOEMOTIONS: Final = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy", "love",
    "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise",
)  # fmt: skip
LABELS: Final = (*GOEMOTIONS, NEUTRAL)
"""Class id → name: the 27 emotions in the order of the alphabet, then neutral."""


def _members(**groups: str) -> dict[str, str]:
    return {name: group for group, names in groups.items() for name in names.split()} | {NEUTRAL: NEUTRAL}


GROUPINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "ekman": _members(
        anger="anger annoyance disapproval",
        disgust="disgust",
        fear="fear nervousness",
        joy="admiration amusement approval caring desire excitement gratitude joy love optimism pride relief",
        sadness="disappointment embarrassment grief remorse sadness",
        surprise="confusion curiosity realization surprise",
    ),
    "sentiment": _members(
        positive="admiration amusement approval caring desire excitement gratitude joy love optimism pride relief",
        negative="anger annoyance disappointment disapproval disgust embarrassment fear grief nervousness remorse sadness",
        ambiguous="confusion curiosity realization surprise",
    ),
}
"""The two groupings of the paper: label → group."""

_ID = ("ids", "id", "comment_id", "text_id")
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True)
class LabelledText:
    """A text with its labels.

    Attributes:
        text_id: unique in its file.
        text: as it stands in the file.
        labels: names out of `LABELS`, at least one, in that order.
    """

    text_id: str
    text: str
    labels: tuple[str, ...]


@typed
def read_goemotions(
    source: str | Path, *, split: str = "train", config: str | None = "simplified"
) -> list[LabelledText]:
    """The texts of a GoEmotions file or data set, checked row by row.

    Args:
        source: a table in any of the layouts that are about:

            * ``text``, ``labels`` (or ``classes``: class ids or names, a list or joined by commas or blanks, in brackets or not)
              and ``id`` (or ``ids``; optional), with one 0/1 column per label or without: ``.csv``, ``.json``, ``.jsonl``,
              ``.parquet``, ``.arrow``, a saved data set, or a hub id, e.g. ``google-research-datasets/go_emotions``;
            * the authors' ``.tsv`` without a header: text, class ids, comment id;
            * the raw one: ``text``, ``id`` and one 0/1 column per label. With ``rater_id`` a row is what one rater said; as
              published, a text has the labels that two of its raters gave (of its only rater, all), and one without any is
              left out, as are rows that are ``example_very_unclear``.
        split: of a data set that has several.
        config: of a hub id.

    Raises:
        EmotraceError: naming file and line, for a missing column or field, an unknown class, ids that contradict the 0/1
            columns, a text without a label, an id that occurs twice; and as `emotrace.datasets.tables.open_table`.
    """
    table = open_table(source, split=split, config=config, columns=("text", "labels", "id"))
    out: list[LabelledText] = []
    seen: set[str] = set()
    rated: dict[str, list[LabelledText]] = {}
    for where, row in table.rows:
        if str(row.get("example_very_unclear")).lower() in _TRUE:
            continue
        given = next((row[name] for name in _ID if row.get(name) not in (None, "")), None)
        ident = f"{split}_{len(out)}" if given is None else str(given)
        if "rater_id" not in row and ident in seen:
            raise EmotraceError(f"{where}: the id {ident!r} occurs twice.")
        seen.add(ident)
        text = LabelledText(ident, text_of(row, "text", where), tuple(_names(row, where, table)))
        if "rater_id" in row:
            rated.setdefault(ident, []).append(text)
        else:
            out.append(text)
    out += _agreed(rated.values())
    if not out:
        raise EmotraceError(f"{table.name} has no rows.")
    return out


@typed
def goemotions(
    source: str | Path | Sequence[LabelledText],
    *,
    split: str = "train",
    emotions: Sequence[str] | None = None,
    grouping: str | Mapping[str, str] | None = None,
    single_label: bool = True,
    limit: int | None = None,
) -> Prompts:
    """GoEmotions as prompts of plain text, in the order of the file.

    Args:
        source: a file, a saved data set or a hub id that `read_goemotions` reads, or the texts that it read.
        split: of a data set that has several.
        emotions: labels (or groups) to take, neutral among them if wanted; None for all. ``joy`` and ``happiness`` are
            one (`emotrace.labels.ALIASES`).
        grouping: ``ekman``, ``sentiment``, or a mapping label → group of one's own; labels that it lacks are left out of the
            text's labels.
        single_label: only texts with exactly one label; counted after grouping, so that one with anger and annoyance is a
            single *anger* under ``ekman``.
        limit: most texts of each emotion, the first of the file; needs single labels.

    Returns:
        Prompts whose key and label ``text_id`` are the text's id, with ``labels`` (all of them, joined by commas, after
        grouping) and ``emotion`` (the single one; empty where there are several).

    Raises:
        EmotraceError: as `read_goemotions`; for an unknown grouping, group or emotion; if no text is left.
    """
    texts = read_goemotions(source, split=split) if isinstance(source, (str, Path)) else list(source)
    group_of = _grouping(grouping)
    names = tuple(dict.fromkeys(group_of[name] for name in LABELS if name in group_of))
    emotions = None if emotions is None else arguments.names("goemotions(emotions)", emotions)
    wanted = None if emotions is None else {labels.emotion(e, names, "goemotions(emotions=…)") for e in emotions}
    if limit is not None and (arguments.whole("goemotions(limit)", limit) < 1 or not single_label):
        raise EmotraceError(f"goemotions(limit={limit}): at least 1 text of each emotion, and only of single labels.")
    taken: dict[str, int] = {}
    prompts = []
    for t in texts:
        mine = tuple(dict.fromkeys(group_of[name] for name in t.labels if name in group_of))
        if (single_label and len(mine) != 1) or not mine or (wanted is not None and not set(mine) & wanted):
            continue
        if limit is not None:
            taken[mine[0]] = taken.get(mine[0], 0) + 1
            if taken[mine[0]] > limit:
                continue
        about = {"text_id": t.text_id, "labels": ",".join(mine), "emotion": mine[0] if len(mine) == 1 else ""}
        prompts.append(Prompt(t.text_id.replace("/", "_"), text=t.text, labels=about))
    return Prompts(prompts)


@typed
def class_counts(prompts: Prompts, label: str = "labels") -> dict[str, int]:
    """How many prompts carry each value of a label, most first; one that holds several, joined by commas, counts for each.

    Raises:
        EmotraceError: for an unknown label.
    """
    if label not in prompts.label_names:
        raise unknown("label", label, prompts.label_names, "class_counts")
    counts: dict[str, int] = {}
    for prompt in prompts:
        for name in str(prompt.labels.get(label, "")).split(","):
            counts[name] = counts.get(name, 0) + 1
    counts.pop("", None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _grouping(grouping: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if grouping is None:
        return {name: name for name in LABELS}
    if isinstance(grouping, str):
        if grouping not in GROUPINGS:
            raise unknown("grouping", grouping, GROUPINGS, "goemotions(grouping=…)")
        return GROUPINGS[grouping]
    for name, group in grouping.items():
        if name not in LABELS:
            raise unknown("label", name, LABELS, "goemotions(grouping=…)")
        if not isinstance(group, str) or not group or "," in group:
            raise EmotraceError(f"goemotions(grouping=…): the group of {name!r} is {group!r}; a name without comma.")
    return grouping


def _names(row: Mapping[str, Any], where: str, table: SourceTable) -> Iterator[str]:
    """Labels of a row: its classes, checked against its 0/1 columns where it has them."""
    column = next((name for name in ("labels", "classes") if name in row), None)
    marked = None if column == "labels" else _marked(row, where)
    if column is None:
        if marked is None:
            have = ", ".join(row) or "nothing"
            raise EmotraceError(
                f"{where}: neither the field 'labels' (or 'classes') nor a 0/1 column per label (the row has: {have})."
            )
        places = marked
    else:
        known = table.classes.get(column, LABELS)
        given = row[column]
        items = [x.strip("'\"") for x in re.split(r"[\s,]+", given.strip("[] "))] if isinstance(given, str) else given
        places = {
            _place(item, known, where)
            for item in (items if isinstance(items, (list, tuple)) else [items])
            if item != ""
        }
    if not places:
        raise EmotraceError(f"{where}: the text has no label.")
    for i, name in enumerate(LABELS):
        if marked is not None and (i in marked) != (i in places):
            raise EmotraceError(f"{where}: column {name!r} is {row[name]}, but 'classes' is {row['classes']!r}.")
    return (LABELS[i] for i in sorted(places))


def _agreed(rated: Iterable[Sequence[LabelledText]]) -> Iterator[LabelledText]:
    """Of each text's raters: the labels that two of them gave, of an only one all; nothing where none is left."""
    for mine in rated:
        votes = Counter(name for one in mine for name in one.labels)
        kept = tuple(name for name in LABELS if votes[name] >= min(2, len(mine)))
        if kept:
            yield LabelledText(mine[0].text_id, mine[0].text, kept)


def _place(item: object, known: Sequence[str], where: str) -> int:
    """The place in `LABELS` of a class id of the source, or of a name."""
    if isinstance(item, str) and not (item.isascii() and item.isdigit() and len(item) < 10):
        name = item
    else:
        if isinstance(item, bool) or not isinstance(item, (int, str)) or not 0 <= int(item) < len(known):
            raise EmotraceError(f"{where}: {item!r} is no class id (0 to {len(known) - 1}).")
        name = known[int(item)]
    if name not in LABELS:
        raise unknown("label", name, LABELS, where)
    return LABELS.index(name)


def _marked(row: Mapping[str, Any], where: str) -> set[int] | None:
    """Places in `LABELS` of the row's 0/1 columns that are 1; None where it has no such columns."""
    missing = [name for name in LABELS if name not in row]
    if len(missing) == len(LABELS):
        return None
    if missing:
        raise EmotraceError(f"{where}: the column {missing[0]!r} is missing; a label has a 0/1 column each.")
    found = set()
    for i, name in enumerate(LABELS):
        value = str(row[name]).lower()
        if value not in (*_TRUE, *_FALSE):
            raise EmotraceError(f"{where}: column {name!r} holds {row[name]!r}, not 0 or 1.")
        if value in _TRUE:
            found.add(i)
    return found
