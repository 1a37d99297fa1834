"""Base: what a judge is, what it answers, and the two ways in which it may leave a text unjudged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict, runtime_checkable

import numpy as np

from emotrace import arguments, disk
from emotrace.labels import ANSWERS, EmotraceError, emotion
from emotrace.signatures import typed

EMPTY = "empty text"
"""The reason of a text that no judge was asked about."""
ENDPOINT = "endpoint: "
"""Prefix of the reason of a text that failed on the way, not by an answer: a later run asks again."""


class Verdict(TypedDict):
    """A blind answer: the name of an emotion, ``neutral``, or None for *unjudged*, with the reason."""

    predicted: str | None
    judge: str
    reason: str


class TargetVerdict(TypedDict):
    """An answer to the published target-aware question: 1, 0, or None for *unjudged*."""

    match: int | None
    judge: str
    reason: str


class Named(Protocol):
    """A judge or a rater, in so far as its answers are told from those of another."""

    @property
    def name(self) -> str:
        """What files say."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Names the emotion of a text without knowing which one was asked for.

    Where it has ``choices`` (names), it answers one of them and nothing else, and is given only rows whose emotion is among them:
    `judge_rows` refuses others before the first judgement, naming them, since a reply that asks for what a judge cannot say would
    count as a miss. The shipped judges know `labels.ANSWERS`; one of the user's own may name any emotions.
    Where it has ``depends_on`` (JSON values: whatever beside the name its answers depend on), verdicts of other values
    are never taken for its own. Where it has none, its class's code stands for it: verdicts of another class of that name, or of
    other code, are refused, while two objects of one class that answer differently are told apart by their names alone. One
    without ``depends_on`` whose code cannot be read (typed at a prompt, say) may judge, but continues no file.
    """

    @property
    def name(self) -> str:
        """What signs the verdicts, e.g. ``openai:gpt-4o-mini``."""
        ...

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """One verdict per text, in order; each text is judged alone."""
        ...


@runtime_checkable
class TargetJudge(Judge, Protocol):
    """A judge that can also be asked whether a text matches a given emotion."""

    def judge_target(
        self, texts: Sequence[str], targets: Sequence[str], *, progress: bool = False
    ) -> list[TargetVerdict]:
        """One verdict per (text, target), in order."""
        ...


@runtime_checkable
class StreamingJudge(Judge, Protocol):
    """A judge whose verdicts arrive one by one, so that each can be committed when it is paid for."""

    def iter_judge(self, texts: Sequence[str], *, progress: bool = False) -> Iterator[Verdict]:
        """The verdicts of `judge`, in order, as they arrive."""
        ...


@runtime_checkable
class StreamingTargetJudge(TargetJudge, Protocol):
    """The same for the target-aware question."""

    def iter_judge_target(
        self, texts: Sequence[str], targets: Sequence[str], *, progress: bool = False
    ) -> Iterator[TargetVerdict]:
        """The verdicts of `judge_target`, in order, as they arrive."""
        ...


@typed
def is_final(verdict: Mapping[str, Any]) -> bool:
    """Say whether a verdict (or a rating) stands, or failed on the way and should be asked for again."""
    answer = next(verdict[name] for name in ("predicted", "match", "value") if name in verdict)
    return answer is not None or not verdict["reason"].startswith(ENDPOINT)


def texts_of(who: str, texts: Iterable[str]) -> list[str]:
    """The texts that somebody is to judge, as a list.

    Raises:
        EmotraceError: for one text alone, or anything among them that is none.
    """
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise EmotraceError(f"{arguments.said(f'{who}: texts', texts)}: a list of texts is due.")
    found = list(texts)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise EmotraceError(f"{arguments.said(f'{who}: text {i}', text)}: a text is due.")
    return [str(text) for text in found]


def named(name: str, choices: Sequence[str] | None, place: str) -> str:
    """An emotion as a judge names it: one of its choices, or where it says none, any name (joy = happiness).

    Raises:
        EmotraceError: for another name than its choices, or a misspelt one of `labels.ANSWERS`.
    """
    return emotion(name, ANSWERS, place, own=True) if choices is None else emotion(name, choices, place)


def in_order(found: object, n: int, who: str, choices: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The answers of a judge or rater of anyone's, one for each of ``n`` texts, as JSON holds them.

    Args:
        found: what it gave, as a list or one by one.
        n: how many texts it was given.
        who: its name.
        choices: what it may answer; None for any name.

    Raises:
        EmotraceError: for fewer or more answers than texts, before any of a list is taken for a text's, and for an answer that is
            none: no mapping, another word than ``choices``, a match other than 0 or 1, a rating that is no number.
    """
    if isinstance(found, Sized) and len(found) != n:
        raise EmotraceError(f"judge {who!r} gave {len(found)} answers to {n} texts; one for each, in order, is due.")
    if not isinstance(found, Iterable):
        raise EmotraceError(f"judge {who!r} gave {found!r}; one answer for each text, in order, is due.")
    end = object()
    given = iter(found)
    for i in range(n):
        answer = next(given, end)
        if answer is end:
            raise EmotraceError(f"judge {who!r} gave fewer answers than it was given texts: {i} to {n}.")
        if i + 1 == n and next(given, end) is not end:
            raise EmotraceError(f"judge {who!r} gave more answers than it was given texts ({n}).")
        yield _plain(answer, who, f"answer {i} of judge {who!r}", choices)


