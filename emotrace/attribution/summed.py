"""Summed: the scores of heads and neurons out of sums over prompts, wherever these were made. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace.disk import plain

SIGN = "positive = the {} raises the projection; removing it lowers it"
HEADS = "head contribution: projection minus projection without the head, same layer"
NEURONS = "neuron contribution: activation × ⟨what one unit of it writes, direction⟩"


class Axes(NamedTuple):
    """What scores are of.

    Attributes:
        label: what is contrasted.
        values: of the label.
        layers: 0-based.
        names: of the components; None numbers them.
    """

    label: str
    values: Sequence[Any]
    layers: Sequence[int]
    names: Any = None

    def coords(self, dim: str, size: int) -> dict[str, Any]:
        """Coordinates of label, layer and the dim of so many components."""
        index = np.arange(size) if self.names is None else np.asarray(self.names)
        return {self.label: np.array(self.values), "layer": list(self.layers), dim: index}


def heads(sums: Mapping[str, np.ndarray], n: np.ndarray, axes: Axes, about: Mapping[str, Any]) -> xr.Dataset:
    """The Dataset of `head_contributions`.

    Args:
        sums: ``first`` Σ importance ``[label of prompt, label of direction, layer, head]``, ``second`` Σ importance² on the own
            label ``[label, layer, head]``, and ``baseline`` Σ s(r) ``[label, layer]`` where that is known.
        n: prompts of each label.
        axes: what they are of.
        about: attrs.
    """
    label = axes.label
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
    return xr.Dataset(
        data, axes.coords("head", mean.shape[-1]), plain({"sign": SIGN.format("head"), "label": label, **about})
    )


def neurons(
    sums: Mapping[str, np.ndarray], n: np.ndarray, weights: Mapping[str, np.ndarray], normed: Sequence[bool], axes: Axes,
    about: Mapping[str, Any],
) -> xr.Dataset:  # fmt: skip
    """The Dataset of `neuron_contributions`: sums over prompts are linear in a except for the sign, which β decides.

    Args:
        sums: Σ max(a, 0) and Σ min(a, 0) ``[label, layer, unit]``; ``activation`` or ``raw`` Σ of what is shown as activation;
            ``shrink`` Σ 1/ρ ``[label, normed layer]``.
        n: prompts of each label.
        weights: ``beta [label, layer, unit]``; ``bias`` and ``added`` ``[label, layer]``, what the biases before and of the norm
            add.
        normed: whether a norm follows, per layer.
        axes: what they are of.
        about: attrs.
    """
    label = axes.label
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
    data = {name: (dims[: x.ndim], x) for name, x in found.items()}
    coords = axes.coords("unit", mean.shape[-1])
    return xr.Dataset(data, coords, plain({"sign": SIGN.format("neuron"), "label": label, **about}))
