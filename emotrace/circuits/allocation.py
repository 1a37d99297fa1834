"""Allocate: how many neurons and heads each layer gives to a circuit.

An *allocation* is ``k[label, kind, layer]``, ``kind`` being ``neuron`` or ``head``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from emotrace import provenance
from emotrace.defaults import HEADS_PER_LAYER, NEURONS_PER_LAYER
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats.ties import TIED, descending

MINIMUM: Final = {"neuron": 4, "head": 2}
PER_SUBLAYER: Final = 10
CAP: Final = 0.4
MLP_SHARE: Final = 0.7


@typed
def allocate(
    weights: ArrayLike,
    total: int,
    minimum: int = 0,
    cap: float = CAP,
    available: ArrayLike | None = None,
) -> np.ndarray:
    """Components of each layer: a minimum each, the rest in proportion to weights, by largest remainder.

    With w̃ = max(w, 0) / Σ max(w, 0) (uniform where the sum is 0), L layers and R = total − L·minimum::

        k = minimum + min(⌊w̃·R⌋, ⌊cap·total⌋)

    What rounding and the cap leave over goes one by one to the layers with the largest fractional part of w̃·R (ties: the
    lower layer first), round after round, never more than ⌊cap·total⌋ above the minimum. Where the total does not
    suffice for the minimum, the minimum is 1, and where it does not suffice for that, 0. Layers that have fewer
    components than planned hand the rest to the others, those with the largest allocation first (ties: the lower layer); here
    the cap no longer holds.

    Args:
        weights: one finite number per layer; negative ones count as 0.
        total: components to give away, at least 1.
        minimum: of each layer.
        cap: share of ``total`` that a layer may get above its minimum, in (0, 1].
        available: components that each layer has; None for no limit.

    Returns:
        ``k[layer]`` int64; Σ k = min(total, L·(minimum + ⌊cap·total⌋), Σ available).

    Raises:
        EmotraceError: for weights that are not finite, or numbers out of their range.

    Source: arXiv 2510.11328, whose code stops after two rounds; what two rounds cannot place occurs only where one layer
    has nearly all the weight.
    """
    w = np.asarray(weights, dtype=np.float64)
    _check(w, total, minimum, cap)
    n = len(w)
    room = np.full(n, np.iinfo(np.int64).max) if available is None else _available(available, n)
    base = next(m for m in (minimum, 1, 0) if m <= minimum and m * n <= total)
    w = np.clip(w, 0, None)
    w = np.ldexp(w, -np.frexp(w.max())[1]) if w.any() else np.ones(n)  # by a power of two: exact, and no sum overflows
    raw = w / w.sum() * (total - base * n)
    most = math.floor(cap * total + TIED * total)
    whole = np.floor(raw + TIED * total)  # 2.9999999999999996 is 3 that was rounded
    extra = np.minimum(whole.astype(np.int64), most)
    left = total - base * n - int(extra.sum())
    order = descending(np.maximum(raw - whole, 0))
    while left > 0 and (extra < most).any():
        for layer in order:
            if left > 0 and extra[layer] < most:
                extra[layer] += 1
                left -= 1
    planned = base + extra
    given = np.minimum(planned, room)
    deficit = int((planned - given).sum())
    for layer in np.argsort(-planned, kind="stable"):
        more = min(deficit, int(room[layer] - given[layer]))
        given[layer] += more
        deficit -= more
    return given


@typed
def published_allocation(
    influence: xr.Dataset | xr.DataArray,
    total: int | None = None,
    mlp_share: float = MLP_SHARE,
    *,
    minimum: Mapping[str, int] | None = None,
    cap: float = CAP,
    available: Mapping[str, Any] | None = None,
    label: str = "emotion",
) -> xr.DataArray:
    """The allocation of EmotionCircuits: components go where sublayers have influence.

    K_neuron = round(mlp_share · total), K_head = total − K_neuron; each shared out by `allocate` with the influence of
    ``mlp_out`` and ``attn_out`` as weights. With 28 layers: K = 560, of which 392 neurons and 168 heads.

    Args:
        influence: of `emotrace.attribution.sublayer_influence`, or its ``influence[label, layer, sublayer]``.
        total: neurons and heads of one label together; None is 10 for every sublayer.
        mlp_share: share of the neurons.
        minimum: of each layer, by kind; None is 4 neurons and 2 heads.
        cap: share of a kind's components that a layer may get above its minimum, in (0, 1].
        available: components of each layer by kind (an int or one per layer); a kind that is absent gets none.
        label: dim of the labels.

    Returns:
        ``k[label, kind, layer]``.

    Raises:
        EmotraceError: for an influence without its dims, a sublayer that is missing, or numbers out of range.
    """
    table = influence["influence"] if isinstance(influence, xr.Dataset) else influence
    for dim in (label, "layer", "sublayer"):
        if dim not in table.dims:
            raise unknown("dim", dim, table.dims, "published_allocation(influence=…)")
    for sublayer in (COMPONENTS[kind].sublayer for kind in KINDS):
        if sublayer not in table["sublayer"].values:
            raise unknown("sublayer", sublayer, table["sublayer"].values.tolist(), "published_allocation(influence=…)")
    if not 0 <= mlp_share <= 1:
        raise EmotraceError(f"published_allocation(mlp_share={mlp_share}): a share lies between 0 and 1.")
    layers = table["layer"].values.tolist()
    whole = 2 * PER_SUBLAYER * len(layers) if total is None else total
    least = {**MINIMUM, **(minimum or {})}
    neurons = round(whole * mlp_share)
    totals = {"neuron": neurons, "head": whole - neurons}
    allocation = no_allocation(label, table[label].values.tolist(), layers)
    for kind in KINDS:
        room = None if available is None else per_layer(available.get(kind, 0), len(layers), f"available[{kind!r}]")
        exist = np.arange(len(layers)) if room is None else np.flatnonzero(room)
        if not len(exist) or not totals[kind]:
            continue
        for value in allocation[label].values:
            weights = table.sel({label: value, "sublayer": COMPONENTS[kind].sublayer}).values[exist]
            k = allocate(weights, totals[kind], least[kind], cap, None if room is None else room[exist])
            allocation.loc[{label: value, "kind": kind, "layer": np.asarray(layers)[exist]}] = k
    return allocation.assign_attrs(
        method="published",
        total=whole,
        mlp_share=mlp_share,
        cap=cap,
        **{f"minimum_{k}": least[k] for k in KINDS},
        **provenance.of(influence),
    )


@typed
def even_allocation(
    labels: Sequence[Any],
    layers: Sequence[int],
    available: Mapping[str, Any],
    neurons_per_layer: float = NEURONS_PER_LAYER,
    heads_per_layer: float = HEADS_PER_LAYER,
    *,
    label: str = "emotion",
) -> xr.DataArray:
    """The allocation of small models: the same number in every layer, so that random circuits of that size remain a control.

    Args:
        labels: values of the label.
        layers: 0-based layers.
        available: components of each layer by kind (an int or one per layer); a kind that is absent gets none.
        neurons_per_layer: an int, or as a float below 1 a share of what each layer has (rounded, at least 1).
        heads_per_layer: likewise.
        label: dim of the labels.

    Returns:
        ``k[label, kind, layer]``; 0 in layers that have no such component.

    Raises:
        EmotraceError: for a number that is negative or larger than a layer has.
    """
    allocation = no_allocation(label, labels, layers)
    for kind, wanted in (("neuron", neurons_per_layer), ("head", heads_per_layer)):
        name = f"{kind}s_per_layer={wanted!r}"
        room = per_layer(available.get(kind, 0), len(layers), f"available[{kind!r}]")
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float, np.number)) or not wanted >= 0:
            raise EmotraceError(f"{name}: a number of {kind}s, or a share of what a layer has (between 0 and 1).")
        if float(wanted).is_integer():
            k = np.where(room > 0, int(wanted), 0)
        elif wanted < 1:
            k = np.where(room > 0, np.maximum(1, np.round(wanted * room)), 0).astype(np.int64)
        else:
            raise EmotraceError(f"{name} is neither a whole number nor a share between 0 and 1.")
        short = np.flatnonzero(k > room)
        if len(short):
            raise EmotraceError(f"{name}: layer {layers[short[0]]} has {room[short[0]]} {kind}s.")
        allocation.loc[{"kind": kind}] = k
    return allocation.assign_attrs(method="even", neurons_per_layer=neurons_per_layer, heads_per_layer=heads_per_layer)


def no_allocation(label: str, labels: Sequence[Any], layers: Sequence[int]) -> xr.DataArray:
    """An allocation of nothing: ``k[label, kind, layer]`` = 0."""
    coords = {label: list(labels), "kind": list(KINDS), "layer": list(layers)}
    return xr.DataArray(np.zeros([len(c) for c in coords.values()], dtype=np.int64), coords, name="k")


def per_layer(value: object, n_layers: int, name: str) -> np.ndarray:
    """One count per layer out of one number or one per layer."""
    array = np.asarray(value)
    return _available(np.broadcast_to(array, (n_layers,)) if array.ndim == 0 else array, n_layers, name)


def _available(value: ArrayLike, n_layers: int, name: str = "available") -> np.ndarray:
    array = np.asarray(value)
    if array.shape != (n_layers,) or array.dtype.kind not in "iu" or (array < 0).any():
        raise EmotraceError(f"{name}={value!r}: one count from 0 for each of {n_layers} layers.")
    return array.astype(np.int64)


def _check(w: np.ndarray, total: int, minimum: int, cap: float) -> None:
    if w.ndim != 1 or not len(w) or not np.isfinite(w).all():
        raise EmotraceError(f"allocate(weights=…) takes one finite number per layer, not {w!r}.")
    for name, value, least in (("total", total, 1), ("minimum", minimum, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise EmotraceError(f"allocate({name}={value!r}): an integer, at least {least}.")
    if not 0 < cap <= 1:
        raise EmotraceError(f"allocate(cap={cap!r}): a share above 0, at most 1.")
