"""Correlations of many vectors with many others: Pearson, Spearman, Kendall's τ-b, with their asymptotic p."""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy

from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.kendall import Reference, check_alternative, reference, tau_b
from emotrace.stats.ties import constant

COEFFICIENTS: Final = ("pearson", "spearman", "kendall")


def correlate(
    x: np.ndarray, y: np.ndarray | Reference, method: str = "kendall", alternative: str = "greater"
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of every column of x with every column of y, and its asymptotic p.

    Pearson's and Spearman's p come from t = r √((n − 2)/(1 − r²)) with n − 2 degrees of freedom, as in scipy; Kendall's from
    `tau_b`. All of them take the n rows for independent, which the pairs of an RDM are not.

    Args:
        x: ``[row, column]``, finite.
        y: ``[row, reference]``, finite (for Kendall also its `reference`).
        method: one of `COEFFICIENTS`.
        alternative: ``greater``, ``less`` or ``two-sided``.

    Returns:
        (r, p), each ``[column, reference]``; NaN where one of the two columns is constant.
    """
    check_method(method)
    check_alternative(alternative)
    if method == "kendall" or isinstance(y, Reference):
        return tau_b(x, y, alternative)
    n = len(y)
    if n < 3 or len(x) != n:
        raise EmotraceError(f"correlate: {len(x)} rows of x and {n} of y; at least 3 and as many of both.")
    r = np.clip(standard(x, method).T @ standard(y, method), -1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = r * np.sqrt((n - 2) / ((1 - r) * (1 + r)))
    tail = {
        "greater": scipy.stats.t.sf(t, n - 2),
        "less": scipy.stats.t.cdf(t, n - 2),
        "two-sided": 2 * scipy.stats.t.sf(np.abs(t), n - 2),
    }
    return r, np.asarray(tail[alternative])


def standard(x: np.ndarray, method: str) -> np.ndarray:
    """Columns (for Spearman their average ranks) with mean 0 and length 1; NaN where a column is constant."""
    values = scipy.stats.rankdata(x, axis=0) if method == "spearman" else np.asarray(x, dtype=np.float64)
    centred = values - values.mean(0)
    length = np.linalg.norm(centred, axis=0)
    same = constant(values, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(same, np.nan, centred / np.where(same, 1, length))


def prepared(y: np.ndarray, method: str) -> np.ndarray | Reference:
    """What `correlate` may be given for y many times over."""
    return reference(y) if method == "kendall" else y


def check_method(method: str) -> None:
    """Raise unless it is one of `COEFFICIENTS`."""
    if method not in COEFFICIENTS:
        raise unknown("method", method, COEFFICIENTS)