def _plain(answer: object, who: str, where: str, choices: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(answer, Mapping) or not (names := [name for name in _ANSWERS if name in answer]):
        raise EmotraceError(f"{arguments.said(where, answer)}: an object with {' or '.join(_ANSWERS)} is due.")
    found = dict(answer)
    for name in names:
        value = found[name]
        if value is not None:
            place = f"{where}: {name}"
            found[name] = named(value, choices, place) if name == "predicted" else _ANSWERS[name](place, value)
    return {**found, "judge": str(found.get("judge") or who), "reason": str(found.get("reason") or "")}


def _match(name: str, value: object) -> int:
    return int(value) if isinstance(value, (bool, np.bool_)) else arguments.whole(name, value, 0, 1)


_ANSWERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "predicted": arguments.text,
    "match": _match,
    "value": arguments.number,
}


def record(judge: Named, text: str) -> dict[str, str]:
    """What a verdict or rating was made from: who judged, with which settings, and the text."""
    settings = getattr(judge, "depends_on", {"code": _code(type(judge))})
    return {"judge": judge.name, "judge_settings": disk.digest(settings), "text": disk.digest(text)}


def same_judge(
    path: str | Path, made: Mapping[str, Any] | None, now: Mapping[str, Any], judge: Named, what: str
) -> None:
    """Refuse to take the verdict or rating of another judge, other settings or another text for one of this judge.

    Args:
        path: of the file, for the message.
        made: what the verdict was made from; None where that is not recorded.
        now: what it would be made from: `record`, and whatever else it depends on.
        judge: who would give it.
        what: which verdict, e.g. ``row 'a'``.

    Raises:
        EmotraceError: naming every difference; or for a judge of which nothing but the name is known.
    """
    if not hasattr(judge, "depends_on") and _code(type(judge)) is None:
        raise EmotraceError(
            f"{path}: {what} was judged already, and judge {judge.name!r} has no 'depends_on', nor can its code be read, by"
            " which one could tell whether it was the same one. Give the judge a depends_on (JSON: what its answers depend on),"
            " or another file."
        )
    disk.settle(path, made, now, what=what)


@lru_cache(maxsize=64)
def _code(kind: type) -> list[str] | None:
    """The source of a class and of those that it inherits from; None where it cannot be read."""
    try:
        return [inspect.getsource(k) for k in kind.__mro__ if k.__module__ not in ("builtins", "typing")]
    except (OSError, TypeError):
        return None
