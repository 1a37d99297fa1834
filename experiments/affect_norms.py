"""Norms: how people rate words (valence, arousal, dominance), and what of it a table of features predicts; no model here."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from emotrace.interop.tables import read_csv
from emotrace.labels import EmotraceError, unknown
from emotrace.stats.intervals import cluster_weights

WARRINER: Final = {"valence": "V.Mean", "arousal": "A.Mean", "dominance": "D.Mean"}
"""Columns of Warriner, Kuperman & Brysbaert (2013): ``V.Mean.Sum`` of all raters, ``V.Mean.M`` of men …"""
HALVES: Final = {"M": "F", "Y": "O", "L": "H"}
"""Its groups: men and women, younger and older, lower and higher education."""
FREQUENCY: Final = ("frequency", "log_frequency", "zipf", "Lg10WF")
"""Columns that are taken for how often a word occurs."""
PENALTIES: Final = np.logspace(-1, 6, 22)
"""Of the ridge regression, in units of the mean variance of a feature."""
NGRAMS: Final = 400
"""Most frequent runs of one to three letters that the lexical baseline counts."""
DRAWS: Final = 1000


class Norms(NamedTuple):
    """Ratings of words."""

    words: list[str]
    dimensions: list[str]
    values: np.ndarray
    """``[word, dimension]``"""
    groups: dict[str, np.ndarray]
    """Pair of groups → ``[2, word, dimension]``; NaN where a group did not rate a word."""
    frequency: np.ndarray | None


def read(path: Path, dimensions: list[str] | None = None) -> Norms:
    """Norms of a CSV: Warriner's, or a column ``word``, one for each dimension, and ``DIMENSION.GROUP`` for groups of raters.

    Args:
        path: of the file.
        dimensions: columns; None takes Warriner's three, else every column of numbers that is no group and no frequency.

    Raises:
        EmotraceError: for a file that is no such table, an unknown dimension, or fewer than 50 words.
    """
    table = read_csv(path)
    table = table.rename(columns={c: "word" for c in table.columns if c.lower() == "word"})
    for ours, theirs in WARRINER.items():
        named = {f"{theirs}.Sum": ours} | {f"{theirs}.{g}": f"{ours}.{g}" for pair in HALVES.items() for g in pair}
        table = table.rename(columns=named)
    if "word" not in table:
        raise unknown("column", "word", table.columns, str(path))
    numeric = [str(c) for c in table.select_dtypes("number").columns]
    chosen = (
        dimensions or [d for d in WARRINER if d in table] or [c for c in numeric if "." not in c and c not in FREQUENCY]
    )
    for name in chosen:
        if name not in numeric:
            raise unknown("dimension", name, numeric, str(path))
    table = table.dropna(subset=["word", *chosen]).drop_duplicates("word")
    if len(table) < 50 or not chosen:
        raise EmotraceError(
            f"{path}: {len(table)} words with {len(chosen)} dimensions; at least 50 words with one are needed."
        )
    often = next((c for c in FREQUENCY if c in numeric), None)
    return Norms(
        [str(w) for w in table["word"]], chosen, table[chosen].to_numpy(float), _groups(table, chosen),
        None if often is None else np.log1p(table[often].fillna(0).to_numpy(float)),
    )  # fmt: skip


def _groups(table: pd.DataFrame, dimensions: list[str]) -> dict[str, np.ndarray]:
    names = sorted({str(c).removeprefix(f"{dimensions[0]}.") for c in table if str(c).startswith(f"{dimensions[0]}.")})
    whole = [n for n in names if all(f"{d}.{n}" in table for d in dimensions)]
    pairs = [p for p in HALVES.items() if set(p) <= set(whole)] or list(itertools.combinations(whole, 2))
    return {
        f"{a}/{b}": np.stack([table[[f"{d}.{g}" for d in dimensions]].to_numpy(float) for g in (a, b)])
        for a, b in pairs
    }


def some(norms: Norms, count: int, seed: int, always: list[str]) -> Norms:
    """Some of the words, drawn by seed, those named among them."""
    order = np.random.default_rng(seed).permutation(len(norms.words))
    first = [i for i in order if norms.words[i] in always]
    at = np.sort(np.array([*first, *(i for i in order if norms.words[i] not in always)][:count]))
    return Norms(
        [norms.words[i] for i in at], norms.dimensions, norms.values[at], {n: g[:, at] for n, g in norms.groups.items()},
        None if norms.frequency is None else norms.frequency[at],
    )  # fmt: skip


def ceiling(norms: Norms) -> pd.DataFrame:
    """How well the mean of all raters can be predicted: groups of raters against each other.

    r between two groups; reliability of their mean 2r / (1 + r) (Spearman and Brown); ceiling its square root.
    """
    rows = []
    for name, both in norms.groups.items():
        for i, dimension in enumerate(norms.dimensions):
            a, b = both[..., i]
            there = np.isfinite(a) & np.isfinite(b)
            r = float(np.corrcoef(a[there], b[there])[0, 1])
            whole = 2 * r / (1 + r)
            rows.append({"groups": name, "dimension": dimension, "n": int(there.sum()), "r": r, "reliability": whole,
                         "ceiling": max(whole, 0.0) ** 0.5})  # fmt: skip
    return pd.DataFrame(rows, columns=["groups", "dimension", "n", "r", "reliability", "ceiling"])


def lexical(norms: Norms, tokens: np.ndarray) -> np.ndarray:
    """What a word looks like ``[word, feature]``: letters, tokens, frequency where the file has it, runs of 1 to 3 letters."""
    runs = [Counter(f"<{w.lower()}>"[i : i + n] for n in (1, 2, 3) for i in range(len(w) + 3 - n)) for w in norms.words]
    totals: Counter[str] = Counter(run for found in runs for run in found)
    kept = [run for run, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:NGRAMS]]
    counts = np.array([[found[run] for run in kept] for found in runs], float)
    plain = [np.array([len(w) for w in norms.words], float), tokens.astype(float)]
    plain += [] if norms.frequency is None else [norms.frequency]
    return np.column_stack([*(_scaled(x) * 3 for x in plain), _scaled(counts)])


def folds(count: int, k: int, seed: int) -> np.ndarray:
    """The fold of every row."""
    return np.random.default_rng(seed).permutation(np.arange(count) % k)


def predicted(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Ridge predictions ``[row, dimension]`` of rows that the fit has not seen.

    In each fold the penalty of each dimension is chosen on the other folds alone, by the error of leaving one out.
    """
    out = np.empty_like(y)
    for k in np.unique(fold):
        train = fold != k
        weights, offset = fitted(x[train], y[train])
        out[~train] = x[~train] @ weights + offset
    return out


