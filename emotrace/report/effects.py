"""Effects: the figure of what happens at the last layer when sublayers are shifted."""

from __future__ import annotations

import math
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

DASHES: Final = ((0, (1, 1.2)), (0, (3, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (7, 2)))
WIDE: Final = 5.0
"""Influence above which the axis becomes logarithmic."""


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
