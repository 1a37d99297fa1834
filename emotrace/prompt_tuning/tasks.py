"""Tasks: is this emotion in the text? One binary task per emotion and seed, in three parts that share no text."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from emotrace.datasets.goemotions import LabelledText
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed

PARTS: Final = ("train", "dev", "test")
NEGATIVES: Final = ("clean", "contaminated")


@dataclass(frozen=True)
class Items:
    """Texts with the answer of each.

    Attributes:
        texts: as they stand in the file.
        labels: True where the emotion is among the labels of the text.
        ids: of the texts in their file.
    """

    texts: tuple[str, ...]
    labels: tuple[bool, ...]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Task:
    """A binary task: ``train`` to fit, ``dev`` to choose, ``test`` to report.

    Attributes:
        emotion: the one that is asked for.
        seed: of what was drawn.
        train: to fit on.
        dev: to choose the epoch on.
        test: to report on; None where the data have no such part.
        moved: texts left out of ``dev`` and ``test`` because an earlier part has them.
    """

    emotion: str
    seed: int
    train: Items
    dev: Items
    test: Items | None = None
    moved: int = 0

    @cached_property
    def digest(self) -> str:
        """Hash of every text and label in its order."""
        parts = {n: None if (p := getattr(self, n)) is None else [p.texts, p.labels] for n in PARTS}
        return hashlib.sha256(json.dumps([self.emotion, parts]).encode()).hexdigest()[:16]


@typed
def parted(
    texts: Sequence[LabelledText], shares: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0
) -> dict[str, list[LabelledText]]:
    """One file as three parts; each first label is spread over them by the shares, and equal texts stay together.

    Args:
        texts: of `datasets.read_goemotions`.
        shares: of train, dev and test; they sum to 1.
        seed: of the order in which texts are dealt out.

    Raises:
        EmotraceError: for shares that are not positive or do not sum to 1.
    """
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise EmotraceError(f"parted(shares={shares}): three positive shares that sum to 1.")
    groups: dict[str, list[LabelledText]] = {}
    for t in texts:
        groups.setdefault(_same(t.text), []).append(t)
    by_label: dict[str, list[str]] = {}
    for name, members in groups.items():
        by_label.setdefault(members[0].labels[0], []).append(name)
    out: dict[str, list[LabelledText]] = {part: [] for part in PARTS}
    for label, names in by_label.items():
        order = np.random.default_rng((seed, zlib.crc32(label.encode()))).permutation(len(names))
        bounds = np.rint(np.cumsum(shares) * len(names)).astype(int)
        for i, n in enumerate(order):
            part = PARTS[int(np.searchsorted(bounds, i, side="right"))]
            out[part] += groups[names[n]]
    return out


@typed
def binary(
    texts: Mapping[str, Sequence[LabelledText]],
    emotion: str,
    seed: int = 0,
    *,
    negatives: str = "clean",
    ratio: float = 1.0,
    limit: int | None = None,
) -> Task:
    """The task of one emotion: all its texts, and others drawn beside them, part by part.

    ``clean``: negatives lack the emotion and are drawn without replacement; no text is in two parts. ``contaminated`` (arXiv
    2302.09582): drawn with replacement among *all* texts, so that some are positives and some occur twice, by numpy's
    legacy generator seeded anew for every part; labels are read from the data.

    Args:
        texts: part (``train``, ``dev`` and, if there is one, ``test``) → labelled texts.
        emotion: a label of the texts.
        seed: of the draw.
        negatives: ``clean`` or ``contaminated``.
        ratio: negatives per positive; fewer where the part has no more.
        limit: most positives of a part, drawn; None for all. Not of ``contaminated``.

    Raises:
        EmotraceError: for a part that is unknown or missing, an emotion that no text has, or a part without positives or
            negatives.
    """
    for name in texts:
        if name not in PARTS:
            raise unknown("part", name, PARTS, "tasks.binary(texts=…)")
    lacking = [name for name in PARTS[:2] if name not in texts]
    if lacking:
        raise EmotraceError(
            f"a task needs the parts train and dev; {lacking[0]} is missing (there is: {', '.join(texts)})."
        )
    if negatives not in NEGATIVES:
        raise unknown("negatives", negatives, NEGATIVES, "tasks.binary")
    if not ratio > 0 or (limit is not None and limit < 1):
        raise EmotraceError(f"tasks.binary(ratio={ratio}, limit={limit}): a positive ratio and at least 1 positive.")
    known = dict.fromkeys(label for part in texts.values() for t in part for label in t.labels)
    if emotion not in known:
        raise unknown("emotion", emotion, sorted(known), "tasks.binary")
    found: dict[str, Items] = {}
    seen: set[str] = set()
    moved = 0
    for i, part in enumerate(p for p in PARTS if p in texts):
        rows = list(texts[part])
        if negatives == "contaminated":
            found[part] = _contaminated(rows, emotion, seed, part)
            continue
        kept = [t for t in rows if _same(t.text) not in seen]
        moved += len(rows) - len(kept)
        seen |= {_same(t.text) for t in kept}
        entropy = (seed, zlib.crc32(emotion.encode()), i)
        found[part] = _clean(kept, emotion, part, ratio, limit, np.random.default_rng(entropy))
    return Task(emotion, seed, moved=moved, **found)


def _clean(
    rows: Sequence[LabelledText], emotion: str, part: str, ratio: float, limit: int | None, rng: np.random.Generator
) -> Items:
    positives = [t for t in rows if emotion in t.labels]
    others = [t for t in rows if emotion not in t.labels]
    if not positives or not others:
        raise EmotraceError(
            f"{part}: {len(positives)} texts with {emotion!r} and {len(others)} without; a task needs both."
        )
    if limit is not None and limit < len(positives):
        positives = [positives[i] for i in sorted(rng.choice(len(positives), limit, replace=False))]
    n = min(len(others), max(1, round(ratio * len(positives))))
    drawn = [others[i] for i in rng.choice(len(others), n, replace=False)]
    return _items([*positives, *drawn], emotion)


def _contaminated(rows: Sequence[LabelledText], emotion: str, seed: int, part: str) -> Items:
    positives = [t for t in rows if emotion in t.labels]
    if not positives:
        raise EmotraceError(f"{part}: no text with {emotion!r}.")
    legacy = np.random.RandomState(seed)  # the published draw
    return _items([*positives, *(rows[i] for i in legacy.choice(len(rows), size=len(positives)))], emotion)


def _items(rows: Sequence[LabelledText], emotion: str) -> Items:
    return Items(tuple(t.text for t in rows), tuple(emotion in t.labels for t in rows), tuple(t.text_id for t in rows))


def _same(text: str) -> str:
    return " ".join(text.casefold().split())
