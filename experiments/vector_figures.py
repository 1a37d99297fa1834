"""Vectors: figures of the studies of emotion vectors."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.directions import similarity
from emotrace.labels import ANSWERS, emotion
from emotrace.replies import diagonal
from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import INK, MARKERS, SERIES, Picture


def matrix(table: pd.DataFrame, n: int, dose: float) -> Picture:
    """Heat map of `replies.emotion_matrix`: the vector that was added × what the judge read.

    Args:
        table: shares, rows sum to 1.
        n: replies a row.
        dose: that they were made at.
    """
    answers = [a for a in ANSWERS if a in table.columns]
    order = sorted(table.index, key=lambda e: answers.index(emotion(str(e), answers)))
    values = table.loc[order, answers].to_numpy(dtype=float)
    most = sum(found["most"] for found in diagonal(table).values())
    caption = "Replies to the test queries; joy counts as happiness."
    figure = style.canvas(4.6, f"{most} of {len(order)} emotions are read most often under their own vector", caption)
    ax = figure.subplots()
    image = heat(ax, values, answers, [str(e) for e in order], text=style.percent, vmin=0, vmax=1)
    style.titled(
        ax, f"dose {dose:g}, n = {n} replies a row", "read as, by a judge that does not know the vector", "vector added"
    )
    scale(figure, image, ax=ax, shrink=0.8)
    return figure


def doses(table: pd.DataFrame, chosen: float | None = None, where: str = "", caption: str = "") -> Picture:
    """Dose curve of `replies.dose_table`: on target, fluent and on target, drift; below, KL and variety of words.

    Args:
        table: its lines of all emotions together are drawn.
        chosen: a dose to mark.
        where: what the replies answer.
        caption: what the table is.
    """
    lines = table.loc[table["emotion"] == "all"].sort_values(by="dose")
    x = lines["dose"].to_numpy(dtype=float)
    figure = style.canvas(7.0, _dose_claim(lines), caption)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    style.axes(top, f"{where}, n = {style.span([int(n) for n in lines['n']])} replies a dose", "", "share of replies")
    style.percent_axis(top, 1.06)
    for i, (name, label) in enumerate(
        (
            ("on_target", "read as the emotion aimed at"),
            ("on_target_fluent", "read so, and fluent"),
            ("off_target", "read as another emotion"),
            ("fluent", "fluent"),
        )
    ):
        y = lines[name].to_numpy(dtype=float)
        if np.isfinite(y).any():
            top.plot(x, y, color=SERIES[i], marker=MARKERS[i], markersize=5, linewidth=1.6, label=label)
    for at, lo, hi in zip(x, lines["on_target_lo"], lines["on_target_hi"], strict=True):
        style.whisker(top, float(at), (float(lo), float(hi)), SERIES[0])
    if chosen is not None:
        top.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="chosen dose")
    style.axes(below, "", "dose: multiple of the vector", "KL, nats a token")
    below.plot(
        x, lines["kl"].to_numpy(dtype=float), color=SERIES[4], marker="v", markersize=5, label="KL(base ‖ edited)"
    )
    other = below.twinx()
    other.plot(
        x, lines["distinct_1"].to_numpy(dtype=float), color=SERIES[6], marker="X", markersize=5, label="distinct words"
    )
    other.set_ylim(0, 1.05)
    other.set_ylabel("distinct words, share", fontsize=10, color=INK)
    other.tick_params(labelsize=9, colors=INK)
    handles = [line for ax in (top, below, other) for line in ax.get_lines() if not line.get_label().startswith("_")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def geometry(vectors: xr.DataArray) -> Picture:
    """Norms by layer, cosines between emotions (mean over layers), and the vectors of all layers on two principal axes.

    Args:
        vectors: ``[emotion, layer, dim]``, not normalised.
    """
    names = [str(e) for e in vectors["emotion"].values]
    cosines = similarity(vectors).mean("layer").values
    off = cosines[~np.eye(len(names), dtype=bool)] if len(names) > 1 else np.array([np.nan])
    figure = style.canvas(
        4.2, f"Mean cosine between the vectors of two emotions: {style.signed(float(off.mean()))}",
        "Not normalised: the length of one addition at dose 1.",
    )  # fmt: skip
    left, middle, right = figure.subplots(1, 3)
    style.axes(left, "Length", "layer", "‖v‖")
    layers = vectors["layer"].values
    norms = np.linalg.norm(vectors.transpose("emotion", "layer", "dim").values, axis=-1)
    for i, name in enumerate(names):
        left.plot(layers, norms[i], color=SERIES[i % 7], marker=MARKERS[i % 7], markersize=4, label=name)
    left.legend(fontsize=8, frameon=False)
    heat(
        middle, cosines, names, names, turn=45, size=8.5, text=lambda v: f"{v:.2f}".replace("-", "−"), cmap=style.SIGNED,
        vmin=-1, vmax=1, aspect="equal",
    )  # fmt: skip
    style.titled(middle, "Cosine, mean over layers")
    flat = vectors.transpose("emotion", "layer", "dim").values.astype(np.float64)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    points = unit.reshape(-1, unit.shape[-1])
    axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
    share = axes[1] ** 2 / (axes[1] ** 2).sum()
    placed = ((points - points.mean(0)) @ axes[2][:2].T).reshape(len(names), -1, 2)
    style.axes(right, f"PCA: {style.percent(float(share[:2].sum()))} of variance", "first axis", "second axis")
    for i, name in enumerate(names):
        right.plot(*placed[i].T, linestyle="none", color=SERIES[i % 7], marker=MARKERS[i % 7], markersize=5, label=name)
    return figure


def _dose_claim(lines: pd.DataFrame) -> str:
    name = "on_target_fluent" if any(map(math.isfinite, lines["on_target_fluent"])) else "on_target"
    points = sorted((float(d), float(v)) for d, v in zip(lines["dose"], lines[name], strict=True) if math.isfinite(v))
    dose, best = max(points, key=lambda point: point[1])
    said = f"Best at dose {dose:g}: {style.percent(best)} on target" + (" and fluent" if name != "on_target" else "")
    last, there = points[-1]
    return said + (f"; {style.percent(there)} at {last:g}" if last > dose else "")
