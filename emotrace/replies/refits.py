"""Refits: what a figure owes to the draw that directions and circuits were fitted on. Pure.

The replies of an arm are made again under edits that were fitted to other draws of the training skeletons. Its interval then
holds both: other skeletons to measure on, and others to fit on (`emotrace.stats.refit_ci`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from emotrace.labels import EmotraceError
from emotrace.replies.row import Row
from emotrace.replies.table import by_key, finite_mean, table
from emotrace.signatures import typed
from emotrace.stats.intervals import refit_ci


class Refitted(TypedDict):
    """A share, or the difference of two, with the interval that includes the fit.

    Attributes:
        value: with the fit that is used.
        ci95: [lo, hi].
        refits: with each other fit.
        mean: over these.
        sd: over these (R − 1 below).
        n: keys.
        n_skeletons: clusters.
    """

    value: float
    ci95: list[float]
    refits: list[float]
    mean: float
    sd: float
    n: int
    n_skeletons: int


@typed
def refitted(
    rows: Sequence[Row],
    refits: Sequence[Sequence[Row]],
    *,
    less: Sequence[Row] | None = None,
    less_refits: Sequence[Sequence[Row]] | None = None,
    fluent: bool = False,
    verdict: str = "verdict",
    cluster: str = "skeleton_id",
) -> Refitted:
    """Share of matches of an arm, or its difference to another one, with an interval over skeletons and over refits.

    Differences are paired by key, as in `paired_test`. An arm that nothing is fitted for (``prompt``, ``none``) has no refits:
    ``less_refits`` is then left out.

    Args:
        rows: judged replies with the fit that is used.
        refits: the same with each other fit, on the same keys.
        less: judged replies of the arm that is subtracted; None for the share itself.
        less_refits: of that arm, one for each of ``refits``.
        fluent: a match counts only where the reply is fluent (``meta.fluent``).
        verdict: which verdict counts.
        cluster: label of what is drawn as a whole.

    Raises:
        EmotraceError: where no key is judged in all, or with numbers of refits that differ.
    """
    if less_refits is not None and len(less_refits) != len(refits):
        raise EmotraceError(f"refitted: {len(refits)} refits of one arm and {len(less_refits)} of the other.")
    mine = [_by_key(some, fluent, verdict, cluster) for some in (rows, *refits)]
    others = [] if less is None else [_by_key(some, fluent, verdict, cluster) for some in (less, *(less_refits or ()))]
    keys = [key for key in mine[0] if all(key in one for one in (*mine, *others))]
    if not keys:
        raise EmotraceError("refitted: no key is judged with every fit.")

    def values(i: int) -> np.ndarray:
        own = np.array([mine[i][key].value for key in keys])
        if not others:
            return own
        other = others[i if less_refits is not None else 0]
        return own - np.array([other[key].value for key in keys])

    x, found = values(0), [finite_mean(values(i + 1)) for i in range(len(refits))]
    names = [mine[0][key].cluster for key in keys]
    return {
        "value": float(x.mean()), "ci95": list(refit_ci(x, names, found, least=-1.0 if others else 0.0)), "refits": found,
        "mean": float(np.mean(found)), "sd": float(np.std(found, ddof=1)), "n": len(keys), "n_skeletons": len(set(names)),
    }  # fmt: skip


def _by_key(rows: Sequence[Row], fluent: bool, verdict: str, cluster: str) -> Mapping:
    column = "fluent_match" if fluent else "match"
    return by_key(table(rows, ("key", column), cluster=cluster, verdict=verdict), column)


@typed
def refit_table(
    rows: Mapping[str, Sequence[Row]], refits: Mapping[str, Sequence[Sequence[Row]]], *, verdict: str = "verdict"
) -> dict[str, dict[str, Refitted]]:
    """Of every arm that was refitted its shares, and its difference to ``prompt`` and to the other arms; blind, and fluent.

    Args:
        rows: arm → judged replies with the fit that is used; also of arms that nothing is fitted for.
        refits: arm → of each refit the judged replies.
        verdict: which verdict counts.

    Returns:
        ``accuracy`` and ``accuracy_fluent``, each name → `Refitted`; the name of a difference is ``a − b``.
    """
    out: dict[str, dict[str, Refitted]] = {}
    for name, fluent in (("accuracy", False), ("accuracy_fluent", True)):
        how = {"fluent": fluent, "verdict": verdict}
        found = {arm: refitted(rows[arm], fits, **how) for arm, fits in refits.items()}
        for i, (a, fits) in enumerate(refits.items()):
            if "prompt" in rows:
                found[f"{a} − prompt"] = refitted(rows[a], fits, less=rows["prompt"], **how)
            for b in list(refits)[:i]:
                found[f"{a} − {b}"] = refitted(rows[a], fits, less=rows[b], less_refits=refits[b], **how)
        out[name] = found
    return out