def fitted(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge weights ``[feature, dimension]`` and offset; the penalty of least leave-one-out error, in closed form.

    With x = U S Vᵀ (centred) and penalty α, ŷ = U S²/(S² + α) Uᵀ y, and the error of row i left out is
    (y − ŷ)_i / (1 − 1/n − h_i), h_i the leverage.
    """
    mean, centre = x.mean(0), y.mean(0)
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    keep = s > s[0] * 1e-7 if len(s) else s > 0
    u, s, vt = u[:, keep], s[keep], vt[keep]
    target = u.T @ (y - centre)
    unit = (s**2).sum() / x.shape[1]
    shares = s[None] ** 2 / (s[None] ** 2 + PENALTIES[:, None] * unit / len(x))
    errors = np.empty((len(PENALTIES), y.shape[1]))
    for i, share in enumerate(shares):
        left = 1 - 1 / len(x) - (u**2) @ share
        errors[i] = ((((y - centre) - u @ (share[:, None] * target)) / left[:, None]) ** 2).mean(0)
    best = errors.argmin(0)
    weights = np.column_stack([vt.T @ (shares[b] / s * target[:, i]) for i, b in enumerate(best)])
    return weights, centre - mean @ weights


def correlations(y: np.ndarray, found: np.ndarray, seed: int) -> np.ndarray:
    """Pearson r ``[draw, dimension]`` of predictions with ratings: the first of all words, the others of words drawn anew."""
    weights = np.vstack([np.ones((1, len(y))), cluster_weights(len(y), DRAWS, seed)])
    weights /= weights.sum(1, keepdims=True)
    a, b = weights @ y, weights @ found
    cov = weights @ (y * found) - a * b
    return cov / np.sqrt((weights @ y**2 - a**2) * (weights @ found**2 - b**2))


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """The value of all words, and the 95 % percentile interval over words."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return float(draws[0]), float(low), float(high)


def components(x: np.ndarray, y: np.ndarray, count: int = 10) -> np.ndarray:
    """|r| of the first principal components with the ratings ``[component, dimension]``; no rating takes part in them."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    scores = u[:, :count] * s[:count]
    both = np.corrcoef(scores.T, y.T)
    return np.abs(both[: scores.shape[1], scores.shape[1] :])


def _scaled(x: np.ndarray) -> np.ndarray:
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1)
