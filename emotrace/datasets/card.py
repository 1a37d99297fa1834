"""Data card figures of a SEV file: how varied its scenarios are, and whether they name an emotion.

``words`` are runs of letters and apostrophes in scenarios and events, in lower case; *content words* are words outside
`STOPWORDS`. The nearest-neighbour Jaccard of a text is ``max over other texts of |A ∩ B| / |A ∪ B|`` of their sets of
content words: 1 for a text that says the same as another, 0 for one that shares nothing with any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emotrace.datasets.sev import Skeleton, read_sev
from emotrace.labels import EmotraceError

STOPWORDS = frozenset(
    """
    a an the i me my mine myself we us our ours you your yours he him his she her hers it its they them their theirs
    this that these those who whom whose which what when where why how
    and or but if so as than then because while until although though
    of in on at to for from by with about into onto after before during over under out up down off through between
    against along across around behind beside near without within toward towards upon since
    not no nor is are was were be been being am has have had having do does did will would can could should may might
    must just also all some any each every both more most other another such only own same too very again once there
    here
    """.split()  # noqa: SIM905
)
EMOTION_WORDS = re.compile(
    r"\b(?:ang(?:er|ry|rily)|sad(?:ly|ness|den\w*)?|happ(?:y|ily|iness|ier)|joy(?:s|ful\w*|ous\w*)?|(?:over)?joyed|"
    r"fear(?:s|ed|ful\w*|ing)?|afraid|scar(?:ed|y)|frighten\w*|surpris\w*|disgust\w*|furious\w*|fur(?:y|ies)|glad(?:ly|ness)?|"
    r"upset\w*|annoy\w*|anxi(?:ous\w*|ety)|worr(?:y|ied|ies|ying)|delight\w*|thrill\w*|terrif\w*|terror|shock\w*|"
    r"astonish\w*|amaz\w*|heartbroken|pleas(?:ed|ure)|excit\w*|frustrat\w*|disappoint\w*|reliev\w*|relief|proud\w*|"
    r"grateful\w*|gratitude|miserabl\w*|misery|nervous\w*|horrif\w*|horror|revolt(?:ed|ing)|lov(?:e|ed|es|ing)|"
    r"hat(?:e|ed|es|red)|grie(?:f|v\w*)|sorrow\w*|mourn\w*|lonel\w*|depress\w*|enthusias\w*|embarrass\w*|asham\w*|"
    r"shame\w*|jealous\w*|envi(?:ous|ed)|dread\w*|panic\w*|rage[ds]?|outrag\w*|cheer(?:ed|ful\w*)|enjoy\w*|regret\w*|"
    r"appreciat\w*|satisf\w*|dismay\w*|concern(?:ed|s)?)\b",
    re.IGNORECASE,
)


class Neighbour(NamedTuple):
    """The nearest text of one text, and how near."""

    jaccard: float
    text: str
    nearest: str


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z']+", text.lower())


def content_words(text: str) -> frozenset[str]:
    """The distinct words of a text outside `STOPWORDS`."""
    return frozenset(words(text)) - STOPWORDS


def nearest(texts: Sequence[str], among: Sequence[str] | None = None) -> list[Neighbour]:
    """The nearest neighbour of every text by Jaccard of content words.

    Args:
        texts: at least two texts, or one if ``among`` is given.
        among: texts to look in; by default the other ones of ``texts``.

    Returns:
        One neighbour per text, in order.

    Raises:
        EmotraceError: if there is nothing to compare with.
    """
    others = list(texts if among is None else among)
    if not texts or len(others) < (2 if among is None else 1):
        raise EmotraceError(f"nearest neighbours need at least two texts; there are {len(texts)} and {len(others)}.")
    names = sorted(set().union(*map(content_words, [*texts, *others])))
    column = {name: i for i, name in enumerate(names)}
    left, right = _incidence(texts, column), _incidence(others, column)
    both = left @ right.T
    either = left.sum(1)[:, None] + right.sum(1)[None, :] - both
    jaccard = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    if among is None:
        np.fill_diagonal(jaccard, -1)
    best = jaccard.argmax(1)
    return [Neighbour(float(jaccard[i, j]), texts[i], others[int(j)]) for i, j in enumerate(best)]


def _incidence(texts: Iterable[str], column: dict[str, int]) -> np.ndarray:
    rows = [[column[w] for w in content_words(t)] for t in texts]
    out = np.zeros((len(rows), len(column)), dtype=np.float64)
    for i, columns in enumerate(rows):
        out[i, columns] = 1
    return out


def whole(skeleton: Skeleton) -> str:
    """Scenario and events of a skeleton as one text."""
    return " ".join([skeleton.scenario, *skeleton.events.values()])


def figures(source: str | Path | Sequence[Skeleton]) -> dict[str, float | int]:
    """The variety figures of a SEV file.

    Returns:
        ``scenarios, events, words, distinct_words, openings`` (distinct first two words of scenarios),
        ``scenario_words`` and ``event_words`` (means), ``jaccard_{scenario,whole}_{mean,max}`` (nearest neighbours, of
        scenarios and of scenarios with their events) and ``with_emotion_words`` (texts, see `emotion_words`).
    """
    skeletons = read_sev(source) if isinstance(source, (str, Path)) else list(source)
    scenarios = [s.scenario for s in skeletons]
    events = [e for s in skeletons for e in s.events.values()]
    everything = [w for text in (*scenarios, *events) for w in words(text)]
    found: dict[str, float | int] = {
        "scenarios": len(scenarios),
        "events": len(events),
        "words": len(everything),
        "distinct_words": len(set(everything)),
        "openings": len({tuple(words(s)[:2]) for s in scenarios}),
        "scenario_words": float(np.mean([len(words(s)) for s in scenarios])),
        "event_words": float(np.mean([len(words(e)) for e in events])),
    }
    for name, texts in (("scenario", scenarios), ("whole", [whole(s) for s in skeletons])):
        near = [n.jaccard for n in nearest(texts)]
        found |= {f"jaccard_{name}_mean": float(np.mean(near)), f"jaccard_{name}_max": max(near)}
    return found | {"with_emotion_words": len(emotion_words(skeletons))}


def emotion_words(skeletons: Sequence[Skeleton]) -> list[tuple[str, str, str]]:
    """Skeleton id, word and text of every scenario and event that names an emotion; none should."""
    return [
        (s.skeleton_id, found[0], text)
        for s in skeletons
        for text in (s.scenario, *s.events.values())
        if (found := EMOTION_WORDS.search(text))
    ]
