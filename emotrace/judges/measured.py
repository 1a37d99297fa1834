"""Measured: how often a judge was right on labelled sets, what a report says of it, and whether a claim may rest on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from emotrace import shipped
from emotrace.judges.base import Named

THRESHOLD: Final = 0.7
"""A judge below this macro-F1 (the lexicon: accuracy) on labelled rows that it has not seen carries no claim."""


class MeasuredAccuracy(NamedTuple):
    """Share of texts on which a judge agreed with a published label."""

    value: float
    n: int


class Standing(NamedTuple):
    """Whether a claim may rest on a judge, and why."""

    may_claim: bool
    why: str


MEASURED: Final = {
    "lexicon:v1": {
        "published replies (Llama-3.2-3B-Instruct, accepted by GPT-4o-mini), held back": MeasuredAccuracy(0.899, 2850),
        "single-label GoEmotions rows, held back": MeasuredAccuracy(0.670, 554),
    }
}
"""On rows that nothing was chosen on; the card beside this file says whence, and what was measured on the others."""


def statement(judge: Named) -> str | None:
    """One sentence on a judge's measured accuracy, or None for a judge that was not measured."""
    parts = [f"{value:.1%} of {n:,} {where}" for where, value, n in _figures(judge)]
    if not parts:
        return None
    return f"judge {judge.name} agrees with the label on {' and '.join(parts)}"


def standing(judge: Named) -> Standing:
    """Whether a claim about a model may rest on a judge's verdicts.

    It may if the judge reaches `THRESHOLD` on every labelled set on which it was measured, none of which it was made from: the
    lexicon and judges of `fit`, whose cards say so. What was not measured carries no claim.
    """
    if not _figures(judge):
        return Standing(False, f"judge {judge.name} was not measured on labelled rows that it has not seen")
    worst = min(value for _, value, _ in _figures(judge))
    return Standing(
        worst >= THRESHOLD, f"{statement(judge)}; {THRESHOLD:.0%} on each are asked of a judge that claims rest on"
    )


def doubt(judge: Named, identity: Mapping[str, Any]) -> str:
    """Why a judge may carry no claim about a model; empty where it may, and for the shipped model, of which none is a finding.

    Args:
        judge: who judged.
        identity: of the model (`emotrace.sites.Sites.identity`).
    """
    said = standing(judge)
    return "" if shipped.is_shipped(identity) or said.may_claim else said.why


def warning(judge: Named, identity: Mapping[str, Any]) -> str | None:
    """The warning that a report on a foreign model carries: the judge is right on less than 70 % of a labelled set."""
    if shipped.is_shipped(identity) or not _figures(judge) or standing(judge).may_claim:
        return None
    return (
        f"WARNING: {statement(judge)}; below {THRESHOLD:.0%}, its verdicts on a foreign model are rough, and no claim rests on "
        "them"
    )


def _figures(judge: Named) -> list[tuple[str, float, int]]:
    """Set, figure and rows of every measurement that is known: of the judge's own card, or of `MEASURED`."""
    own = [(f"{m.on} (macro-F1)", m.macro_f1.value, m.n) for m in getattr(judge, "tested", ())]
    return own or [(where, a.value, a.n) for where, a in MEASURED.get(judge.name, {}).items()]
