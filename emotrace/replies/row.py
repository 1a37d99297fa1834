"""Row: a reply of a model as every room hands it on and files hold it, each field that emotrace knows checked for its type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict, cast, get_type_hints

import numpy as np

from emotrace.files import read_jsonl
from emotrace.labels import EmotraceError
from emotrace.signatures import typed

NAMED_BY: Final = ("key", "method", "draw")
"""The fields that tell rows apart."""


class Judged(TypedDict, total=False):
    """A verdict on a reply: what was ``predicted``, and whether it is what was aimed at (1, 0, None for *unjudged*)."""

    predicted: str | None
    match: int | None
    judge: str
    reason: str


class Meta(TypedDict, total=False):
    """How a reply came about and what it was found to be; ``made``: digests of what made it, its verdict and its perplexity."""

    prompt_length: int
    prefill: int
    stopped: bool
    decoding: dict[str, Any]
    edits: str
    weights: str | None
    made: dict[str, Any]
    perplexity: float | None
    length: int
    repetition: float
    fluent: bool
    kl: float


class Named(TypedDict):
    """A row has a name, if only its key."""

    key: str


class Own(Named, total=False):
    """What a row has of its own: what names it, text and tokens, verdicts and measurements, and ``meta``."""

    method: str
    draw: int
    gen_text: str
    token_ids: list[int]
    verdict: Judged
    verdict_from_third: Judged
    verdict_target: Judged
    verdict_second: Judged
    judge: Judged
    meta: Meta
    measures: dict[str, float]
    ratings: dict[str, Any]
    substring: int


class Row(Own, total=False):
    """One reply: its `Own` fields, and labels of its prompt.

    The labels named here are those of our data sets; a row may carry others, which `label_of` reads.
    """

    emotion: str
    valence: str
    skeleton_id: str
    theme: str
    scenario: str
    event: str
    prompt: str
    query: str
    query_id: str
    question: str
    question_id: str
    condition: str
    dose: float


OWN: Final = tuple(get_type_hints(Own))
"""Fields of a row that are not labels of its prompt."""


def label_of(row: Mapping[str, Any], name: str) -> Any:
    """A field of a row that must be there.

    Raises:
        EmotraceError: naming the row and what it has.
    """
    found = row.get(name)
    if found is None:
        raise EmotraceError(f"row {row.get('key')!r} has no {name!r}; it has {', '.join(map(str, row))}.")
    return found


def cluster_of(rows: Iterable[Mapping[str, Any]], asked: str | None = None) -> str:
    """The label by which rows belong together: what was asked, or the first of the usual ones that every row has.

    Raises:
        EmotraceError: for a label that a row lacks.
    """
    rows = list(rows)
    if asked is not None:
        for row in rows:
            label_of(row, asked)
        return asked
    for name in ("prompt", "skeleton_id", "query_id", "question_id", "key"):
        if all(row.get(name) is not None for row in rows):
            return name
    raise EmotraceError("rows have neither prompt, skeleton_id, query_id, question_id nor key to be grouped by.")


def query_of(row: Mapping[str, Any]) -> str:
    """What a reply replies to; empty where the row does not say."""
    for name in ("query", "question"):
        if isinstance(row.get(name), str):
            return row[name]
    return "\n".join(str(row[name]) for name in ("scenario", "event") if row.get(name))


def plain_key(row: Mapping[str, Any]) -> str:
    """The key of the prompt that asks what this row's prompt asks, without the emotion."""
    named = row.get("prompt")
    if named is not None:
        return str(named)
    return f"{label_of(row, 'skeleton_id')}__{label_of(row, 'valence')}".replace("/", "_")


