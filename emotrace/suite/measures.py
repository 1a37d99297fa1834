"""Measures: what one reply looks like, from its text alone. Nothing here asks a model.

All of the output only: the prompt is never part of what is measured.
"""

from __future__ import annotations

import math
import re
from typing import Final

from emotrace.judges import lexicon
from emotrace.labels import EMOTIONS, EmotraceError, emotion
from emotrace.replies.fluency import repetition
from emotrace.replies.row import Row
from emotrace.replies.texts import DISCLAIMER, WIDER, cleaned, distinct
from emotrace.signatures import typed

TEXT: Final = (
    "words", "tokens", "empty", "distinct_1", "distinct_2", "distinct_3", "repetition", "exclamations", "disclaimer",
    "disclaimer_wide",
)  # fmt: skip
PROFILE: Final = tuple(f"lexicon_{name}" for name in EMOTIONS)
_STOP: Final = (
    "a about after again all also am an and any are as at be because been before being but by can could did do does doing "
    "down for from get give go had has have having he her here hers him his how i if in into is it its just let like make "
    "may me might more most must my no nor not now of off on once one only or other our out over own please same say "
    "shall she should so some such take tell than that the their them then there these they thing think this those "
    "through to too under until up us very was we were what when where which while who whom why will with would you "
    "your yours feel feeling reaction react respond"
)
STOP: Final = frozenset(_STOP.split())
"""Words that carry no topic; with those by which the queries of Emotion Vectors ask for a feeling."""
_WORD: Final = re.compile(r"[^\W\d_]+")


def of_text(row: Row) -> dict[str, float]:
    """The measures of a reply's text.

    Args:
        row: with ``gen_text``, and perhaps ``token_ids``.

    Returns:
        ``words``; ``tokens`` (NaN without ids); ``empty`` (0 or 1); ``distinct_n``: share of distinct n-grams among the
        lower-case words, NaN below n words; ``repetition``: share of repeated 3-grams of tokens (of words without ids);
        ``exclamations``; ``disclaimer``: 1 where it says that it is a language model, ``disclaimer_wide`` in further words
        too; ``lexicon_{emotion}``: score of each emotion's cues.

    Raises:
        EmotraceError: for a row without a text.
    """
    if not isinstance(row.get("gen_text"), str):
        raise EmotraceError(f"row {row.get('key')!r} has no text in 'gen_text'; it has {', '.join(map(str, row))}.")
    text, ids = cleaned(row["gen_text"]), row.get("token_ids")
    words = text.split()
    places = {word: i for i, word in enumerate(dict.fromkeys(w.lower() for w in words))}
    scores = lexicon.score(text)
    return {
        "words": float(len(words)),
        "tokens": math.nan if ids is None else float(len(ids)),
        "empty": float(not text),
        **{f"distinct_{n}": distinct(text, n) for n in (1, 2, 3)},
        "repetition": repetition([places[w.lower()] for w in words] if ids is None else ids),
        "exclamations": float(text.count("!")),
        "disclaimer": float(bool(DISCLAIMER.search(text))),
        "disclaimer_wide": float(bool(WIDER.search(text))),
        **{f"lexicon_{name}": float(scores[name]) for name in EMOTIONS},
    }


def content_words(text: str) -> set[str]:
    """Lower-case words of a text that carry its topic, a plural s taken off."""
    found = {word for word in _WORD.findall(text.lower()) if word not in STOP and len(word) > 1}
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found}


@typed
def overlap(reply: str, query: str) -> float:
    """Share of the query's content words that the reply takes up, 0..1; NaN for a query without any.

    A proxy for topic adherence: a good reply in other words scores 0, a reply that only repeats the query scores 1.
    """
    wanted = content_words(query)
    return len(wanted & content_words(reply)) / len(wanted) if wanted else math.nan


def intensity(reply: str, asked: str) -> float:
    """Score of the cues of one emotion in a reply, 0 for none, without an upper end; the lexicon's, so a proxy.

    Raises:
        EmotraceError: for an emotion that the lexicon does not know.
    """
    return float(lexicon.score(cleaned(reply))[emotion(asked, EMOTIONS, "the lexicon")])
