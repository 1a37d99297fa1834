"""Effects: figures of what happens when components are removed or added, and when sublayers are shifted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from emotrace.report import style
from emotrace.report.layers import layer_ticks
from emotrace.report.parts import label_of
from emotrace.report.style import FAINT, INK, MARKERS, SERIES, Picture
from emotrace.signatures import typed

SETS: Final = {"top": ("#D55E00", "o"), "low": ("#0072B2", "s"), "random": ("#777777", "D")}
"""Colour and marker of each set of components."""
DASHES: Final = ((0, (1, 1.2)), (0, (3, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (7, 2)))
WIDE: Final = 5.0
"""Influence above which the axis becomes logarithmic."""
ROWS: Final = ("neurons ablated", "heads ablated", "neurons added", "heads added")


@typed
def effect_curves(curves: Mapping[str, xr.Dataset]) -> Picture:
    """Change of the projection on each emotion against the number of components removed or added.

    One row per curve, one column per emotion. Orange: the best components of the ranking; blue: those with the smallest
    scores; grey: random ones, the band from the lowest to the highest draw. Whiskers are the 95 % intervals of
    the Dataset.

    Args:
        curves: name → Dataset over ``(label, which, k)`` with ``delta``, ``ci_low``, ``ci_high``, and, for random sets,
            ``random (label, draw, k)``.
    """
    names = style.in_order(curves, ROWS)
    labels = style.emotions_of(
        list(dict.fromkeys(str(e) for c in curves.values() for e in c[label_of(c["delta"])].values))
    )
    figure = style.canvas(1.35 + 1.75 * len(names), curves_claim(curves), _curves_caption(curves))
    panels = figure.subplots(len(names), len(labels), squeeze=False, sharey="row")
    for row, name in enumerate(names):
        curve = curves[name]
        label = label_of(curve["delta"])
        ks = [int(k) for k in curve["k"].values]
        for column, emotion in enumerate(labels):
            ax = panels[row, column]
            style.axes(ax, "", "", "")
            ax.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
            if emotion not in curve[label].values:
                ax.set_axis_off()
                continue
            part = curve.sel({label: emotion})
            _curve(ax, part, len(ks))
            n = f", n = {int(part['n']):,}" if "n" in part else ""
            ax.set_title(f"{emotion}{n}", fontsize=9, loc="left", color=INK)
            step = max(1, math.ceil(len(ks) / 6))
            ax.set_xticks(range(0, len(ks), step), [str(k) for k in ks[::step]], fontsize=9)
            ax.set_xlim(-0.35, len(ks) - 0.65)
            ax.tick_params(labelleft=column == 0)
        panels[row, 0].set_ylabel(f"{name}\nΔ projection", fontsize=10, color=INK)
        where = {"layer": "k per layer", "model": "k in the model"}.get(str(curve.attrs.get("per")), "k")
        for ax in panels[row]:
            ax.set_xlabel(where if row == len(names) - 1 or len({c.attrs.get("per") for c in curves.values()}) > 1 else "",
                          fontsize=10, color=INK)  # fmt: skip
    figure.legend(handles=_curve_handles(curves), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


@typed
def influence_profile(influence: xr.Dataset) -> Picture:
    """Influence of attention and MLP output by layer, one panel per emotion: the exact limit, and finite doses if measured.

    Args:
        influence: of `attribution.sublayer_influence`: ``influence, std [label, layer, sublayer]``, ``n [label]``, and,
            where doses were given, ``finite [dose, label, layer, sublayer]``.
    """
    exact = influence["influence"]
    label = label_of(exact)
    labels = style.emotions_of([str(e) for e in influence[label].values])
    layers = influence["layer"].values
    subs = [str(s) for s in influence["sublayer"].values]
    doses = [float(d) for d in influence["dose"].values] if "finite" in influence else []
    across = min(3, len(labels))
    down = math.ceil(len(labels) / across)
    figure = style.canvas(1.35 + 2.3 * down, _influence_claim(influence, label), _influence_caption(influence, label))
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for i, (ax, emotion) in enumerate(zip(panels, labels, strict=False)):
        part = influence.sel({label: emotion})
        n = f" (n = {int(part['n']):,})" if "n" in part else ""
        style.axes(
            ax, f"{emotion}{n}", "layer" if i + across >= len(labels) else "", "influence" if i % across == 0 else ""
        )
        ax.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        for j, sub in enumerate(subs):
            colour = SERIES[j % len(SERIES)]
            y = part["influence"].sel(sublayer=sub).values
            if "std" in part:
                spread = part["std"].sel(sublayer=sub).values
                ax.fill_between(layers, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
            ax.plot(layers, y, color=colour, marker=MARKERS[j % len(MARKERS)], markersize=4, linewidth=1.6, zorder=3)
            for d, dose in enumerate(doses):
                finite = part["finite"].sel(dose=dose, sublayer=sub).values
                ax.plot(layers, finite, color=colour, linewidth=1, linestyle=DASHES[d % len(DASHES)], zorder=4)
        layer_ticks(ax, layers)
        ax.tick_params(labelbottom=i + across >= len(labels))
    _wide_axis(panels[0], float(exact.min()), float(exact.max()))
    for ax in panels[len(labels) :]:
        ax.set_axis_off()
    handles: list[Any] = [
        Line2D([], [], color=SERIES[j % len(SERIES)], marker=MARKERS[j % len(MARKERS)], markersize=5, label=f"{sub}, exact limit")
        for j, sub in enumerate(subs)
    ]  # fmt: skip
    if "std" in influence:
        handles.append(Patch(facecolor=FAINT, alpha=0.25, label="± 1 sd over prompts"))
    handles += [
        Line2D([], [], color=FAINT, linewidth=1, linestyle=DASHES[d % len(DASHES)], label=f"finite dose {dose:g} σ")
        for d, dose in enumerate(doses)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def deviation(influence: xr.Dataset) -> dict[float, float]:
    """Dose → largest |finite − exact| over all cells, as a share of the largest |exact|; empty without doses."""
    if "finite" not in influence:
        return {}
    largest = float(np.abs(influence["influence"]).max()) or 1.0
    off = abs(influence["finite"] - influence["influence"])
    return {float(d): float(off.sel(dose=d).max()) / largest for d in influence["dose"].values}


def _wide_axis(ax: Axes, lowest: float, highest: float) -> None:
    """Logarithmic beyond ±1, a shift that arrives as it was made, where one sublayer would flatten all others."""
    largest = max(abs(lowest), abs(highest))
    if largest > WIDE:
        ax.set_yscale("symlog", linthresh=1, linscale=0.8)
        steps = [m * 10**e for e in range(6) for m in (1, 3)]
        ticks = [0, *(s * x for x in steps if x <= largest for s in (1, -1))]
        low, high = min(1.4 * lowest, -0.3), max(1.4 * highest, 0.3)
        ax.set_ylim(low, high)
        shown = [t for t in sorted(ticks) if low <= t <= high]
        ax.set_yticks(shown, [f"{t:g}".replace("-", "−") for t in shown])
        ax.yaxis.set_minor_locator(NullLocator())


def _curve(ax: Axes, part: xr.Dataset, n: int) -> None:
    x = np.arange(n)
    if "random" in part and part.sizes.get("draw", 0):
        draws = part["random"].transpose("draw", "k").values
        ax.fill_between(x, draws.min(0), draws.max(0), color=SETS["random"][0], alpha=0.35, linewidth=0)
        if n == 1:
            ax.vlines(x, draws.min(0), draws.max(0), color=SETS["random"][0], alpha=0.35, linewidth=6)
    which = [w for w in SETS if w in part["which"].values]
    for i, name in enumerate(which):
        colour, marker = SETS[name]
        one = part.sel(which=name)
        at = x + 0.09 * (i - (len(which) - 1) / 2)
        ax.plot(at, one["delta"].values, color=colour, marker=marker, markersize=3.5, linewidth=1.4, zorder=4 - 0.1 * i)
        if {"ci_low", "ci_high"} <= set(map(str, part)):
            for place, low, high in zip(at, one["ci_low"].values, one["ci_high"].values, strict=True):
                style.whisker(ax, float(place), (float(low), float(high)), colour, 0.9)


def _curve_handles(curves: Mapping[str, xr.Dataset]) -> list[Any]:
    words = {"top": "best of the ranking", "low": "smallest scores", "random": "random, mean of the draws"}
    present = {str(w) for c in curves.values() for w in c["which"].values}
    out: list[Any] = [
        Line2D([], [], color=colour, marker=marker, markersize=4.5, label=words[name])
        for name, (colour, marker) in SETS.items()
        if name in present
    ]
    draws = [c.sizes["draw"] for c in curves.values() if "random" in c and c.sizes.get("draw", 0)]
    if draws:
        out.append(Patch(facecolor=SETS["random"][0], alpha=0.35, label=f"all of {style.span(draws)} draws"))
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


def _curves_caption(curves: Mapping[str, xr.Dataset]) -> str:
    one = next(iter(curves.values())).attrs
    where = f" in layer {one['readout_layer']}" if "readout_layer" in one else ""
    hows = sorted({str(c.attrs["how"]) for c in curves.values() if "how" in c.attrs})
    how = f" ({', '.join(hows)} ablation)" if hows else ""
    return f"""Mean over prompts of the change of the projection on the emotion's direction{where}, at the last prompt
        token. Ablated{how}: components are taken from the prompts that ask for the emotion, so a fall means that they carried
        it. Added: the emotion's difference vectors are put in at the components, in prompts that name no emotion, so a rise
        means more of it. Of the layer that is read no component is touched: it would change what is read by its score, whatever
        it does. Random and low-scoring sets have as many components in every layer as the best. Whiskers are
        95 % intervals from a bootstrap over skeletons (grey: of the mean over draws); n counts prompts. The title is
        about the largest k of each row. Scales differ between rows."""


def _influence_caption(influence: xr.Dataset, label: str) -> str:
    text = f"""The residual after a sublayer is shifted along that sublayer's own direction of the {label}, at the last prompt
        token of prompts that name none; influence is how fast the projection of the last layer on the {label}'s reference
        direction changes. Solid: the exact derivative at no shift, mean over n prompts; shaded: ± one standard deviation over
        prompts (their spread, not an interval of the mean). 1 would be a shift that arrives as it was made; positive means
        more of the {label}."""
    if float(abs(influence["influence"]).max()) > WIDE:
        text += " The axis is logarithmic beyond ±1."
    off = deviation(influence)
    if off:
        parts = ", ".join(f"{style.percent(v, 1)} at {d:g} σ" for d, v in off.items())
        text += f""" Broken lines: the same from finite doses in units of the residual's root mean square σ, which depart
            from the exact limit by at most (as a share of its largest value) {parts}."""
    return text


def _influence_claim(influence: xr.Dataset, label: str) -> str:
    mean = influence["influence"].mean(label).transpose("layer", "sublayer")
    i, j = np.unravel_index(int(np.abs(mean.values).argmax()), mean.shape)
    layer, sub = int(mean["layer"].values[int(i)]), str(mean["sublayer"].values[int(j)])
    most = style.signed(float(mean[i, j]))
    text = f"What is shifted at layer {layer} ({sub}) moves the last layer most: {most} per unit\n(mean over {label}s)"
    off = deviation(influence)
    if off:
        dose = min(off, key=abs)  # the limit is about small ones
        text += f"; a dose of {dose:g} σ is off by at most {style.percent(off[dose], 1)} of the largest"
    return text
