"""Arms (``method`` of a row): judged replies of all → tables of a report; of random controls the draw that is hardest to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from emotrace.arms import ARMS
from emotrace.labels import EmotraceError, unknown
from emotrace.replies.accuracy import Accuracy, Share, accuracy_table, confusion_table
from emotrace.replies.agreement import agreement_table, judged_by_both
from emotrace.replies.paired import Difference, paired_test
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import match_of
from emotrace.signatures import typed

LOWEST: Final = tuple(arm.name for arm in ARMS.values() if arm.lowest)
"""Controls that are the harder to tell from the real thing the *lower* they score: their lowest draw is shown."""


class Score(NamedTuple):
    """A way to count replies.

    Attributes:
        verdict: field of a row.
        fluent: a match counts only where the reply is fluent.
        given_fluent: only fluent replies are counted at all.
    """

    verdict: str = "verdict"
    fluent: bool = False
    given_fluent: bool = False


SCORES: Final = {
    "accuracy": Score(),
    "accuracy_fluent": Score(fluent=True),
    "accuracy_given_fluent": Score(given_fluent=True),
    "accuracy_from_third": Score("verdict_from_third"),
    "accuracy_target": Score("verdict_target"),
    "accuracy_second": Score("verdict_second"),
    "accuracy_second_fluent": Score("verdict_second", fluent=True),
}
"""Part of ``report.json`` → how its replies are counted."""


@typed
def accuracy_over_draws(
    rows: Sequence[Row], *, verdict: str = "verdict", fluent: bool = False, given_fluent: bool = False
) -> Accuracy:
    """``overall``, ``by_emotion`` and ``by_valence`` of one arm; over several draws the maximum, with all draws beside it.

    Of the controls in `LOWEST` it is the minimum.

    Args:
        rows: of one arm, one or more draws.
        verdict: which verdict counts, ``verdict`` (blind), ``verdict_from_third``, ``verdict_second`` (another judge's) or
            ``verdict_target``.
        fluent: a reply counts only if it is fluent too (``accuracy_fluent``).
        given_fluent: only fluent replies are counted at all (``accuracy_given_fluent``).
    """
    draws = sorted({row.get("draw", 0) for row in rows}) or [0]
    how: dict[str, Any] = {"verdict": verdict, "fluent": fluent, "given_fluent": given_fluent}
    tables = [accuracy_table([r for r in rows if r.get("draw", 0) == d], **how) for d in draws]
    if len(tables) == 1:
        return tables[0]
    sign = -1 if rows[0].get("method") in LOWEST else 1

    def rank(leaf: Share) -> float:
        return -math.inf if leaf["value"] is None else sign * leaf["value"]

    best = max(tables, key=lambda t: rank(t["overall"]))

    def joined(leaves: Sequence[Share]) -> Share:
        values = [leaf["value"] for leaf in leaves]
        known = [v for v in values if v is not None]
        return {**max(leaves, key=rank), "mean": float(np.mean(known)) if known else None, "draws": values}

    def parts(of: Callable[[Accuracy], dict[str, Share]]) -> dict[str, Share]:
        names = dict.fromkeys(name for t in (best, *tables) for name in of(t))  # a draw may lack one
        return {name: joined([of(t)[name] for t in tables if name in of(t)]) for name in names}

    return {
        "overall": joined([t["overall"] for t in tables]),
        "by_emotion": parts(lambda t: t["by_emotion"]),
        "by_valence": parts(lambda t: t["by_valence"]),
    }


@typed
def summary(rows: Sequence[Row], reference: str = "none") -> dict[str, Any]:
    """The tables of a report: each accuracy of `SCORES` that rows have a verdict for, lift over ``reference``, confusion,
    fluency.

    Where rows have the verdict of a second judge, its accuracies and the agreement of both stand beside.

    Args:
        rows: judged rows of all arms, with ``meta.fluent``.
        reference: arm that lifts are measured against.

    Raises:
        EmotraceError: for no rows, or those of an arm that is not in `emotrace.arms.ARMS`.
    """
    if not rows:
        raise EmotraceError("summary: there are no rows.")
    for row in rows:
        if (arm := label_of(row, "method")) not in ARMS:
            raise unknown("arm", arm, ARMS, f"summary, of row {row.get('key')!r}")
    by_arm = {m: [r for r in rows if r["method"] == m] for m in ARMS}
    by_arm = {m: found for m, found in by_arm.items() if found}
    out: dict[str, Any] = {
        name: {m: accuracy_over_draws(found, **score._asdict()) for m, found in by_arm.items()}
        for name, score in SCORES.items()
        if any(r.get(score.verdict) for r in rows)
    }
    if any(judged_by_both(r) for r in rows):
        out["judge_agreement"] = agreement_table(rows)
    out["confusion"] = {m: confusion_table(found).to_dict("index") for m, found in by_arm.items()}
    out["fluency"] = {"by_method": {m: _fluency(found) for m, found in by_arm.items()}}
    base = by_arm.get(reference)
    if base:
        out["lift"] = {m: lifts(found, base) for m, found in by_arm.items() if ARMS[m].always and m != reference}
    return out


@typed
def lifts(rows: Sequence[Row], base: Sequence[Row]) -> dict[str, Difference]:
    """Difference of accuracies, paired by key, overall and by emotion; left out where no key is judged in both.

    Args:
        rows: judged rows of one arm.
        base: judged rows of the arm that it is measured against.
    """
    out = {}
    for name in ("overall", *dict.fromkeys(r["emotion"] for r in rows)):
        a, b = ([r for r in found if name in ("overall", r["emotion"])] for found in (rows, base))
        judged = [{r["key"] for r in found if match_of(r) is not None} for found in (a, b)]
        if judged[0] & judged[1]:
            out[name] = paired_test(a, b)
    return out


@typed
def published_stats(rows: Sequence[Row], dataset: str) -> dict[str, Any]:
    """``accuracy_stats.json`` in the schema of EmotionCircuits: unjudged replies count as rejected there."""

    def part(found: Sequence[Row], key: str) -> dict[str, Any]:
        accepted = sum(r["verdict"]["match"] == 1 for r in found)
        share = round(100 * accepted / len(found), 2) if found else 0.0
        return {key: len(found), "accepted": accepted, "rejected": len(found) - accepted, "accuracy": share}

    def group(name: str) -> dict[str, Any]:
        names = [label_of(row, name) for row in rows]
        return {
            v: part([r for r, mine in zip(rows, names, strict=True) if mine == v], "total")
            for v in dict.fromkeys(names)
        }

    overall = part(rows, "total_samples")
    return {"dataset": dataset, "overall": overall, "by_emotion": group("emotion"), "by_valence": group("valence")}


def _fluency(rows: Sequence[Row]) -> dict[str, Any]:
    found = [r["meta"].get("perplexity") for r in rows]
    known = [value for value in found if value is not None]
    return {
        "perplexity": float(np.median(known)) if known else None,
        "length": float(np.mean([len(r["token_ids"]) for r in rows])),
        "repetition": float(np.mean([r["meta"]["repetition"] for r in rows])),
        "share_fluent": float(np.mean([bool(r["meta"]["fluent"]) for r in rows])),
        "n": len(rows),
    }
