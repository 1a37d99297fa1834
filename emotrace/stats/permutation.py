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
FEW: Final = 12
"""Up to so many clusters `exchange` tries all patterns."""
_ROUNDING: Final = 1e-9
"""Share of Σ |S_c| by which a sum may fall short of the observed one and be as extreme."""
_PATTERNS: Final = 4096


def p_said(p: float, floor: float = 0.0) -> str:
    """``= 0.03``; ``≤ 0.001`` where no draw came as far, so that more of them might give less; a dash for NaN.

    Args:
        p: of a test.
        floor: the least that its draws can give, 1 / (1 + draws); 0 where all patterns were tried.
    """
    return "–" if p != p else f"{'≤' if p <= floor * (1 + 1e-9) else '='} {p:.2g}"


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


@typed
def exchange(hits: ArrayLike, counts: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of Σ_c h_ac / Σ_c n_ac − Σ_c h_bc / Σ_c n_bc, the two arms being exchanged within clusters.

    Unlike `sign_flip` it takes arms of unequal numbers. With at most `FEW` clusters every pattern is tried, the observed one
    among them; with more, random ones are drawn and p = (1 + extreme) / (1 + permutations). A pattern that leaves an arm
    without a reply counts as extreme.

    Args:
        hits: ``[2, cluster]`` sums of hits of the two arms.
        counts: ``[2, cluster]`` numbers of replies, of each arm some.
        permutations: random patterns, where not all are tried.
        seed: of the patterns.

    Returns:
        (p, whether it is exact).

    Raises:
        EmotraceError: for arrays of other shapes, values that are not finite, more hits than replies, or an arm without a reply.
    """
    arguments.resampling("exchange", seed, permutations=permutations)
    h, n = arguments.values("exchange(hits)", hits), arguments.values("exchange(counts)", counts)
    if h.ndim != 2 or len(h) != 2 or h.shape != n.shape or not (np.isfinite(h).all() and np.isfinite(n).all()):
        raise EmotraceError(f"exchange takes finite [2, cluster] hits and counts, not arrays {h.shape} and {n.shape}.")
    if (h < 0).any() or (h > n + 1e-9).any():
        raise EmotraceError("exchange: a cluster has more hits than replies, or fewer than none.")
    if permutations < 1 or (n.sum(1) <= 0).any():
        raise EmotraceError(f"exchange: {n.sum(1).tolist()} replies, {permutations} permutations; at least 1 of each.")
    clusters = h.shape[1]
    observed = abs(float(np.subtract(*(h.sum(1) / n.sum(1))))) - _ROUNDING
    if clusters <= FEW:
        swaps = np.array(list(itertools.product((0.0, 1.0), repeat=clusters)))
        return float(_extreme(h, n, swaps, observed).mean()), True
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, permutations, _PATTERNS):
        swaps = rng.integers(0, 2, size=(min(_PATTERNS, permutations - start), clusters)).astype(np.float64)
        extreme += int(_extreme(h, n, swaps, observed).sum())
    return (1 + extreme) / (1 + permutations), False


def _extreme(h: np.ndarray, n: np.ndarray, swaps: np.ndarray, observed: float) -> np.ndarray:
    """Of each pattern of exchanged clusters, whether the difference of shares is at least the observed."""
    moved = [[of.sum(1)[i] + swaps @ (of[1 - i] - of[i]) for i in (0, 1)] for of in (h, n)]
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = moved[0][0] / moved[1][0] - moved[0][1] / moved[1][1]
    return ~(np.abs(difference) < observed)
