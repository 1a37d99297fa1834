"""Measured: how often each version of the lexicon judge was right on published sets, and what a report must say of it."""

from __future__ import annotations

from typing import Final, NamedTuple

THRESHOLD: Final = 0.7
"""Below this accuracy on either set, every report on a foreign model carries a warning."""


class Accuracy(NamedTuple):
    """Share of texts on which a judge agreed with a published label."""

    value: float
    n: int


MEASURED: Final = {
    "lexicon:v1": {
        "published replies (Llama-3.2-3B-Instruct, accepted by GPT-4o-mini)": Accuracy(0.914, 2847),
        "single-label GoEmotions development rows": Accuracy(0.725, 513),
    }
}
"""Measured once per committed version by ``experiments/measure_judge.py``; see the card beside this file."""


def statement(judge: str) -> str | None:
    """One sentence on a judge's measured accuracy, or None for a judge that was not measured here."""
    found = MEASURED.get(judge)
    if found is None:
        return None
    parts = [f"{a.value:.1%} of {a.n} {name}" for name, a in found.items()]
    return f"judge {judge} agrees with the label on {' and '.join(parts)}"


def warning(judge: str) -> str | None:
    """The warning that a report on a foreign model carries: the judge is right on less than 70 % of a published set."""
    found = MEASURED.get(judge)
    if found is None or min(a.value for a in found.values()) >= THRESHOLD:
        return None
    return f"WARNING: {statement(judge)}; below {THRESHOLD:.0%}, its verdicts on a foreign model are rough"
