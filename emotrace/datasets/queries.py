"""Queries: EmotionQuery, EmotionQuery+ and any file of questions to be answered with and without an emotion.

Formats of Emotion Vectors (arXiv 2502.04075): EmotionQuery is a JSON object emotion → list of queries, EmotionQuery+ a flat
list without labels. The published files repeat queries (448 of 500 are distinct), and 249 of the 250 emotional queries of
the second are in the first, from which vectors are made: so repeats are dropped here, a part is held out, and
`query_report` counts both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from emotrace import arguments, labels
from emotrace.datasets.overlap import hold_out, leaked, normalised, repeated
from emotrace.datasets.prompts import Prompt, Prompts
from emotrace.datasets.tables import open_table, text_of
from emotrace.files import read_json
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed

PARTS: Final = ("fit", "held_out", "all")
Part = Literal["fit", "held_out", "all"]
_TEXT: Final = ("query", "question", "text")


@dataclass(frozen=True)
class Query:
    """A question or request.

    Attributes:
        query_id: unique in its file: ``{emotion}_{place}`` or ``query_{place}``.
        text: as it stands in the file.
        emotion: that it is meant to call for; empty where the file does not say.
    """

    query_id: str
    text: str
    emotion: str = ""


@typed
def read_queries(source: str | Path) -> list[Query]:
    """The queries of a file, in its order.

    Args:
        source: a JSON object emotion → list of texts (EmotionQuery), a JSON list of texts (EmotionQuery+), or rows with
            ``query`` (or ``question``, ``text``) and perhaps ``emotion`` in any form of `emotrace.datasets.tables`.

    Raises:
        EmotraceError: for another shape, an empty text, or a file without queries.
    """
    found: list[tuple[str, str]]
    value = read_json(source) if Path(source).suffix.lower() == ".json" else None
    if isinstance(value, dict):
        found = []
        for emotion, texts in value.items():
            if not emotion.strip() or not isinstance(texts, list):
                raise EmotraceError(f"{source}: {emotion!r} is {type(texts).__name__}, not an emotion's list of texts.")
            found += [(emotion.strip().lower(), text) for text in texts]
    elif isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        found = [("", text) for text in value]
    elif value is not None and not isinstance(value, list):
        raise EmotraceError(f"{source}: an object of lists or a list of texts is due, not {type(value).__name__}.")
    else:
        found = [_row(row, where) for where, row in open_table(source, split="train").rows]
    out: list[Query] = []
    counts: Counter[str] = Counter()
    for emotion, text in found:
        name = emotion or "query"
        if not isinstance(text, str) or not text.strip():
            raise EmotraceError(f"{source}: query {counts[name]} of {name!r} is {text!r}, not text.")
        out.append(Query(f"{name}_{counts[name]:03d}", text, emotion))
        counts[name] += 1
    if not out:
        raise EmotraceError(f"{source} has no queries.")
    return out


@typed
def emotion_query(
    source: str | Path | Sequence[Query],
    *,
    emotions: Sequence[str] | None = None,
    part: Part = "fit",
    held_out: float = 0.2,
    duplicates: bool = False,
    exclude: Sequence[Query] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Prompts:
    """Queries as prompts of one user message: those to make vectors from, or those held out to measure on.

    Args:
        source: a file (`read_queries`), or queries.
        emotions: to take, in the file's words or their alias; None for all, with unlabelled queries.
        part: ``fit``, ``held_out`` or ``all``; the first two share no text.
        held_out: share of the distinct queries of each emotion that is held out.
        duplicates: keep repeats of a text, as published; otherwise the first stands.
        exclude: queries whose texts are left out, e.g. those that vectors were made from.
        limit: most queries of each emotion, the first of the part.
        seed: of the split.

    Returns:
        Prompts with the labels ``query_id``, ``emotion`` and ``query``; the key is the query's id.

    Raises:
        EmotraceError: as `read_queries`; for an unknown emotion or part; if nothing is left.
    """
    queries = read_queries(source) if isinstance(source, (str, Path)) else list(source)
    if part not in PARTS:
        raise unknown("part", part, PARTS, "emotion_query(part=…)")
    emotions = None if emotions is None else arguments.names("emotion_query(emotions)", emotions)
    if limit is not None:
        arguments.whole("emotion_query(limit)", limit, 1)
    drop = set(leaked([q.text for q in queries], [q.text for q in exclude]))
    drop |= set() if duplicates else set(repeated([q.text for q in queries]))
    queries = [q for i, q in enumerate(queries) if i not in drop]
    if emotions is not None:
        names = tuple(dict.fromkeys(q.emotion for q in queries))
        wanted = {labels.emotion(e, names, "emotion_query(emotions=…)") for e in emotions}
        queries = [q for q in queries if q.emotion in wanted]
    prompts = Prompts(
        Prompt(
            q.query_id.replace("/", "_"),
            messages=({"role": "user", "content": q.text},),
            labels={"query_id": q.query_id, "emotion": q.emotion, "query": q.text},
        )
        for q in queries
    )
    if part != "all":
        prompts = hold_out(prompts, held_out, seed)[PARTS.index(part)]
    if limit is None:
        return prompts
    taken: Counter[str] = Counter()
    first = []
    for p in prompts:
        taken[str(p.labels["emotion"])] += 1
        if taken[str(p.labels["emotion"])] <= limit:
            first.append(p)
    return Prompts(first)


class Counted(TypedDict):
    """Queries, and how many of them are distinct."""

    n: int
    n_distinct: int


class QueryReport(Counted):
    """What `query_report` counts.

    Attributes:
        by_emotion: of each.
        n_across_emotions: distinct texts that stand under two emotions.
        repeated: ids of queries whose text was there before.
        n_leaked: queries that are in the other set.
        leaked: their ids.
    """

    by_emotion: dict[str, Counted]
    n_across_emotions: int
    repeated: list[str]
    n_leaked: int
    leaked: list[str]


@typed
def query_report(queries: Sequence[Query], against: Sequence[Query] = ()) -> QueryReport:
    """How many queries are distinct, and how many are in another set.

    Args:
        queries: of one file.
        against: of another, e.g. the one that vectors are made from.

    Returns:
        A `QueryReport`.
    """
    texts = [q.text for q in queries]
    groups: dict[str, list[str]] = {}
    for q in queries:
        groups.setdefault(q.emotion, []).append(q.text)
    distinct = {e: {normalised(t) for t in mine} for e, mine in groups.items()}
    under = Counter(text for mine in distinct.values() for text in mine)
    found = leaked(texts, [q.text for q in against])
    return {
        "n": len(queries),
        "n_distinct": len(under),
        "by_emotion": {e: {"n": len(groups[e]), "n_distinct": len(distinct[e])} for e in groups},
        "n_across_emotions": sum(n > 1 for n in under.values()),
        "repeated": [queries[i].query_id for i in repeated(texts)],
        "n_leaked": len(found),
        "leaked": [queries[i].query_id for i in found],
    }


def _row(row: dict[str, Any], where: str) -> tuple[str, str]:
    name = next((name for name in _TEXT if name in row), _TEXT[0])
    emotion = row.get("emotion") or ""
    if not isinstance(emotion, str):
        raise EmotraceError(f"{where}: field 'emotion' is {emotion!r}, not a name.")
    return emotion.strip().lower(), text_of(row, name, where)
