"""Curves: the figure of what happens when components are removed or added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from emotrace.report import style
from emotrace.report.parts import label_of
from emotrace.report.style import FAINT, INK, MARKERS, SERIES, Picture
from emotrace.signatures import typed

RANDOM, LOW, MEAN = "#777777", "#0072B2", "#111111"
ROWS: Final = ("neurons ablated", "heads ablated", "neurons added", "heads added")
SIDES: Final = ("ablated", "added")
"""Curves whose names end alike share a row, and so an axis."""


@typed
def effect_curves(curves: Mapping[str, xr.Dataset]) -> Picture:
    """Change of the projection on each emotion against the number of components removed or added.

    A panel per curve; what is ablated shares one axis, and so does what is added. A line per emotion: the best components of the
    ranking, with the 95 % intervals of the Dataset; thick: their mean. Bands: from the lowest to the highest of all emotions, of
    random components over all their draws, and of those with the smallest scores.

    Args:
        curves: name → Dataset over ``(label, which, k)`` with ``delta``, ``ci_low``, ``ci_high``, and, for random sets,
            ``random (label, draw, k)``.
    """
    names = style.in_order(curves, ROWS)
    rows = [[n for n in names if n.endswith(side)] for side in SIDES]
    rows = [row for row in [*rows, [n for n in names if not n.endswith(SIDES)]] if row]
    labels = style.emotions_of(
        list(dict.fromkeys(str(e) for c in curves.values() for e in c[label_of(c["delta"])].values))
    )
    across = max(map(len, rows))
    figure = style.canvas(1.6 + 2.7 * len(rows), curves_claim(curves), _caption(curves))
    panels = figure.subplots(len(rows), across, squeeze=False, sharey="row")
    for i, row in enumerate(rows):
        for j, ax in enumerate(panels[i]):
            if j >= len(row):
                ax.set_axis_off()
                continue
            _panel(ax, row[j], curves[row[j]], labels)
            ax.tick_params(labelleft=True)
            ax.set_ylabel("Δ projection" if j == 0 else "", fontsize=10, color=INK)
    figure.legend(handles=_handles(curves, labels), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


def look_of(i: int, labels: Sequence[str]) -> dict[str, Any]:
    """Of the line of an emotion: its own colour and marker where they can be told apart."""
    if len(labels) > len(SERIES):
        return {"color": SERIES[1], "alpha": 0.45}
    return {"color": SERIES[i], "marker": MARKERS[i], "markersize": 4}


def _panel(ax: Axes, name: str, curve: xr.Dataset, labels: Sequence[str]) -> None:
    label = label_of(curve["delta"])
    mine = [e for e in labels if e in curve[label].values]
    ks = [int(k) for k in curve["k"].values]
    ns = style.span([int(n) for n in curve["n"].values]) if "n" in curve else ""
    style.axes(ax, f"{name}{f' (n = {ns} per {label})' if ns else ''}")
    ax.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    x = np.arange(len(ks))
    which = [str(w) for w in curve["which"].values]
    if "random" in curve and curve.sizes.get("draw", 0):
        _band(ax, x, curve["random"].transpose("k", ...).values.reshape(len(ks), -1), RANDOM)
    if "low" in which:
        _band(ax, x, curve["delta"].sel(which="low").transpose("k", label).values, LOW)
    if "random" in which:
        mean = curve["delta"].sel(which="random").mean(label).values
        ax.plot(x, mean, color=RANDOM, marker="D", markersize=4, linewidth=1.6, zorder=3)
    if "top" in which:
        top = curve.sel(which="top")
        for emotion in mine:
            i = labels.index(emotion)
            one, look = top.sel({label: emotion}), look_of(i, labels)
            at = x + 0.03 * (mine.index(emotion) - (len(mine) - 1) / 2) * min(1.0, 6 / len(mine))
            ax.plot(at, one["delta"].values, linewidth=1, zorder=4, **look)
            if {"ci_low", "ci_high"} <= set(map(str, curve)):
                for place, low, high in zip(at, one["ci_low"].values, one["ci_high"].values, strict=True):
                    style.whisker(ax, float(place), (float(low), float(high)), look["color"], 0.8)
        ax.plot(x, top["delta"].mean(label).values, color=MEAN, linewidth=2.6, zorder=3.5)
    step = max(1, math.ceil(len(ks) / 8))
    ax.set_xticks(x[::step], [str(k) for k in ks[::step]], fontsize=9)
    ax.set_xlim(-0.4, len(ks) - 0.6)
    where = {"layer": "components per layer", "model": "components in the model"}.get(
        str(curve.attrs.get("per")), "components"
    )
    ax.set_xlabel(where, fontsize=10, color=INK)


def _band(ax: Axes, x: np.ndarray, values: np.ndarray, colour: str) -> None:
    """From the lowest to the highest of ``[k, case]``."""
    low, high = values.min(1), values.max(1)
    ax.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
    if len(x) == 1:
        ax.vlines(x, low, high, color=colour, alpha=0.22, linewidth=8)


def _handles(curves: Mapping[str, xr.Dataset], labels: Sequence[str]) -> list[Any]:
    present = {str(w) for c in curves.values() for w in c["which"].values}
    draws = [c.sizes["draw"] for c in curves.values() if "random" in c and c.sizes.get("draw", 0)]
    named = labels if len(labels) <= len(SERIES) else ["one emotion"]
    out: list[Any] = [Line2D([], [], linewidth=1, label=e, **look_of(i, labels)) for i, e in enumerate(named)]
    out.append(Line2D([], [], color=MEAN, linewidth=2.6, label="mean, best of the ranking"))
    if "random" in present:
        out.append(Line2D([], [], color=RANDOM, marker="D", markersize=4, linewidth=1.6, label="mean, random"))
    if draws:
        plural = "" if max(draws) == 1 else "s"
        out.append(Patch(facecolor=RANDOM, alpha=0.3, label=f"all random ({style.span(draws)} draw{plural})"))
    if "low" in present:
        out.append(Patch(facecolor=LOW, alpha=0.3, label="all smallest scores"))
    out.append(Line2D([], [], color=FAINT, marker="_", linestyle="none", markersize=8, label="95 % interval"))
    return out


def curves_claim(curves: Mapping[str, xr.Dataset]) -> str:
    """Per curve: mean over emotions at the largest k, best components against random (or the lowest) ones."""
    out, against = [], "random"
    for name in style.in_order(curves, ROWS):
        curve = curves[name]
        last = curve["delta"].isel(k=-1).mean(label_of(curve["delta"]))
        which = [w for w in ("top", "random", "low") if w in curve["which"].values][:2]
        against = "the lowest" if which[1:] == ["low"] else against
        values = " : ".join(style.signed(float(last.sel(which=w))) for w in which)
        out.append(f"{int(curve['k'].values[-1])} {name} {values}")
    lines = ["; ".join(out[i : i + 2]) for i in range(0, len(out), 2)]
    return f"Δ projection, best components : {against} ones (mean over emotions)\n" + ";\n".join(lines)


def _caption(curves: Mapping[str, xr.Dataset]) -> str:
    one = next(iter(curves.values())).attrs
    where = f" in layer {one['readout_layer']}" if "readout_layer" in one else ""
    hows = sorted({str(c.attrs["how"]) for c in curves.values() if "how" in c.attrs})
    how = f" ({', '.join(hows)} ablation)" if hows else ""
    return f"""Mean over prompts of the change of the projection on the emotion's direction{where}, at the last prompt
        token. Ablated{how}: components are taken from the prompts that ask for the emotion, so a fall means that they carried
        it. Added: the emotion's difference vectors are put in at the components, in prompts that name no emotion, so a rise
        means more of it. Of the layer that is read no component is touched: it would change what is read by its score, whatever
        it does. Random and low-scoring sets have as many components in every layer as the best; their bands reach from the lowest
        to the highest of all emotions (and draws). Whiskers are 95 % intervals of an emotion from a bootstrap over skeletons; n
        counts prompts. The title is about the largest k of each panel. Panels of a row have one scale."""
