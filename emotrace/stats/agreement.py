"""Agreement: how far judges give the same answers, beyond what chance would give, with an interval over clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.stats.intervals import cluster_weights

Coefficient = Callable[[np.ndarray], np.ndarray]
"""Of sums over clusters, one or many."""


class Agreement(NamedTuple):
    """A coefficient of agreement: 1 for the same answers throughout, 0 for what chance gives, NaN where all answers are one.

    Attributes:
        value: of the units given.
        lo: lower bound of the bootstrap interval over clusters.
        hi: upper bound.
        n: units that count.
    """

    value: float
    lo: float
    hi: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.lo:.2f}, {self.hi:.2f}], n {self.n}"


@typed
def cohen_kappa(
    a: Sequence[str | None],
    b: Sequence[str | None],
    clusters: ArrayLike | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Cohen's κ of two judges: (p_o − p_e) / (1 − p_e).

    p_o is the share of units with one answer, p_e = Σ_c p_a(c) p_b(c) that of judges who answer with the same frequencies and
    without looking. Units that one of them left unanswered (None) do not count.

    Args:
        a: one judge's answers.
        b: the other's, in the same order.
        clusters: what is drawn as a whole for the interval, e.g. each unit's skeleton; None: each unit.
        n: bootstrap draws.
        seed: of the draws.
        level: coverage of the percentile interval.

    Raises:
        EmotraceError: for lengths that differ, or no unit that both answered.
    """
    if len(a) != len(b):
        raise EmotraceError(f"cohen_kappa: {len(a)} and {len(b)} answers; one of each judge for every unit is due.")
    counts, code = _counts("cohen_kappa", [a, b], clusters)
    both = counts.sum((1, 2)) == 2
    mine, theirs = counts[both, 0], counts[both, 1]
    table = _summed(np.einsum("ux,uy->uxy", mine, theirs), code[both])

    def kappa(tables: np.ndarray) -> np.ndarray:
        total = tables.sum((-2, -1))
        same = np.trace(tables, axis1=-2, axis2=-1) / total
        chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
        return _ratio(same - chance, 1 - chance)

    return _interval("cohen_kappa", table, kappa, int(both.sum()), n, seed, level)


@typed
def krippendorff_alpha(
    answers: Sequence[Sequence[str | None]],
    clusters: ArrayLike | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Krippendorff's α of any number of judges, nominal, with missing answers: 1 − D_o / D_e.

    Of a unit u with m_u ≥ 2 answers, m_uc of them c, every pair of different judges counts 1/(m_u − 1). With m the number of
    such answers, m_c those that are c, and o = Σ_u Σ_c m_uc (m_uc − 1) / (m_u − 1): α = 1 − (m − 1)(m − o) / (m² − Σ_c m_c²).
    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.

    Args:
        answers: ``[judge][unit]``; None is missing.
        clusters: what is drawn as a whole for the interval; None: each unit.
        n: bootstrap draws.
        seed: of the draws.
        level: coverage of the percentile interval.

    Raises:
        EmotraceError: for lengths that differ, fewer than two judges, or no unit that two of them answered.
    """
    if len(answers) < 2 or len({len(one) for one in answers}) != 1:
        raise EmotraceError(
            f"krippendorff_alpha: answers to {[len(one) for one in answers]} units; at least two judges, an answer or None of "
            "each for every unit."
        )
    counts, code = _counts("krippendorff_alpha", answers, clusters)
    of_unit = counts.sum(1)
    m = of_unit.sum(1)
    pairable = m >= 2
    of_unit, m = of_unit[pairable], m[pairable]
    same = (of_unit * (of_unit - 1)).sum(1) / (m - 1)
    table = _summed(np.column_stack([same, of_unit]), code[pairable])

    def alpha(sums: np.ndarray) -> np.ndarray:
        observed, each = sums[..., 0], sums[..., 1:]
        total = each.sum(-1)
        return 1 - _ratio((total - 1) * (total - observed), total**2 - (each**2).sum(-1))

    return _interval("krippendorff_alpha", table, alpha, int(pairable.sum()), n, seed, level)


def _counts(
    who: str, answers: Sequence[Sequence[str | None]], clusters: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which answer each judge gave, ``[unit, judge, answer]`` of 0 and 1, and each unit's cluster."""
    units = len(answers[0])
    names = np.arange(units) if clusters is None else np.asarray(clusters)
    if names.ndim != 1 or len(names) != units:
        raise EmotraceError(f"{who}: {units} units and clusters of shape {names.shape}; one for each unit is due.")
    known = sorted({answer for one in answers for answer in one if answer is not None})
    at = {answer: i for i, answer in enumerate(known)}
    counts = np.zeros((units, len(answers), max(len(known), 1)))
    for judge, one in enumerate(answers):
        for unit, answer in enumerate(one):
            if answer is not None:
                counts[unit, judge, at[answer]] = 1
    return counts, np.unique(names, return_inverse=True)[1]


def _summed(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Sums of each cluster that is left."""
    _, here = np.unique(code, return_inverse=True)
    out = np.zeros((int(here.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(out, here, values)
    return out


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where nothing is left to disagree about."""
    some = np.abs(under) > 1e-12
    return np.where(some, over, np.nan) / np.where(some, under, 1)


def _interval(
    who: str, table: np.ndarray, coefficient: Coefficient, units: int, n: int, seed: int, level: float
) -> Agreement:
    """The coefficient of all clusters' sums, and its percentile interval over draws of them."""
    arguments.resampling(who, seed, n=n)
    arguments.share(f"{who}(level)", level)
    if not len(table):
        raise EmotraceError(f"{who}: no unit has answers of two judges.")
    value = float(coefficient(table.sum(0)))
    drawn = coefficient(np.tensordot(cluster_weights(len(table), n, seed), table, 1))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Agreement(value, np.nan, np.nan, units)
    lo, hi = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Agreement(value, float(lo), float(hi), units)
