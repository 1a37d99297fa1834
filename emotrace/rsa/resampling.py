"""Resampled concepts: correlations in which every pair counts a whole number of times, for many draws at once."""

from __future__ import annotations

import numpy as np

from emotrace.labels import EmotraceError


def draw_concepts(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each concept is drawn, ``[draw, concept]``; draws with fewer than 3 different ones are drawn again.

    Three are the least that have more than one distance to rank.
    """
    if n < 3:
        raise EmotraceError(f"a bootstrap over {n} concepts; 3 are the least.")
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    while (few := (counts > 0).sum(1) < 3).any():
        counts[few] = rng.multinomial(n, np.full(n, 1 / n), size=int(few.sum()))
    return counts


def pair_weights(counts: np.ndarray) -> np.ndarray:
    """c_i · c_j of every pair of different concepts, ``[draw, pair]``."""
    i, j = np.triu_indices(counts.shape[1], 1)
    return (counts[:, i] * counts[:, j]).astype(np.float64)


def weighted(x: np.ndarray, y: np.ndarray, counts: np.ndarray, method: str) -> np.ndarray:
    """Correlation of one RDM with each reference in each draw, exactly as if the pairs were repeated.

    A repeated pair is tied with itself in x and in y, so it adds nothing to Kendall's sums, and shares its average rank.

    Args:
        x: ``[pair]``.
        y: ``[reference, pair]``.
        counts: of `draw_concepts`.
        method: ``kendall``, ``spearman`` or ``pearson``.

    Returns:
        ``[draw, reference]``; NaN where a draw leaves nothing that varies.
    """
    w = pair_weights(counts)
    if method == "kendall":
        return _kendall(x, y, w)
    out = np.empty((len(w), len(y)))
    for k, reference in enumerate(y):
        a, b = (_ranks(v, w) if method == "spearman" else np.broadcast_to(v, w.shape) for v in (x, reference))
        out[:, k] = _pearson(a, b, w)
    return out


def _kendall(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    of_x = np.sign(x[:, None] - x)
    untied = _form(w, np.abs(of_x))
    out = np.empty((len(w), len(y)))
    for k, reference in enumerate(y):
        of_y = np.sign(reference[:, None] - reference)
        size = np.sqrt(untied * _form(w, np.abs(of_y)))
        out[:, k] = np.where(size > 0, _form(w, of_x * of_y), np.nan) / np.where(size > 0, size, 1)
    return np.clip(out, -1, 1)


def _form(w: np.ndarray, m: np.ndarray) -> np.ndarray:
    """w M wᵀ of every row: sums of whole numbers, exact below 2^53."""
    return np.einsum("dp,dp->d", w @ m, w)


def _ranks(v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Average rank of each pair among the repeated pairs, ``[draw, pair]``."""
    below, equal = v[:, None] < v, v[:, None] == v
    return w @ below + (w @ equal + 1) / 2


def _pearson(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    total = w.sum(1, keepdims=True)
    a, b = (v - (w * v).sum(1, keepdims=True) / total for v in (a, b))
    size = np.sqrt((w * a * a).sum(1) * (w * b * b).sum(1))
    scale = np.maximum(np.abs(a).max(1) * np.abs(b).max(1) * total[:, 0], 1e-300)
    varies = size > 1e-12 * scale
    return np.clip(np.where(varies, (w * a * b).sum(1), np.nan) / np.where(varies, size, 1), -1, 1)
