"""Controls: what an effect must beat: random directions, wrong labels, labels shuffled before vectors are made. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from emotrace import aligned
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed


@typed
def random_directions(like: xr.DataArray, seed: int) -> xr.DataArray:
    """Random unit directions of the same shape and labels: a control of equal norm."""
    noise = np.random.default_rng(seed).standard_normal(like.shape)
    noise /= np.linalg.norm(noise, axis=like.get_axis_num("dim"), keepdims=True)
    return like.copy(data=noise.astype(np.float32)).assign_attrs(method="random", seed=seed)


@typed
def random_vectors(like: xr.DataArray, seed: int) -> xr.DataArray:
    """`random_directions` of the lengths that the coordinate ``norm`` says.

    Raises:
        EmotraceError: for vectors that do not say them.
    """
    if "norm" not in like.coords:
        raise unknown("coordinate", "norm", map(str, like.coords), "random_vectors(like=…)")
    noise = random_directions(like, seed)
    return noise.copy(data=(noise.variable * like["norm"].variable).transpose(*noise.dims).values)


@typed
def deranged(directions: xr.DataArray, seed: int, label: str = "emotion") -> xr.DataArray:
    """The same directions under wrong labels: a random permutation without a fixed point.

    Args:
        directions: with the dim ``label``.
        seed: of the permutation.
        label: whose values change places.

    Raises:
        EmotraceError: for one label.
    """
    values = directions[label].values
    order = list(derangement(range(len(values)), seed, label).values())
    moved = directions.isel({label: order}).assign_coords({label: values})
    return moved.assign_attrs(method="deranged", seed=seed)


@typed
def derangement(labels: Sequence[Any], seed: int, label: str = "label") -> dict[Any, Any]:
    """To every label another one: a random permutation without a fixed point.

    Args:
        labels: at least two.
        seed: of the permutation.
        label: their name, for the message.

    Raises:
        EmotraceError: for one label.
    """
    n = len(labels)
    if len(set(labels)) < max(n, 2):
        raise EmotraceError(f"labels cannot be deranged: there is only one {label}, or one twice: {list(labels)}.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    while (order == np.arange(n)).any():
        order = rng.permutation(n)
    return {label: labels[int(i)] for label, i in zip(labels, order, strict=True)}


@typed
def norm_matched(vectors: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Vectors at the norms that others have, emotion by emotion and layer by layer, each found by its name.

    Raises:
        EmotraceError: for vectors of other dims, emotions or layers, or where one is zero and should not be.
    """
    values = aligned.like(vectors, like).transpose(*like.dims).values.astype(np.float64)
    axis = like.get_axis_num("dim")
    own = np.linalg.norm(values, axis=axis, keepdims=True)
    wanted = np.linalg.norm(like.values.astype(np.float64), axis=axis, keepdims=True)
    if ((own == 0) & (wanted > 0)).any():
        raise EmotraceError("a control vector is zero where the true one is not: it cannot be brought to its norm.")
    scaled = np.where(own > 0, values * wanted / np.where(own > 0, own, 1.0), 0.0)
    bare = like.drop_vars([str(c) for c in like.coords if c not in like.dims])
    return bare.copy(data=scaled.astype(np.float32)).assign_attrs(
        {**like.attrs, "control": vectors.attrs.get("method", "")}
    )


@typed
def shuffled_labels(acts: xr.DataArray, label: str = "emotion", unit: str | None = None, seed: int = 0) -> xr.DataArray:
    """The same activations under shuffled labels, to make control vectors from by the method that made the true ones.

    Args:
        acts: labelled rows with the dim ``token``.
        label: shuffled.
        unit: label whose rows keep together, e.g. ``query_id`` for the two answers to a query; None for every row alone.
        seed: of the permutation.

    Raises:
        EmotraceError: for labels that the rows lack, a unit with two labels, or one label in all.
    """
    for name in (label, *([unit] if unit else [])):
        if name not in acts.coords or acts[name].dims != ("token",):
            raise unknown("label", name, [str(c) for c in acts.coords if acts[c].dims == ("token",)], "shuffled_labels")
    labels = acts[label].values
    units = np.arange(len(labels)) if unit is None else acts[unit].values
    names, first, code = np.unique(units, return_index=True, return_inverse=True)
    if (labels[first][code] != labels).any():
        raise EmotraceError(f"shuffled_labels(unit={unit!r}): rows of one {unit} have several values of {label!r}.")
    if len(set(labels.tolist())) < 2:
        raise EmotraceError(f"shuffled_labels: all rows have one {label}.")
    order = np.random.default_rng(seed).permutation(len(names))
    return acts.assign_coords({label: ("token", labels[first][order][code])})
