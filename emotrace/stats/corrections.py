"""Corrections: p-values of a family of tests, for the false discovery rate and for any false discovery at all."""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.signatures import typed


@typed
def fdr_bh(p: ArrayLike) -> np.ndarray:
    """Benjamini–Hochberg adjusted p-values over *all* entries, in the shape given (`scipy.stats.false_discovery_control`).

    Raises:
        EmotraceError: for values that are not probabilities.
    """
    values = _checked("fdr_bh", p)
    return np.asarray(scipy.stats.false_discovery_control(values.ravel(), method="bh")).reshape(values.shape)


@typed
def holm(p: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values over *all* entries: below α, the chance of any false discovery among them is at most α.

    With p sorted, q_(i) = max over j ≤ i of min(1, (m − j + 1) p_(j)); valid whatever the tests have to do with each other.

    Args:
        p: p-values of one family, of any shape.

    Returns:
        Adjusted p-values in the shape given.

    Raises:
        EmotraceError: for values that are not probabilities.
    """
    values = _checked("holm", p)
    flat = values.ravel()
    order = np.argsort(flat, kind="stable")
    found = np.empty_like(flat)
    found[order] = np.maximum.accumulate(np.minimum(1, flat[order] * np.arange(flat.size, 0, -1)))
    return found.reshape(values.shape)


def _checked(who: str, p: ArrayLike) -> np.ndarray:
    values = arguments.values(f"{who}(p)", p)
    if values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        raise EmotraceError(f"{who} takes at least one p-value in [0, 1]; got {values.size} values, some outside.")
    return np.asarray(values, dtype=np.float64)
