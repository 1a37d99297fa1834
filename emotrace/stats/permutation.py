"""Permutation: could a sum over clusters be chance? Whole clusters are flipped, never single rows."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.stats.ties import TIED

EXACT: Final = 16
"""Up to so many clusters that differ, all sign patterns are tried instead of random ones."""
_ROUNDING: Final = 1e-9
"""Share of Σ |S_c| by which a sum may fall short of the observed one and be as extreme."""
_PATTERNS: Final = 4096


@typed
def sign_flip(sums: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of Σ_c S_c against Σ_c ±S_c, all signs being equally likely.

    Clusters with S_c = 0 change nothing and are left out. With at most `EXACT` others every pattern is tried: p = share of
    the 2^C patterns, the observed one among them, whose |sum| is at least the observed. With more, random patterns are
    drawn and p = (1 + extreme) / (1 + permutations), which is never 0.

    Args:
        sums: ``[cluster]`` sums of differences.
        permutations: random patterns, where not all are tried.
        seed: of the patterns.

    Returns:
        (p, whether it is exact).

    Raises:
        EmotraceError: for no clusters, or sums that are not finite.
    """
    arguments.resampling("sign_flip", seed, permutations=permutations)
    s = arguments.values("sign_flip(sums)", sums)
    if s.ndim != 1 or s.size == 0 or not np.isfinite(s).all():
        raise EmotraceError(f"sign_flip takes one finite sum per cluster, not an array of shape {s.shape}.")
    if permutations < 1:
        raise EmotraceError(f"sign_flip(permutations={permutations}): at least 1.")
    total_size = float(np.abs(s).sum())
    observed = abs(float(s.sum())) - _ROUNDING * total_size
    moving = s[np.abs(s) > TIED * total_size]
    if moving.size <= EXACT:  # a pattern and its opposite are equally extreme, so the first sign stays
        patterns = itertools.product((1.0, -1.0), repeat=max(moving.size - 1, 0))
        first, others = moving[:1].sum(), moving[1:]
        extreme = total = 0
        while block := list(itertools.islice(patterns, _PATTERNS)):
            flipped = first + np.array(block).reshape(len(block), -1) @ others
            extreme += int((np.abs(flipped) >= observed).sum())
            total += len(block)
        return extreme / total, True
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, permutations, _PATTERNS):
        signs = rng.integers(0, 2, size=(min(_PATTERNS, permutations - start), moving.size)) * 2.0 - 1.0
        extreme += int((np.abs(signs @ moving) >= observed).sum())
    return (1 + extreme) / (1 + permutations), False
