"""Link: do the attributes that matter more to people's concepts matter more to the model's inferences?"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.masking import grouped, mean_of, t_test
from emotrace.signatures import typed
from emotrace.stats.ties import EPS, constant

OVER: Final = ("attribute", "emotion")
"""What the test of `human_link` takes for exchangeable."""


class _Cells(NamedTuple):
    """Of one k: mean drops ``[emotion, attribute]`` and their names."""

    drops: np.ndarray
    emotions: list[str]
    attributes: list[str]


@typed
def human_link(
    table: pd.DataFrame,
    human: xr.DataArray | Mapping[str, float],
    *,
    over: str = "attribute",
    permutations: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlation over attributes between the drop of accuracy and the human side, and whether it could be chance.

    Per (k, emotion): Pearson's r over attributes between the drop (mean over seeds) and the human side's correlation. Per k: the
    mean of Fisher's z = atanh r over emotions, transformed back.

    All emotions share the masks, and so whatever an attribute's mask happens to do: they are no independent observations, the
    attributes are. So the human side is shuffled over attributes, for all emotions alike, and two-sided p is the share of
    shuffles whose |mean z| is at least the observed: of all where there are no more than ``permutations``, else of so many drawn
    ones, (1 + extreme) / (1 + permutations). The interval is that of attributes drawn with replacement. ``over="emotion"`` is the
    published one-sample t-test over emotions, whose p is far too small.

    Args:
        table: of `drops`.
        human: attribute → its correlation with the human RDM, e.g. ``compare(human, attribute_rdms)["correlation"]``.
        over: ``attribute``, or ``emotion`` as published.
        permutations: most shuffles, and draws of the interval.
        seed: of both.
        level: of the interval.

    Returns:
        Two tables. Per k: ``k, r, lo, hi, p, p_floor`` (a p that the drawn shuffles cannot go below, 0 where all were tried),
        ``n`` emotions and ``n_attributes``; as published ``k, r, lo, hi, t, df, p, n``. Per k and emotion:
        ``k, emotion, r, n_attributes``. r > 0: masking hurts more where people weigh the attribute more. An emotion whose drops
        are all equal has no r and is left out of n.

    Raises:
        EmotraceError: for an attribute without a human value, fewer than 3 attributes or 2 emotions, or emotions with different
            attributes.
    """
    arguments.resampling("human_link", seed, permutations=permutations)
    arguments.share("human_link(level)", level)
    if over not in OVER:
        raise unknown("over", over, OVER, "human_link")
    if permutations < 1:
        raise EmotraceError(f"human_link(permutations={permutations}): at least 1.")
    weight = _weights(human)
    for name in dict.fromkeys(table["attribute"]):
        if name not in weight:
            raise unknown("attribute", name, weight, "the human side")
    each: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    for k, cells in _by_k(table).items():
        w = np.array([weight[a] for a in cells.attributes])
        if len(w) < 3 or constant(w):
            raise EmotraceError(f"human_link: {len(w)} attributes at k={k}; at least 3, with different weights.")
        defined = ~constant(cells.drops, noise=EPS)
        r = np.full(len(defined), np.nan)
        r[defined] = _correlations(cells.drops[defined], w[None])[0]
        each += [(k, emotion, float(x), len(w)) for emotion, x in zip(cells.emotions, r, strict=True)]
        if defined.sum() < 2:
            raise EmotraceError(f"human_link: r is defined for {int(defined.sum())} emotions at k={k}; at least 2.")
        if over == "emotion":
            z = t_test(_z(r[defined]), level, "two-sided")
            rows.append((k, np.tanh(z.mean), np.tanh(z.lo), np.tanh(z.hi), z.t, z.df, z.p, int(defined.sum())))
        else:
            found = _over_attributes(cells.drops[defined], w, permutations, seed, level)
            rows.append((k, *found, int(defined.sum()), len(w)))
    columns = [
        "r",
        "lo",
        "hi",
        *(("t", "df", "p", "n") if over == "emotion" else ("p", "p_floor", "n", "n_attributes")),
    ]
    return (
        pd.DataFrame(rows, columns=pd.Index(["k", *columns])),
        pd.DataFrame(each, columns=pd.Index(["k", "emotion", "r", "n_attributes"])),
    )


