"""Significance over many neurons: false discovery rate, as it should be and as it was published."""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy
import xarray as xr

from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats import fdr_bh

RULES: Final = ("bh", "published")


@typed
def fdr(p: xr.DataArray, rule: str = "bh") -> xr.DataArray:
    """q of all p together, in the same shape; NaN stays NaN and is not counted.

    Args:
        p: p-values, all of one family, e.g. of every neuron and attribute.
        rule: ``bh``: Benjamini–Hochberg adjusted (never above 1, in the order of p); ``published``: p · N / rank(p), ties sharing
            their average rank, with no step that keeps the order, so it can exceed 1 and fall as p rises. At a given level
            ``published`` can miss p-values that ``bh`` keeps.

    Raises:
        EmotraceError: for an unknown rule, values outside [0, 1], or nothing but NaN.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES, "fdr")
    values = np.asarray(p.values, dtype=np.float64)
    defined = ~np.isnan(values)
    if not defined.any() or not ((values[defined] >= 0) & (values[defined] <= 1)).all():
        raise EmotraceError(f"fdr takes p-values in [0, 1]; {int(defined.sum())} of {values.size} are numbers.")
    out = np.full(values.shape, np.nan)
    known = values[defined]
    out[defined] = fdr_bh(known) if rule == "bh" else known * len(known) / scipy.stats.rankdata(known)
    return p.copy(data=out).rename("q").assign_attrs(correction=rule, tests=int(defined.sum()))
