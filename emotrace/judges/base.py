"""Base: what a judge is, what it answers, and the two ways in which it may leave a text unjudged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

from emotrace import disk

EMPTY = "empty text"
"""The reason of a text that no judge was asked about."""
ENDPOINT = "endpoint: "
"""Prefix of the reason of a text that failed on the way, not by an answer: a later run asks again."""


class Verdict(TypedDict):
    """A blind answer: one of `labels.ANSWERS`, or None for *unjudged*, with the reason."""

    predicted: str | None
    judge: str
    reason: str


class TargetVerdict(TypedDict):
    """An answer to the published target-aware question: 1, 0, or None for *unjudged*."""

    match: int | None
    judge: str
    reason: str


@runtime_checkable
class Judge(Protocol):
    """Names the emotion of a text without knowing which one was asked for.

    Where it has an ``identity`` (JSON values: whatever beside the name its answers depend on), verdicts of another identity
    are never taken for its own.
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


def is_final(verdict: Mapping[str, Any]) -> bool:
    """Say whether a verdict (or a rating) stands, or failed on the way and should be asked for again."""
    answer = next(verdict[name] for name in ("predicted", "match", "value") if name in verdict)
    return answer is not None or not verdict["reason"].startswith(ENDPOINT)


def record(judge: Any, text: str) -> dict[str, str]:
    """What a verdict or rating was made from: who judged, with which settings, and the text."""
    return {
        "judge": judge.name,
        "judge_settings": disk.digest(getattr(judge, "identity", {})),
        "text": disk.digest(text),
    }