def _by_k(table: pd.DataFrame) -> dict[Any, _Cells]:
    cells: dict[Any, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (k, emotion, attribute), values in grouped(table, ["k", "emotion", "attribute"], "drop").items():
        cells[k][emotion][attribute] = mean_of(values)
    found = {}
    for k, emotions in cells.items():
        names = list(next(iter(emotions.values())))
        for emotion, drops in emotions.items():
            if set(drops) != set(names):
                other = sorted(set(drops) ^ set(names))[0]
                raise EmotraceError(
                    f"human_link: at k={k} not every emotion has the attribute {other!r} ({emotion!r}, e.g.)."
                )
        values = np.array([[drops[a] for a in names] for drops in emotions.values()])
        found[k] = _Cells(values, list(emotions), names)
    return found


class _Link(NamedTuple):
    """Mean r, its interval, p and the least p that the shuffles can give."""

    r: float
    lo: float
    hi: float
    p: float
    p_floor: float


def _over_attributes(drops: np.ndarray, w: np.ndarray, permutations: int, seed: int, level: float) -> _Link:
    n, rng = len(w), np.random.default_rng(seed)
    exact = math.factorial(n) <= permutations
    if exact:
        order = np.array(list(itertools.permutations(range(n))))
    else:
        order = rng.permuted(np.broadcast_to(np.arange(n), (permutations, n)), axis=1)
    observed = float(_z(_correlations(drops, w[None])).mean())
    null = _z(_correlations(drops, w[order])).mean(1)
    extreme = int((np.abs(null) >= abs(observed) - 1e-12).sum())
    p, floor = (extreme / len(null), 0.0) if exact else ((1 + extreme) / (1 + permutations), 1 / (1 + permutations))
    counts = rng.multinomial(n, np.full(n, 1 / n), size=permutations).astype(float)
    drawn = _weighted(drops, w, counts)
    lo, hi = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return _Link(float(np.tanh(observed)), float(np.tanh(lo)), float(np.tanh(hi)), p, floor)


def _correlations(drops: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Pearson's r of every emotion with every order of the human side: ``[order, emotion]``."""
    mine, theirs = (x - x.mean(-1, keepdims=True) for x in (drops, w))
    mine, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (mine, theirs))
    return theirs @ mine.T


def _weighted(drops: np.ndarray, w: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean z over emotions where each attribute counts so often, ``[draw]``; NaN where a draw leaves nothing that varies."""
    n = counts.shape[1]
    d, h = (x - x.mean(-1, keepdims=True) for x in (drops, w))  # where they vary about does not matter
    mean_d, mean_h = counts @ d.T / n, counts @ h / n
    cross = (counts * h) @ d.T / n - mean_d * mean_h[:, None]
    var_d, var_h = counts @ (d**2).T / n - mean_d**2, counts @ h**2 / n - mean_h**2
    size = np.sqrt(np.maximum(var_d * var_h[:, None], 0))
    some = size > 1e-12 * np.sqrt((d**2).mean(-1) * (h**2).mean())
    z = _z(np.where(some, cross, np.nan) / np.where(some, size, 1))
    known = np.isfinite(z)
    return np.where(known.any(1), np.where(known, z, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)


def _z(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))


def _weights(human: xr.DataArray | Mapping[str, float]) -> dict[str, float]:
    if isinstance(human, xr.DataArray):
        if human.dims != ("attribute",) or "attribute" not in human.coords:
            raise EmotraceError(
                f"human_link: the human side is [attribute] with labels, not {list(map(str, human.dims))}."
            )
        human = dict(zip(human["attribute"].values.tolist(), human.values.tolist(), strict=True))
    found = {str(k): float(v) for k, v in human.items()}
    for name, value in found.items():
        if not np.isfinite(value):
            raise EmotraceError(f"human_link: the human side of {name!r} is {value}.")
    return found
