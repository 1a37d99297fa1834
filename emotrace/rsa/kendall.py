"""Kendall's τ-b of very many columns at once, exact: ranks, signs of all pairs of rows, one matrix product.

Concordant minus discordant pairs = Σ_{i<j} sgn(x_j − x_i) sgn(y_j − y_i) is a product of two matrices of signs. That of x
(pairs of rows × columns) is far too large to hold, so it is made row by row for a block of columns, in 16-bit integers that
stay in the cache, and multiplied with the signs of y at once. A row's sums are of integers below 2^24, which float32
holds exactly in any order of summation; rows are added in float64.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import scipy

from emotrace.labels import EmotraceError, unknown

ALTERNATIVES: Final = ("greater", "less", "two-sided")
TIES: Final = ("rounded", "exact")
BLOCK: Final = 512
"""Columns at a time: rows of 351 pairs and their signs then fit the second-level cache."""
SIGNS: Final = 2**25
"""Signs of the references that are kept, at 4 bytes each."""


class Ranked(NamedTuple):
    """Dense ranks of each column and its ties.

    Attributes:
        rank: ``[row, column]``, 0 for the smallest value, equal for equal values.
        pairs: tied pairs of rows, Σ t(t − 1)/2 over the groups of t equal values, ``[column]``.
        triples: Σ t(t − 1)(t − 2).
        weights: Σ t(t − 1)(2t + 5).
    """

    rank: np.ndarray
    pairs: np.ndarray
    triples: np.ndarray
    weights: np.ndarray


def ranked(x: np.ndarray, limit: np.ndarray | float = 0.0) -> Ranked:
    """Dense ranks and ties of the columns of ``x[row, column]``, which must be finite.

    Neighbours in a column that are no further apart than ``limit`` (one number a column) are tied.
    """
    n, columns = x.shape
    rows = np.ascontiguousarray(x.T)
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    dense = np.zeros(order.shape, dtype=np.int16 if n < 2**15 else np.int32)
    np.cumsum(np.diff(ordered, axis=1) > np.reshape(limit, (-1, 1)), axis=1, out=dense[:, 1:])
    out = np.empty_like(dense)
    np.put_along_axis(out, order, dense, axis=1)
    ties = np.zeros((3, columns))
    tied = np.flatnonzero(dense[:, -1] < n - 1)
    if len(tied):
        group = dense[tied].astype(np.int64) + n * np.arange(len(tied))[:, None]
        t = np.bincount(group.ravel(), minlength=n * len(tied)).reshape(len(tied), n).astype(np.float64)
        ties[:, tied] = [(t * f).sum(1) for f in ((t - 1) / 2, (t - 1) * (t - 2), (t - 1) * (2 * t + 5))]
    return Ranked(np.ascontiguousarray(out.T), *ties)


class Reference(NamedTuple):
    """What many blocks of columns are compared with.

    Attributes:
        of: ranks and ties ``[row, reference]``.
        signs: sgn(y_j − y_i) of all j > i for each row i, ``[reference, j]``; empty where they would take too much memory,
            and are then made when they are needed.
    """

    of: Ranked
    signs: tuple[np.ndarray, ...]


def reference(y: np.ndarray | Ranked) -> Reference:
    """The reference of values or ranks ``[row, reference]``."""
    of = y if isinstance(y, Ranked) else ranked(y)
    n, references = of.rank.shape
    if references * n * (n - 1) // 2 > SIGNS:
        return Reference(of, ())
    rows = np.ascontiguousarray(of.rank.T, dtype=np.float32)
    return Reference(of, tuple(_signs(rows, first) for first in range(n - 1)))


def tau_b(
    x: np.ndarray, y: np.ndarray | Reference, alternative: str = "greater", limit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """τ-b of every column of x with every column of y, and its asymptotic p.

    τ_b = (C − D) / √((N − T_x)(N − T_y)), N = n(n − 1)/2 pairs of rows, T the tied ones. p is the normal approximation with
    the variance corrected for ties, as in `scipy.stats.kendalltau(method="asymptotic")` and R's ``cor.test``. It takes the n
    rows for independent, which the pairs of an RDM are not: a Mantel permutation does not.

    Args:
        x: ``[row, column]``, finite.
        y: ``[row, reference]``, finite; or its `reference`, where many calls share it.
        alternative: ``greater`` (τ > 0), ``less`` or ``two-sided``.
        limit: of each column of x: values no further apart are tied; None: only equal ones.

    Returns:
        (τ, p), each ``[column, reference]``; NaN where one of the two columns is constant.
    """
    check_alternative(alternative)
    against = y if isinstance(y, Reference) else reference(y)
    theirs = against.of
    n = len(theirs.rank)
    if n < 3 or len(x) != n:
        raise EmotraceError(f"tau_b: {len(x)} rows of x and {n} of y; at least 3 and as many of both.")
    taus, ps = (np.empty((x.shape[1], theirs.rank.shape[1])) for _ in range(2))
    for start in range(0, x.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        mine = ranked(x[:, part], 0.0 if limit is None else limit[part])
        excess = concordance(mine, against)
        total, ordered = n * (n - 1) / 2, n * (n - 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            taus[part] = excess / np.sqrt(total - mine.pairs)[:, None] / np.sqrt(total - theirs.pairs)
            variance = (
                (ordered * (2 * n + 5) - mine.weights[:, None] - theirs.weights) / 18
                + 2 * mine.pairs[:, None] * theirs.pairs / ordered
                + mine.triples[:, None] * theirs.triples / (9 * ordered * (n - 2))
            )
            ps[part] = normal_p(excess / np.sqrt(variance), alternative)
    np.clip(taus, -1, 1, out=taus)
    ps[np.isnan(taus)] = np.nan
    return taus, ps


def concordance(x: Ranked, y: Reference) -> np.ndarray:
    """Concordant minus discordant pairs of rows, ``[column, reference]``."""
    n, columns = x.rank.shape
    rows = None if y.signs else np.ascontiguousarray(y.of.rank.T, dtype=np.float32)
    product = np.zeros((y.of.rank.shape[1], columns))
    narrow = np.empty((n - 1, columns), dtype=x.rank.dtype)
    wide = np.empty((n - 1, columns), dtype=np.float32)
    for first in range(n - 1):
        rest = n - 1 - first
        np.subtract(x.rank[first + 1 :], x.rank[first], out=narrow[:rest])
        np.sign(narrow[:rest], out=narrow[:rest])
        wide[:rest] = narrow[:rest]
        product += (y.signs[first] if rows is None else _signs(rows, first)) @ wide[:rest]
    return product.T


def _signs(rows: np.ndarray, first: int) -> np.ndarray:
    return np.sign(rows[:, first + 1 :] - rows[:, first : first + 1])


def normal_p(z: np.ndarray, alternative: str) -> np.ndarray:
    """Tail of the standard normal distribution beyond z."""
    if alternative == "two-sided":
        return 2 * scipy.special.ndtr(-np.abs(z))
    return scipy.special.ndtr(-z if alternative == "greater" else z)


def check_ties(ties: str) -> None:
    """Raise unless it is one of `TIES`."""
    if ties not in TIES:
        raise unknown("rule for ties", ties, TIES)


def check_alternative(alternative: str) -> None:
    """Raise unless it is one of `ALTERNATIVES`."""
    if alternative not in ALTERNATIVES:
        raise unknown("alternative", alternative, ALTERNATIVES)
