"""Geometry: the figure of how directions lie to each other, and what is shared by figures of directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emotrace import directions as cosine
from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.report.style import INK
from emotrace.signatures import typed

ANNOTATED = 14
"""Largest side of a matrix whose cells carry numbers."""


@typed
def similarity(directions: xr.DataArray, layer: int | None = None) -> Figure:
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
        raise EmotraceError(f"similarity(layer={layer}): the directions have the layers {style.layer_range(layers)}.")
    subs = [str(s) for s in directions["sublayer"].values]
    order = style.emotions_of([str(e) for e in directions["emotion"].values])
    cosines = cosine.similarity(directions.sel(emotion=order, layer=[at]))
    places = cosine.sublayer_similarity(directions).mean("emotion")
    side = len(places["place"])
    shown = [s for s in subs if s in ("resid_mid", "resid_post")] or subs[-2:]
    height, bottom = 10.4, 5.2
    figure = style.canvas(height, _similarity_claim(cosines, at, shown[-1]))
    figure.set_layout_engine("none")

    def square(left: float, low: float, side: float) -> Axes:
        """Axes placed in inches, so that both rows begin at the same margin."""
        return figure.add_axes((left / style.WIDTH, low / height, side / style.WIDTH, side / height))

    for i, sub in enumerate(shown):
        ax = square(1.0 + 4.0 * i, height - 3.75, 3.0)
        matrix = cosines.sel(sublayer=sub).isel(layer=0).sel(emotion=order, emotion_other=order)
        _heat(ax, matrix.transpose("emotion", "emotion_other").values, order, order if i == 0 else [""] * len(order))
        ax.set_title(f"{sub}, layer {at}{groups(directions)}", fontsize=10.5, loc="left", color=INK)
    below = square(1.0, 0.6, bottom)
    names = [str(p) for p in places["place"].values]
    step = max(1, math.ceil(side / 28))
    names = [n if i % step == 0 else "" for i, n in enumerate(names)]
    image = _heat(below, places.values, names, names)
    title = f"Sublayer × sublayer, mean over {len(order)} emotions{groups(directions)}"
    below.set_title(title, fontsize=10.5, loc="left", color=INK)
    scale = figure.add_axes(((1.3 + bottom) / style.WIDTH, 1.4 / height, 0.14 / style.WIDTH, (bottom - 1.6) / height))
    bar = figure.colorbar(image, cax=scale)
    bar.ax.tick_params(labelsize=9)
    bar.set_label("cosine (0: unrelated)", fontsize=10)
    return figure


def chosen_layer(layers: Sequence[int], chosen: Mapping[str, Any] | None = None) -> int:
    """The layer that the heat map shows: ``chosen.layer``, else the middle one of ``chosen.layers``, else of all."""
    if chosen and chosen.get("layer") in layers:
        return int(chosen["layer"])
    edited = [i for i in (chosen or {}).get("layers", []) if i in layers] or list(layers)
    return int(sorted(edited)[len(edited) // 2])


def full(x: Any) -> Any:
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


def _heat(ax: Axes, matrix: np.ndarray, across: Sequence[str], down: Sequence[str]) -> Any:
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="equal")
    many = len(across) > 8
    ax.set_xticks(range(len(across)), across, rotation=90 if many else 45, ha="center" if many else "right",
                  rotation_mode="default" if many else "anchor", fontsize=9)  # fmt: skip
    ax.set_yticks(range(len(down)), down, fontsize=9)
    ax.tick_params(length=0, colors=INK)
    if len(matrix) <= ANNOTATED:
        for (i, j), value in np.ndenumerate(matrix):
            text = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−").replace("0.", ".", 1)
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.65 else INK)
    return image


def _similarity_claim(cosines: xr.DataArray, layer: int, sub: str) -> str:
    matrix = cosines.sel(sublayer=sub).isel(layer=0)
    names = [str(e) for e in matrix["emotion"].values]
    values = matrix.transpose("emotion", "emotion_other").values
    pairs = [(float(values[i, j]), names[i], names[j]) for i in range(len(names)) for j in range(i)]
    if not pairs:
        return f"One direction at layer {layer}"
    cosine, a, b = max(pairs)
    return f"Layer {layer}, {sub}: the most similar directions are {b} and {a}, cosine {cosine:.2f}".replace("-", "−")