@typed
def read_rows(path: str | Path, *needed: str, what: str = "a row") -> list[Row]:
    """The rows of a JSON-lines file of replies.

    Args:
        path: the file.
        needed: fields that every row must have (``verdict|judge``: one of the two); others of `CHECKED` may be null.
        what: that a row is to be, for messages.

    Returns:
        At least one row.

    Raises:
        EmotraceError: naming file and line, as `emotrace.files.read_jsonl`, for a field of another type than `CHECKED` says, a
            needed one that is missing, or no row at all.
    """
    rows: list[Row] = []
    for where, row in read_jsonl(path, halves=True):
        for name in needed:
            if all(row.get(one) is None for one in name.split("|")):
                have = ", ".join(row) or "nothing"
                raise EmotraceError(
                    f"{where}: {what} has the field {name.replace('|', ' or ')!r}; this row has: {have}."
                )
        check_row(row, where)
        rows.append(cast("Row", row))
    if not rows:
        raise EmotraceError(f"{path} has no rows.")
    return rows


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Refuse a row whose known fields are of another type than `CHECKED` says.

    Raises:
        EmotraceError: naming the place, the field and what it is.
    """
    for name, (what, right) in CHECKED.items():
        value = row.get(name)
        if value is not None and not right(value):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
            raise EmotraceError(f"{where}: field {name!r} is {shown}; {what} is due.")


def refuse_other_prompt(row: Mapping[str, Any], labels: Mapping[str, Any], where: str) -> None:
    """Refuse a reply that has a prompt's key and belongs to another one: a label that both carry differs.

    Args:
        row: of `emotrace.generate` or a judge.
        labels: of the prompt; None, NaN and empty ones are not known.
        where: the place of the row, for the message.

    Raises:
        EmotraceError: naming the row and every difference.
    """
    known = {n: v for n, v in labels.items() if n in row and n not in OWN and v is not None and v == v and v != ""}
    told = [f"{n}: {row[n]!r} there, {v!r} now" for n, v in known.items() if row[n] != v]
    if told:
        shown = "; ".join(one if len(one) <= 200 else f"{one[:200]}…" for one in told)
        raise EmotraceError(f"{where}: the row {row.get('key')!r} is a reply to another prompt ({shown}).")


def _text(value: object) -> bool:
    """A text that every file and tokenizer takes."""
    return isinstance(value, str) and not has_half(value)


def has_half(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, as replies and reasons from elsewhere sometimes do."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _said(value: object) -> bool:
    """What a model said, with whatever halves of characters."""
    return isinstance(value, str)


def _name(value: object) -> bool:
    return isinstance(value, str) and _text(value) and bool(value.strip())


def _ids(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(_count(i) for i in value)


def _count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) < 2**63


def _label(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _verdict(value: object) -> bool:
    """Blind and target-aware verdicts, and the published ones."""
    if not isinstance(value, Mapping):
        return False
    texts = all(value.get(name) is None or _said(value[name]) for name in ("predicted", "judge", "reason"))
    match = value.get("match")
    return texts and (match is None or (isinstance(match, int) and match in (0, 1)))


def _meta(value: object) -> bool:
    """Numbers under the names that emotrace gives them; anything under others."""
    measured = ("perplexity", "length", "repetition", "kl", "prompt_length")
    if not isinstance(value, Mapping) or not all(value.get(n) is None or _number(value[n]) for n in measured):
        return False
    return value.get("perplexity") is None or value["perplexity"] > 0


def _ratings(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(rating, Mapping) for rating in value.values())


_A_VERDICT: Final = "{predicted, match: 0 | 1 | null, judge, reason}"
CHECKED: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "key": ("a text", _name),
    "method": ("a name", _name),
    "draw": ("a whole number from 0", _count),
    "emotion": ("a name", _text),
    "gen_text": ("a text", _said),
    "token_ids": ("a list of token ids", _ids),
    "verdict": (_A_VERDICT, _verdict),
    "verdict_from_third": (_A_VERDICT, _verdict),
    "verdict_target": (_A_VERDICT, _verdict),
    "verdict_second": (_A_VERDICT, _verdict),
    "judge": (_A_VERDICT, _verdict),
    "meta": ("an object with numbers, perplexity above 0,", _meta),
    "ratings": ("an object with one rating under each name", _ratings),
    **dict.fromkeys(
        ("skeleton_id", "theme", "valence", "query_id", "question_id", "prompt"), ("a text or a number", _label)
    ),
    **dict.fromkeys(("query", "question", "scenario"), ("a text", _text)),
    "dose": ("a number", _number),
}
"""Field → what it holds, and whether a value is that."""
