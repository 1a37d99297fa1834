"""Summed: the scores of heads and neurons out of sums over prompts, wherever these were made. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from emotrace.disk import plain

SIGN = "positive = the {} raises the projection; removing it lowers it"
HEADS = "head contribution: projection minus projection without the head, same layer"
NEURONS = "neuron contribution: activation × ⟨what one unit of it writes, direction⟩"


def heads(
    sums: Mapping[str, np.ndarray], n: np.ndarray, *, label: str, values: Sequence[Any], layers: Sequence[int],
    about: Mapping[str, Any], names: Any = None,
) -> xr.Dataset:  # fmt: skip
    """The Dataset of `head_contributions`.

    Args:
        sums: ``first`` Σ importance ``[label of prompt, label of direction, layer, head]``, ``second`` Σ importance² on the own
            label ``[label, layer, head]``, and ``baseline`` Σ s(r) ``[label, layer]`` where that is known.
        n: prompts of each label.
        label: what is contrasted.
        values: of the label.
        layers: 0-based.
        about: attrs.
        names: of the heads; None numbers them.
    """
    count = n.astype(np.float64)
    first = sums["first"] / count[:, None, None, None]
    mean = np.stack([first[e, e] for e in range(len(n))])
    others = (first.sum(0) - mean) / (len(n) - 1)
    variance = sums["second"] / count[:, None, None] - mean**2
    dims = (label, "layer", "head")
    data: dict[str, Any] = {
        "mean": (dims, mean), "std": (dims, np.sqrt(np.maximum(variance, 0))), "contrast": (dims, mean - others)
    }  # fmt: skip
    if "baseline" in sums:
        data["baseline"] = (dims[:2], sums["baseline"] / count[:, None])
    data["n"] = (label, n.astype(np.int64))
    index = np.arange(mean.shape[-1]) if names is None else np.asarray(names)
    coords = {label: np.array(values), "layer": list(layers), "head": index}
    return xr.Dataset(data, coords, plain({"sign": SIGN.format("head"), "label": label, **about}))


def neurons(
    sums: Mapping[str, np.ndarray], n: np.ndarray, weights: Mapping[str, np.ndarray], normed: Sequence[bool], *, label: str,
    values: Sequence[Any], layers: Sequence[int], about: Mapping[str, Any], names: Any = None,
) -> xr.Dataset:  # fmt: skip
    """The Dataset of `neuron_contributions`: sums over prompts are linear in a except for the sign, which β decides.

    Args:
        sums: Σ max(a, 0) and Σ min(a, 0) ``[label, layer, unit]``; ``activation`` or ``raw`` Σ of what is shown as activation;
            ``shrink`` Σ 1/ρ ``[label, normed layer]``.
        n: prompts of each label.
        weights: ``beta [label, layer, unit]``; ``bias`` and ``added`` ``[label, layer]``, what the biases before and of the norm
            add.
        normed: whether a norm follows, per layer.
        label: what is contrasted.
        values: of the label.
        layers: 0-based.
        about: attrs.
        names: of the units; None numbers them.
    """
    count, beta = n.astype(np.float64)[:, None, None], weights["beta"]
    high, low, up = sums["positive"] / count, sums["negative"] / count, beta > 0
    mean = high + low
    raw = next((sums[name] / count for name in ("activation", "raw") if name in sums), mean)
    bias = weights["bias"].copy()
    for column, i in enumerate(np.flatnonzero(np.asarray(normed, dtype=bool))):
        bias[:, i] = bias[:, i] * sums["shrink"][:, column] / count[:, 0, 0] + weights["added"][:, i]
    above, below = np.where(up, high, low), np.where(up, low, high)
    apart = mean.sum(0) - mean
    apart /= len(n) - 1
    np.subtract(mean, apart, out=apart)
    for part in (above, below, apart):  # in place: arrays of this size take longer to make than to fill
        part *= beta
    dims = (label, "layer", "unit")
    found = {
        "mean": mean * beta, "positive": above, "negative": below, "contrast": apart, "activation": raw, "beta": beta,
        "bias": bias, "n": n.astype(np.int64),
    }  # fmt: skip
    index = np.arange(mean.shape[-1]) if names is None else np.asarray(names)
    coords = {label: np.array(values), "layer": list(layers), "unit": index}
    data = {name: (dims[: x.ndim], x) for name, x in found.items()}
    return xr.Dataset(data, coords, plain({"sign": SIGN.format("neuron"), "label": label, **about}))
