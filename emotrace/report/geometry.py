"""Geometry: the figure of how directions lie to each other, and what is shared by figures of directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from emotrace import directions as cosine
from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import Picture
from emotrace.signatures import typed

ANNOTATED = 14
"""Largest side of a matrix whose cells carry numbers."""

X = TypeVar("X", xr.DataArray, xr.Dataset)


@typed
def similarity_maps(directions: xr.DataArray, layer: int | None = None) -> Picture:
    """Cosines between emotions at one layer, and between all sublayers (mean over emotions, order attn0, mlp0, …).

    Args:
        directions: ``[emotion, layer, sublayer, dim]``, unit vectors (``sublayer`` may be absent).
        layer: the layer of the first panels; None for the middle one.

    Raises:
        EmotraceError: for a layer the directions do not have.
    """
    directions = full(directions)
    layers = [int(i) for i in directions["layer"].values]
    at = chosen_layer(layers) if layer is None else int(layer)
    if at not in layers:
        raise EmotraceError(
            f"similarity_maps(layer={layer}): the directions have the layers {style.layer_range(layers)}."
        )
    subs = [str(s) for s in directions["sublayer"].values]
    order = style.emotions_of([str(e) for e in directions["emotion"].values])
    cosines = cosine.similarity(directions.sel(emotion=order, layer=[at]))
    places = cosine.sublayer_similarity(directions).mean("emotion")
    side = len(places["place"])
    shown = [s for s in subs if s in ("resid_mid", "resid_post")] or subs[-2:]
    height, bottom = 10.4, 5.2
    figure = style.canvas(height, _similarity_claim(cosines, at, shown[-1]), _similarity_caption(directions))
    figure.set_layout_engine("none")

    def square(left: float, low: float, side: float) -> Axes:
        """Axes placed in inches, so that both rows begin at the same margin."""
        return figure.add_axes((left / style.WIDTH, low / height, side / style.WIDTH, side / height))

    for i, sub in enumerate(shown):
        ax = square(1.0 + 4.0 * i, height - 3.75, 3.0)
        matrix = cosines.sel(sublayer=sub).isel(layer=0).sel(emotion=order, emotion_other=order)
        _heat(ax, matrix.transpose("emotion", "emotion_other").values, order, order if i == 0 else [""] * len(order))
        style.titled(ax, f"{sub}, layer {at}{groups(directions)}")
    below = square(1.0, 0.6, bottom)
    names = [str(p) for p in places["place"].values]
    step = max(1, math.ceil(side / 28))
    names = [n if i % step == 0 else "" for i, n in enumerate(names)]
    image = _heat(below, places.values, names, names)
    style.titled(below, f"Sublayer × sublayer, mean over {len(order)} emotions{groups(directions)}")
    beside = figure.add_axes(((1.3 + bottom) / style.WIDTH, 1.4 / height, 0.14 / style.WIDTH, (bottom - 1.6) / height))
    scale(figure, image, "cosine (0: unrelated)", cax=beside)
    return figure


def chosen_layer(layers: Sequence[int], chosen: Mapping[str, Any] | None = None) -> int:
    """The layer that the heat map shows: ``chosen.layer``, else the middle one of ``chosen.layers``, else of all."""
    if chosen and chosen.get("layer") in layers:
        return int(chosen["layer"])
    edited = [i for i in (chosen or {}).get("layers", []) if i in layers] or list(layers)
    return int(sorted(edited)[len(edited) // 2])


def full(x: X) -> X:
    """The array with the dim ``sublayer``, of one nameless entry where it is absent."""
    if "sublayer" in x.dims:
        return x
    name = str(x["sublayer"].values) if "sublayer" in x.coords else "resid_post"
    bare = x.drop_vars(["sublayer", "norm"], errors="ignore").expand_dims({"sublayer": [name]})
    if "norm" not in x.coords:
        return bare
    norm = x.coords["norm"].drop_vars(["sublayer", "norm"], errors="ignore")
    return bare.assign_coords(norm=norm.expand_dims({"sublayer": [name]}))


def groups(directions: xr.DataArray) -> str:
    """``n = 480 groups`` in brackets, or nothing where it is not known."""
    n = directions.attrs.get("n_groups")
    return f" (n = {int(n):,} groups)" if n else ""


def counted(found: xr.DataArray | xr.Dataset) -> str:
    """``480 groups``, or that it is unknown."""
    n = found.attrs.get("n_groups")
    return f"{int(n):,} groups" if n else "unknown"


def _heat(ax: Axes, matrix: np.ndarray, across: Sequence[str], down: Sequence[str]) -> AxesImage:
    return heat(
        ax, matrix, across, down, turn=90 if len(across) > 8 else 45, text=_cosine if len(matrix) <= ANNOTATED else None,
        cmap=style.SIGNED, vmin=-1, vmax=1, aspect="equal",
    )  # fmt: skip


def _cosine(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−").replace("0.", ".", 1)


def _similarity_caption(directions: xr.DataArray) -> str:
    k = directions.sizes["emotion"]
    apart = f"""; since {k} centred means sum to zero, {k} that differ equally would have a cosine of −1/{k - 1} =
        −{1 / (k - 1):.2f} with each other""" if k > 1 else ""  # fmt: skip
    return f"""A direction is the mean over groups (one scenario and valence) of an emotion's activation less the group's
        mean over emotions, made unit length. Above: cosines between emotions{apart}. Below: cosines of the same emotion's
        directions at different places, averaged over emotions, in the order attn0, mlp0, attn1, … (attn: the residual after
        attention; mlp: after the MLP). They describe one set of directions, without an interval; n = {counted(directions)}."""


def _similarity_claim(cosines: xr.DataArray, layer: int, sub: str) -> str:
    matrix = cosines.sel(sublayer=sub).isel(layer=0)
    names = [str(e) for e in matrix["emotion"].values]
    values = matrix.transpose("emotion", "emotion_other").values
    pairs = [(float(values[i, j]), names[i], names[j]) for i in range(len(names)) for j in range(i)]
    if not pairs:
        return f"One direction at layer {layer}"
    cosine, a, b = max(pairs)
    return f"Layer {layer}, {sub}: the most similar directions are {b} and {a}, cosine {cosine:.2f}".replace("-", "−")
