"""Vectors: figures of a study of emotion vectors, and one plain page that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from emotrace import disk
from emotrace.directions import similarity
from emotrace.labels import ANSWERS, emotion, filenames
from emotrace.replies import diagonal
from emotrace.report import style
from emotrace.report.style import INK, MARKERS, SERIES
from emotrace.texts import as_bytes

_ENV: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("emotrace.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
)


def matrix(table: pd.DataFrame, n: int, dose: float) -> Figure:
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
    figure = style.canvas(4.6, f"{most} of {len(order)} vectors raise their own emotion most")
    ax = figure.subplots()
    image = ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set_xticks(range(len(answers)), answers, fontsize=9)
    ax.set_yticks(range(len(order)), [str(e) for e in order], fontsize=9)
    ax.set_xlabel("read as, by a judge that does not know the vector", fontsize=10, color=INK)
    ax.set_ylabel("vector added", fontsize=10, color=INK)
    ax.set_title(f"dose {dose:g}, n = {n} replies a row", fontsize=10.5, loc="left", color=INK)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            ax.text(
                j, i, style.percent(value), ha="center", va="center", fontsize=9, color="white" if value > 0.5 else INK
            )
    figure.colorbar(image, ax=ax, shrink=0.8)
    return figure


def doses(table: pd.DataFrame, chosen: float | None = None, where: str = "") -> Figure:
    """Dose curve of `replies.dose_table`: on target, fluent and on target, drift; below, KL and variety of words.

    Args:
        table: its lines of all emotions together are drawn.
        chosen: a dose to mark.
        where: what the replies answer.
    """
    lines = table.loc[table["emotion"] == "all"].sort_values(by="dose")
    x = lines["dose"].to_numpy(dtype=float)
    figure = style.canvas(7.0, _dose_claim(lines))
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
    top.legend(fontsize=9, frameon=False)
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
    handles = [*below.get_lines(), *other.get_lines()]
    below.legend(handles=handles, fontsize=9, frameon=False, loc="center right")
    return figure


def geometry(vectors: xr.DataArray) -> Figure:
    """Norms by layer, cosines between emotions (mean over layers), and the vectors of all layers on two principal axes.

    Args:
        vectors: ``[emotion, layer, dim]``, not normalised.
    """
    names = [str(e) for e in vectors["emotion"].values]
    cosines = similarity(vectors).mean("layer").values
    off = cosines[~np.eye(len(names), dtype=bool)] if len(names) > 1 else np.array([np.nan])
    figure = style.canvas(4.2, f"Mean cosine between the vectors of two emotions: {style.signed(float(off.mean()))}")
    left, middle, right = figure.subplots(1, 3)
    style.axes(left, "Length", "layer", "‖v‖")
    layers = vectors["layer"].values
    norms = np.linalg.norm(vectors.transpose("emotion", "layer", "dim").values, axis=-1)
    for i, name in enumerate(names):
        left.plot(layers, norms[i], color=SERIES[i % 7], marker=MARKERS[i % 7], markersize=4, label=name)
    left.legend(fontsize=8, frameon=False)
    middle.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
    middle.set_xticks(range(len(names)), names, fontsize=8, rotation=45)
    middle.set_yticks(range(len(names)), names, fontsize=8)
    middle.set_title("Cosine, mean over layers", fontsize=10.5, loc="left", color=INK)
    for i in range(len(names)):
        for j in range(len(names)):
            middle.text(j, i, f"{cosines[i, j]:.2f}", ha="center", va="center", fontsize=8,
                        color="white" if abs(cosines[i, j]) > 0.6 else INK)  # fmt: skip
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


def page(
    out: Path,
    title: str,
    figures: Mapping[str, tuple[Figure, str]],
    tables: Mapping[str, tuple[pd.DataFrame, str]],
    facts: Sequence[str],
    warnings: Sequence[str],
    samples: Sequence[Mapping[str, Any]],
) -> Path:
    """Write ``figures/*.png``, ``tables/*.csv`` and ``report.html``; everything that a model or a file said is escaped.

    Args:
        out: folder of the run.
        title: of the page.
        figures: name → (figure, caption).
        tables: name → (table, caption).
        facts: sentences at the top.
        warnings: sentences beside them.
        samples: replies, mappings with the same fields.
    """
    for names in (figures, tables):
        filenames(names, str(out))
    for name, (figure, _) in figures.items():
        style.save(figure, out / "figures" / f"{name}.png")
    shown = []
    for name, (table, caption) in tables.items():
        path = out / "tables" / f"{name}.csv"
        disk.replace_file(path, as_bytes(table.to_csv(index=False)))
        rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
        shown.append({"name": name, "caption": caption, "head": list(table.columns), "rows": rows})
    pictures = [{"name": name, "claim": style.claim(f), "caption": caption} for name, (f, caption) in figures.items()]
    html = _ENV.get_template("vectors.html").render(
        title=title, pictures=pictures, tables=shown, facts=facts, warnings=warnings, samples=samples
    )
    disk.replace_file(out / "report.html", as_bytes(html))
    return out / "report.html"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if not math.isfinite(value) else f"{value:.3g}"
    return str(value)


def _dose_claim(lines: pd.DataFrame) -> str:
    name = "on_target_fluent" if any(map(math.isfinite, lines["on_target_fluent"])) else "on_target"
    points = sorted((float(d), float(v)) for d, v in zip(lines["dose"], lines[name], strict=True) if math.isfinite(v))
    dose, best = max(points, key=lambda point: point[1])
    said = f"Best at dose {dose:g}: {style.percent(best)} on target" + (" and fluent" if name != "on_target" else "")
    last, there = points[-1]
    return said + (f"; {style.percent(there)} at {last:g}" if last > dose else "")
