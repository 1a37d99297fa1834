"""Frontiers: the figure of what every method reaches at all its doses, against fluency and against KL."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from emotrace.report import style
from emotrace.report.arms import ACROSS
from emotrace.report.replies import chance_of
from emotrace.report.style import COLOURS, FAINT, INK, MARKERS, Picture
from emotrace.signatures import typed

BASE: Final = "none"
LABELS: Final = {"kl": "against KL", "fluency": "against fluency"}


@typed
def frontier(report: Mapping[str, Any]) -> Picture:
    """Accuracy against the share of fluent replies, and fluent accuracy against KL: a point a dose, a line a method.

    Args:
        report: needs ``frontiers``, of `replies.frontiers`.

    Raises:
        EmotraceError: if it is absent.
    """
    found = style.need(report, "frontiers", "frontier")
    points: Sequence[Mapping[str, Any]] = found["points"]
    methods = style.methods_of({str(p["method"]): 0 for p in points if p["method"] != BASE})
    base = next(p for p in points if p["method"] == BASE)
    figure = style.canvas(5.6, _title(found["area"]), _caption(found))
    left, right = figure.subplots(1, 2, sharey=True)
    n = style.span(sorted({int(p["n"]) for p in points}))
    style.axes(left, f"n = {n} replies a point", "share of replies that are fluent", "replies read as asked")
    style.axes(right, "", "KL from the un-edited model, nats per token", "… and fluent")
    for ax in (left, right):
        style.percent_axis(ax, 1.05)
        style.chance_line(ax, chance_of(report))
    left.set_xlim(1.03, -0.03)
    left.set_xticks([1, 0.75, 0.5, 0.25, 0], ["100 %", "75 %", "50 %", "25 %", "0 %"])
    right.set_xscale("symlog", linthresh=0.1)
    right.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    for i, method in enumerate(methods):
        mine = sorted((p for p in points if p["method"] == method), key=lambda p: p["size"])
        for ax, x, y in ((left, "fluency", "accuracy"), (right, "kl", "accuracy_fluent")):
            _line(ax, [base, *mine], x, y, COLOURS.get(method, FAINT), MARKERS[i % len(MARKERS)])
    right.axvline(found["kl_limit"], color=FAINT, linewidth=1, linestyle=":", zorder=1)
    handles = [
        Line2D([], [], color=COLOURS.get(m, FAINT), marker=MARKERS[i % len(MARKERS)], markersize=5, label=m)
        for i, m in enumerate(methods)
    ]
    handles += [
        Line2D(
            [], [], color=INK, marker="o", markersize=10, markerfacecolor="none", linestyle="none", label="chosen dose"
        ),
        Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="end of the area against KL"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _line(ax: Axes, points: Sequence[Mapping[str, Any]], x: str, y: str, colour: str, marker: str) -> None:
    at = [[style.number(p[k]) for p in points] for k in (x, y)]
    ax.plot(*at, color=colour, marker=marker, markersize=5, linewidth=1.4, zorder=3)
    for point, across, high in zip(points, *at, strict=True):
        if y == "accuracy_fluent":
            style.whisker(ax, across, style.interval(point), colour, width=0.8)
        if point["chosen"]:
            ax.plot(across, high, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=INK, zorder=4)


def _title(area: Mapping[str, Any]) -> str:
    lines = []
    for axis, words in LABELS.items():
        order = sorted(area, key=lambda m: -np.nan_to_num(area[m][axis]["value"]))
        parts = [f"{m} {style.number(area[m][axis]):.2f}" for m in order]
        lines.append(textwrap.fill(f"Area {words}: {', '.join(parts)}", ACROSS, subsequent_indent="   "))
    return "\n".join(lines)


def _caption(found: Mapping[str, Any]) -> str:
    intervals = "; ".join(
        f"{method} {words} [{', '.join(f'{v:.2f}' for v in style.interval(of[axis]))}]"
        for method, of in found["area"].items()
        for axis, words in LABELS.items()
    )
    return f"""Every dose of the line that was chosen from, on {found["n_skeletons"]} held-out training skeletons; every line
        begins at the un-edited model. Area against fluency: the best accuracy among the points of which at least a share f is
        fluent, averaged over f from 0 to 1. Against KL: the best fluent accuracy among the points within a KL, averaged
        over KL from 0 to {found["kl_limit"]:.2g} nats, the least of the methods' largest. 95 % intervals of the areas, from a
        bootstrap over skeletons: {intervals}. Whiskers are intervals of the points; the test file was not touched."""
