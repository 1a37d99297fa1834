"""Agreement: how far two judges of the same replies give the same answers, arm by arm, and beyond chance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from emotrace.labels import EmotraceError
from emotrace.replies.row import Row, cluster_of
from emotrace.signatures import typed
from emotrace.stats import cohen_kappa, krippendorff_alpha

ALL = "all"
"""The line of all replies together."""


class Agreed(TypedDict):
    """One line: of ``n`` replies that both judged, the share with one answer, and κ and α with their intervals."""

    method: str
    n: int
    same: float
    kappa: float
    kappa_ci95: list[float]
    alpha: float
    alpha_ci95: list[float]


def judged_by_both(row: Row, first: str = "verdict", second: str = "verdict_second") -> bool:
    """Whether neither of two judges left a reply unjudged."""
    return all((row.get(name) or {}).get("predicted") is not None for name in (first, second))


@typed
def agreement_table(
    rows: Iterable[Row],
    first: str = "verdict",
    second: str = "verdict_second",
    cluster: str | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
) -> list[Agreed]:
    """Agreement of two blind judges: all replies together, then arm by arm.

    A text that several rows of an arm have (the un-edited model's, one for each emotion) counts once. Where all answers of both
    are one, κ and α are NaN.

    Args:
        rows: judged rows.
        first: field of one judge's verdicts.
        second: field of the other's.
        cluster: what is drawn as a whole; None takes the first of the usual labels that all rows have.
        n: bootstrap draws.
        seed: of the draws.

    Raises:
        EmotraceError: where no row has both verdicts.
    """
    rows = list(rows)
    label = cluster_of(rows, cluster)
    arms: dict[str, dict[tuple[Any, str], tuple[str, str]]] = {ALL: {}}
    for row in rows:
        if judged_by_both(row, first, second):
            for arm in (ALL, str(row.get("method", "none"))):
                arms.setdefault(arm, {})[row.get(label), row["gen_text"]] = (
                    row[first]["predicted"],
                    row[second]["predicted"],
                )
    if not arms[ALL]:
        raise EmotraceError(f"agreement: no reply has an answer of both judges ({first}, {second}).")
    out: list[Agreed] = []
    for arm, units in arms.items():
        mine, theirs = (list(answers) for answers in zip(*units.values(), strict=True))
        drawn = [str(of) for of, _ in units]
        kappa = cohen_kappa(mine, theirs, drawn, n=n, seed=seed)
        alpha = krippendorff_alpha([mine, theirs], drawn, n=n, seed=seed)
        same = sum(a == b for a, b in units.values()) / len(units)
        out.append({
            "method": arm, "n": len(units), "same": same, "kappa": kappa.value, "kappa_ci95": [kappa.lo, kappa.hi],
            "alpha": alpha.value, "alpha_ci95": [alpha.lo, alpha.hi],
        })  # fmt: skip
    return out
