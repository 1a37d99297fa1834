"""Coordinates: figures of which coordinates of a layer an emotion moves, and of how vectors lie to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.manifold import TSNE

from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import INK, MARKERS, SERIES, Picture


def sorted_differences(differences: xr.DataArray, against: str = "neutral") -> Picture:
    """Heat map of the differences of every layer, for each emotion its coordinates in the order of their mean over layers.

    Args:
        differences: ``[emotion, layer, dim]``.
        against: what was taken off.
    """
    x = differences.transpose("emotion", "layer", "dim")
    values = x.values.astype(np.float64)
    most = _largest(values)
    figure, panels = _panels(x, "Differences from neutral, sorted", f"Mean of the emotion's texts minus {against}.")
    shown: Any = None
    for ax, name, rows in zip(panels, x["emotion"].values, values, strict=True):
        look: Any = {
            "cmap": style.SIGNED_POINTS,
            "vmin": -most,
            "vmax": most,
            "origin": "lower",
            "interpolation": "nearest",
        }
        shown = heat(ax, rows[:, np.argsort(rows.mean(0), kind="stable")], **look)
        _framed(ax, str(name), "coordinates, by mean difference", x["layer"].values.tolist())
    scale(figure, shown, "mean difference", ax=panels, shrink=0.8)
    return figure


def largest(differences: xr.DataArray, k: int) -> Picture:
    """The k coordinates of largest |difference| of every layer: which ones, and which way they are moved.

    Args:
        differences: ``[emotion, layer, dim]``.
        k: coordinates a layer.
    """
    x = differences.transpose("emotion", "layer", "dim")
    values = x.values.astype(np.float64)
    k, most = min(k, values.shape[-1]), _largest(values)
    top = np.argsort(-np.abs(values), axis=-1, kind="stable")[..., :k]
    lasting = float(np.mean([_lasting(rows) for rows in top]))
    claim = f"{style.percent(lasting)} of a layer's {k} largest coordinates are among the next layer's"
    figure, panels = _panels(x, claim, f"The {k} largest of every layer.")
    shown: Any = None
    for ax, name, rows, picked in zip(panels, x["emotion"].values, values, top, strict=True):
        layers = np.repeat(np.arange(len(rows)), k)
        shown = ax.scatter(
            picked.ravel(), layers, c=np.take_along_axis(rows, picked, -1).ravel(), cmap=style.SIGNED_POINTS,
            vmin=-most, vmax=most, s=14, edgecolors=INK, linewidths=0.2,
        )  # fmt: skip
        ax.set_xlim(-0.5, values.shape[-1] - 0.5)
        _framed(ax, str(name), "coordinate", x["layer"].values.tolist())
    scale(figure, shown, "mean difference", ax=panels, shrink=0.8)
    return figure


def told_by_layer(table: pd.DataFrame, against: str = "neutral") -> Picture:
    """AUROC of each emotion's vector on held-out texts, layer by layer, with its interval.

    Args:
        table: rows with ``emotion``, ``layer``, ``auroc``, ``lo``, ``hi``.
        against: label of the other side.
    """
    means: Any = table.groupby("layer")["auroc"].mean()
    figure = style.canvas(
        4.2, f"Held-out texts are told from {against} best at layer {means.idxmax()}: AUROC {means.max():.2f}, mean of emotions",
        "Bands: 95 % bootstrap over texts. Dashed: chance.",
    )  # fmt: skip
    ax = figure.subplots()
    style.axes(ax, "", "layer", "AUROC")
    for i, (name, rows) in enumerate(table.groupby("emotion", sort=False)):
        look: Any = {"color": SERIES[i % 7]}
        ax.plot(rows["layer"], rows["auroc"], marker=MARKERS[i % 7], markersize=4, linewidth=1, label=str(name), **look)
        ax.fill_between(rows["layer"], rows["lo"], rows["hi"], alpha=0.08, linewidth=0, **look)
    ax.axhline(0.5, color=INK, linewidth=0.8, linestyle="--")
    ax.legend(fontsize=8, frameon=False)
    return figure


def neighbours(vectors: xr.DataArray, seed: int = 0) -> Picture:
    """The unit vectors of every emotion and layer on two principal axes and by t-SNE; one point a layer, its number beside it.

    Args:
        vectors: ``[emotion, layer, dim]``, at least three in all.
        seed: of t-SNE.
    """
    x = vectors.transpose("emotion", "layer", "dim")
    flat = x.values.astype(np.float64).reshape(-1, x.sizes["dim"])
    points = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    centred = points - points.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    perplexity = min(10.0, (len(points) - 1) / 3)  # must stay below the number of points
    by_tsne = TSNE(perplexity=perplexity, random_state=seed, init="pca", max_iter=500).fit_transform(points)
    near = _nearest(points)
    names = np.repeat([str(e) for e in x["emotion"].values], x.sizes["layer"])
    figure = style.canvas(
        4.4, f"{style.percent(float(np.mean(names[near] == names)))} of vectors lie nearest to one of their emotion",
        "Distances between far groups mean nothing in t-SNE.",
    )  # fmt: skip
    for ax, placed, title in zip(figure.subplots(1, 2), (centred @ axes.T, by_tsne), ("PCA", "t-SNE"), strict=True):
        style.axes(ax, f"{title} of unit vectors, one a layer", "", "")
        ax.set_xticks([])
        ax.set_yticks([])
        for i, name in enumerate(dict.fromkeys(names)):
            mine = placed[names == name]
            ax.plot(*mine.T, "-", color=SERIES[i % 7], marker=MARKERS[i % 7], markersize=5, linewidth=0.5, label=name)
            for layer, (a, b) in zip(x["layer"].values, mine, strict=True):
                ax.annotate(str(layer), (a, b), fontsize=6, color=INK, xytext=(3, 3), textcoords="offset points")
        ax.legend(fontsize=8, frameon=False)
    return figure


def _panels(x: xr.DataArray, claim: str, caption: str) -> tuple[Picture, list[Any]]:
    n = x.sizes["emotion"]
    across = min(n, 3)
    down = math.ceil(n / across)
    figure = style.canvas(0.8 + 2.2 * down, claim, caption)
    panels = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for ax in panels[n:]:
        ax.remove()
    return figure, panels[:n]


def _framed(ax: Any, title: str, below: str, layers: Sequence[int]) -> None:
    every = max(1, len(layers) // 8)
    style.titled(ax, title, below, "layer")
    ax.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]], fontsize=8)
    ax.tick_params(labelsize=8, colors=INK)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max()) or 1.0


def _lasting(top: np.ndarray) -> float:
    """Mean share of a layer's coordinates that are among the next layer's."""
    pairs = [len(set(a) & set(b)) / len(a) for a, b in pairwise(top)]
    return float(np.mean(pairs)) if pairs else 1.0


def _nearest(points: np.ndarray) -> np.ndarray:
    """Of each unit vector the place of the one with the largest cosine to it, itself left out."""
    cosines = points @ points.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(1)
