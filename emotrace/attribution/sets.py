"""Sets: which components a curve changes: the best k, the least telling k, and random ones, as many in each layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace import arguments
from emotrace.attribution.ranks import feature
from emotrace.labels import EmotraceError, unknown
from emotrace.stats.ties import descending, tied

Components = Mapping[int, Sequence[int]]
"""Layer → indices of its components, ascending."""
"""Component → the site that holds it."""
KS = (1, 2, 4, 8, 16)
"""Components of a set, unless the caller says otherwise; numbers above what exists are left out."""


class Set(NamedTuple):
    """The components of every label under one rule.

    Attributes:
        which: ``top``, ``low`` or ``random``.
        draw: 0 unless random.
        k: components in each layer, or of the top set in the whole model.
    """

    which: str
    draw: int
    k: int


def choose(
    scores: xr.DataArray, ks: Sequence[int] | None = None, *, draws: int = 5, low: bool = True, per: str = "layer",
    seed: int = 0,
) -> dict[Any, dict[Set, dict[int, tuple[int, ...]]]]:  # fmt: skip
    """The components of every set.

    ``top``: the k highest scores; ``low``: the smallest absolute scores; ``random``: drawn without replacement from all
    components of the layer, top ones included, the sets of one draw growing with k. Equal scores are ordered by layer and
    index. ``low`` and ``random`` have as many components in each layer as ``top``.

    Args:
        scores: ``[label, layer, unit or head]``.
        ks: sizes; None takes those of `KS` that exist.
        draws: random sets for each k.
        low: whether to choose the low sets.
        per: ``layer`` (k in each layer) or ``model`` (k in all layers together).
        seed: of the random sets.

    Returns:
        Label → set → layer → indices, ascending.

    Raises:
        EmotraceError: for scores that are not finite, or ks and draws that make no sense.
    """
    dim = feature(scores)
    (label,) = [d for d in scores.dims if d not in ("layer", dim)] or [""]
    if not label or "layer" not in scores.dims:
        raise EmotraceError(f"sets are chosen from scores [label, layer, {dim}], not from {scores.dims}.")
    if per not in ("layer", "model"):
        raise unknown("choice", per, ("layer", "model"), "curve(per=…)")
    arguments.whole("curve(draws)", draws, 0)
    values = np.asarray(scores.transpose(label, "layer", dim).values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise EmotraceError(f"the scores {str(scores.name)!r} are not finite everywhere, so they rank nothing.")
    width = values.shape[2]
    sizes = _sizes(ks, width * values.shape[1] if per == "model" else width, f"{dim}s in a {per}")
    layers = [int(i) for i in scores["layer"].values]
    return {
        name: _of_label(values[i], layers, sizes, draws, low, per, (seed, i))
        for i, name in enumerate(scores[label].values.tolist())
    }


def union(sets: Mapping[Any, Mapping[Set, Components]]) -> dict[int, list[int]]:
    """Every component that some set of some label has, by layer."""
    found: dict[int, set[int]] = {}
    for of_label in sets.values():
        for components in of_label.values():
            for layer, chosen in components.items():
                found.setdefault(layer, set()).update(chosen)
    return {layer: sorted(chosen) for layer, chosen in sorted(found.items())}


def _sizes(ks: Sequence[int] | None, most: int, of: str) -> tuple[int, ...]:
    if ks is None:
        return tuple(k for k in KS if k <= most)
    sizes = arguments.wholes("curve(ks)", ks)
    if list(sizes) != sorted(sizes) or not 1 <= sizes[0] <= sizes[-1] <= most:
        raise EmotraceError(f"curve(ks={list(ks)}): rising integers from 1 to {most}, since there are {most} {of}.")
    return sizes


def _of_label(
    values: np.ndarray,
    layers: list[int],
    sizes: tuple[int, ...],
    draws: int,
    low: bool,
    per: str,
    seed: tuple[int, int],
) -> dict[Set, dict[int, tuple[int, ...]]]:
    """Sets of one label from its scores ``[layer, component]``."""
    best = descending(values, axis=1)
    least = np.argsort(tied(np.abs(values), axis=1), axis=1, kind="stable")
    over_all = descending(values.ravel()) // values.shape[1]
    counts = {
        k: np.bincount(over_all[:k], minlength=len(layers)) if per == "model" else np.full(len(layers), k)
        for k in sizes
    }

    def cut(order: np.ndarray, k: int) -> dict[int, tuple[int, ...]]:
        return {
            layer: tuple(sorted(order[i, : counts[k][i]].tolist())) for i, layer in enumerate(layers) if counts[k][i]
        }

    found = {Set("top", 0, k): cut(best, k) for k in sizes}
    if low:
        found |= {Set("low", 0, k): cut(least, k) for k in sizes}
    for draw in range(draws):
        order = np.stack([np.random.default_rng([*seed, draw, layer]).permutation(values.shape[1]) for layer in layers])
        found |= {Set("random", draw, k): cut(order, k) for k in sizes}
    return found
