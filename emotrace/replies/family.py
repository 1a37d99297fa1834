"""Family: comparisons between arms, each with its test, their p corrected over all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NotRequired

import numpy as np

from emotrace import arguments
from emotrace.labels import same_emotion, unknown
from emotrace.replies.arms import LOWEST, SCORES, Score
from emotrace.replies.paired import Difference, Test, fluent_test, paired_test
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import finite_mean, match_of, table
from emotrace.signatures import typed
from emotrace.stats.corrections import holm

ALPHA: Final = 0.05
"""Of the family."""
AS_PAYLOAD: Final = "read as the payload's emotion"
"""Name of the rows of ``wrong_payload`` when they are asked for the emotion of what was added, not of where."""
EQUAL_KL: Final = "accuracy_fluent at equal KL"
"""Score of comparisons that `frontiers` makes."""


class Comparison(NamedTuple):
    """That one arm scores higher than another.

    Attributes:
        a: which should be higher.
        b: which should be lower.
        score: one of `SCORES`, or `EQUAL_KL`.
    """

    a: str
    b: str
    score: str = "accuracy_fluent"


class Tested(Test):
    """A comparison: its two arms and score, a − b with interval, p as it is and corrected over the family.

    Attributes:
        a: arm.
        b: arm; of several draws the one that is hardest to beat.
        score: one of `SCORES`, or `EQUAL_KL`.
        p_holm: corrected over the family.
        holds: a is above b, and ``p_holm`` is below `ALPHA`.
        kl: at which, for `EQUAL_KL`.
    """

    a: str
    b: str
    score: str
    p_holm: float
    holds: bool
    kl: NotRequired[float]


@typed
def compared(
    rows: Iterable[Row],
    comparisons: Sequence[Comparison],
    *,
    given: Sequence[Mapping[str, Any]] = (),
    verdict: str = "verdict",
    cluster: str = "skeleton_id",
    permutations: int = 10_000,
    seed: int = 0,
) -> dict[Comparison, Tested]:
    """The tests of comparisons, one family; those whose replies are missing are left out.

    Of a control that was drawn several times the draw counts that is hardest to beat, of other arms the mean over draws.

    Args:
        rows: judged rows of all arms, with ``meta.fluent``; ``wrong_payload`` also with ``payload_emotion``.
        comparisons: of the family.
        given: tests of `EQUAL_KL` comparisons, of `frontiers`.
        verdict: that is tested where a score reads the blind one: ``verdict``, or ``verdict_second``.
        cluster: label that is exchanged and drawn as a whole.
        permutations: of each test.
        seed: of each test.

    Raises:
        EmotraceError: for an unknown score, or rows without what a score reads.
    """
    arguments.resampling("compared", seed, permutations=permutations)
    by_arm = _arms(rows, verdict)
    options: dict[str, Any] = {"cluster": cluster, "permutations": permutations, "seed": seed}
    scores = {
        name: score._replace(verdict=verdict) if score.verdict == "verdict" else score for name, score in SCORES.items()
    }
    found = {c: _tested(by_arm, c, scores, given, options) for c in comparisons}
    family: dict[Comparison, Any] = {c: test for c, test in found.items() if test is not None}
    corrected = holm([test["p"] for test in family.values()]) if family else []
    for test, p in zip(family.values(), corrected, strict=True):
        test |= {"p_holm": float(p), "holds": bool(test["difference"] > 0 and p < ALPHA)}
    return family


@typed
def reread(rows: Iterable[Row], label: str, verdict: str = "verdict") -> list[Row]:
    """The same replies, asked whether they express the emotion that another of their labels names.

    Args:
        rows: judged, with the label.
        label: e.g. ``payload_emotion``.
        verdict: whose ``match`` is made anew from its ``predicted`` (joy = happiness).

    Raises:
        EmotraceError: for a row without the label.
    """
    found: list[Row] = []
    for row in rows:
        said, aim = dict(row.get(verdict) or {}), label_of(row, label)
        if said.get("predicted") is not None:
            said["match"] = int(same_emotion(said["predicted"], aim))
        new: Any = {**row, "emotion": aim, verdict: said}
        found.append(new)
    return found


def _arms(rows: Iterable[Row], verdict: str) -> dict[str, list[Row]]:
    by_arm: dict[str, list[Row]] = {}
    for row in rows:
        by_arm.setdefault(str(row.get("method")), []).append(row)
    if "wrong_payload" in by_arm:
        by_arm[AS_PAYLOAD] = reread(by_arm["wrong_payload"], "payload_emotion", verdict)
    return by_arm


def _tested(
    by_arm: Mapping[str, list[Row]],
    comparison: Comparison,
    scores: Mapping[str, Score],
    given: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The test of a comparison; None where an arm, or what the score reads of it, is missing."""
    a, b, score = comparison
    named: dict[str, Any] = {"a": a, "b": b, "score": score}
    if score == EQUAL_KL:
        return next(({**test, **named} for test in given if (test["a"], test["b"]) == (a, b)), None)
    if score not in scores:
        raise unknown("score", score, (*scores, EQUAL_KL), "claims")
    how = scores[score]
    if any(_nothing(by_arm.get(arm, ()), how) for arm in (a, b)):
        return None
    mine = _hardest(by_arm[a], how, -1) if a in LOWEST else by_arm[a]
    theirs = by_arm[b] if b in LOWEST else _hardest(by_arm[b], how, 1)
    if how.given_fluent:
        return {**named, **_of(fluent_test(mine, theirs, verdict=how.verdict, **options))}
    return {**named, **_of(paired_test(mine, theirs, verdict=how.verdict, fluent=how.fluent, **options))}


def _of(found: Difference) -> Test:
    return {
        "difference": found["value"], "ci95": found["ci95"], "p": found["p"], "p_floor": found["p_floor"], "n": found["n"],
        "n_skeletons": found["n_clusters"],
    }  # fmt: skip


def _nothing(rows: Sequence[Row], how: Score) -> bool:
    """Whether an arm has no reply that the score counts."""
    judged = [row for row in rows if match_of(row, how.verdict) is not None]
    return not (any((row.get("meta") or {}).get("fluent") for row in judged) if how.given_fluent else judged)


def _hardest(rows: Sequence[Row], how: Score, sign: int) -> list[Row]:
    """Of several draws of a control the one that is hardest to tell from what it controls: the highest, or the lowest."""
    draws = sorted({row.get("draw", 0) for row in rows})
    parts = [[row for row in rows if row.get("draw", 0) == draw] for draw in draws]
    column = "fluent_match" if how.fluent else "match"

    def value(part: list[Row]) -> float:
        counted = [r for r in part if not how.given_fluent or (r.get("meta") or {}).get("fluent")]
        mean = finite_mean(table(counted, (column,), verdict=how.verdict)[column].astype(float)) if counted else np.nan
        return -np.inf if np.isnan(mean) else sign * mean

    return max(parts, key=value)
