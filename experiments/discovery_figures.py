"""Discovery: figures of the study of circuits: where nodes act, how good approximations are, how much small circuits do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace.report import style
from emotrace.report.style import FAINT, INK, MARKERS, SERIES, Picture

SPANS: Final = {"before": "#bbbbbb", "changed": "#0072B2", "after": "#56B4E9", "last": "#D55E00"}
"""Parts of the prompt: before what was swapped, the swapped tokens, after them, the last prompt token."""


SWAPPED: Final = {
    "emotion": "Diamonds: {by} of a node, filled where q < 0.05. Bars: approximately, by part of the prompt.",
    "valence": "The same for pairs whose event has another valence, under the same emotion word.",
}
"""What is swapped → what stands under the figure."""


def node_effects(
    rows: Sequence[Mapping[str, Any]], change: Mapping[str, Any], swapped: str, by: str = "patching"
) -> Picture:
    """The nodes with the largest effect, and how it is shared out over the prompt.

    Bars: attribution of the effect to parts of the prompt (approximate); diamonds: the effect, filled where q < 0.05.

    Args:
        rows: ``{node, effect, q, before, changed, after, last}``, the largest effect first, in units of the metric; without the
            parts of the prompt, where there were no slopes.
        change: ``{value, ci95}``, what swapping changes the metric by.
        swapped: what was swapped, one of `SWAPPED`.
        by: the method that the effect is of; ``patching`` is exact.
    """
    low, high = style.interval(change)
    told = "" if low > 0 or high < 0 else ": not to be told from none"
    title = f"Another {swapped} changes the metric by {style.signed(change)} [{low:+.3g}, {high:+.3g}]{told}"
    figure = style.canvas(
        1.4 + 0.3 * len(rows),
        title.replace("-", "−"),
        SWAPPED[swapped].format(by="exact patching" if by == "patching" else by),
    )
    ax = style.axes(figure.subplots(), "", "effect on the metric", "")
    for i, row in enumerate(reversed(rows)):
        ends = {1: 0.0, -1: 0.0}
        for span, colour in ((s, c) for s, c in SPANS.items() if s in row):
            size = float(row[span])
            side = 1 if size >= 0 else -1
            label = span if i == 0 else None
            ax.barh(i, size, left=ends[side], color=colour, height=0.62, label=label)
            ends[side] += size
        filled = INK if row["q"] < 0.05 else "white"
        ax.plot(
            [row["effect"]], [i], marker="D", color=filled, markeredgecolor=INK, markersize=6, linestyle="none",
            label=("exact" if by == "patching" else by) if i == 0 else None,
        )  # fmt: skip
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [str(row["node"]) for row in reversed(rows)])
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def agreement(found: Mapping[str, Mapping[str, float]]) -> Picture:
    """Spearman's rank correlation of every method with the exact effect.

    Args:
        found: what was scored (``emotion node`` …) → method → correlation.
    """
    methods = list(dict.fromkeys(m for row in found.values() for m in row if "(" not in m))
    caption = """Spearman's ρ over all nodes, and over all edges on the pairs that were patched exactly; magnitude and random are
        baselines."""
    figure = style.canvas(1.3 + 0.34 * len(methods), "How well approximations rank components", caption)
    ax = style.axes(figure.subplots(), "", "rank correlation with the exact effect", "")
    for n, (name, row) in enumerate(found.items()):
        known = [(row[m], i) for i, m in enumerate(reversed(methods)) if m in row]
        ax.plot(*zip(*known, strict=True), marker=MARKERS[n], color=SERIES[n], linestyle="none", label=name)
    ax.axvline(0, color=FAINT, linewidth=0.8)
    ax.set_xlim(min([-0.45, *(v - 0.05 for row in found.values() for v in row.values() if v == v)]), 1.05)
    ax.set_yticks(range(len(methods)), list(reversed(methods)))
    ax.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(found))
    return figure


def faithfulness_curves(curves: Mapping[str, xr.Dataset]) -> Picture:
    """How much of the metric's change circuits of growing size keep, components taken by magnitude of their score.

    Args:
        curves: ``emotion edge eap`` … (level and method last) → of `discovery.curve`.
    """
    levels = list(dict.fromkeys(name.split()[-2] for name in curves))
    caption = "Measured on pairs that the scores were not made on."
    figure = style.canvas(3.6, "Faithfulness of circuits by size", caption)
    panels = np.atleast_1d(figure.subplots(1, len(levels), sharey=True))
    for ax, level in zip(panels, levels, strict=True):
        style.axes(ax, f"{level}s", "share of components kept", "faithfulness" if ax is panels[0] else "")
        for n, (name, found) in enumerate((k, v) for k, v in curves.items() if k.split()[-2] == level):
            x = found["share"].sel(order="absolute", axis="fixed").values
            y = found["faithfulness"].sel(order="absolute").values
            ax.plot(x, y, marker=MARKERS[n], markersize=4, color=SERIES[n], label=name.split()[-1])
        ax.set_xscale("log")
        for height in (0, 1):
            ax.axhline(height, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return figure
