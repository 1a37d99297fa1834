"""Doses: the figure of how accuracy and fluency change with the dose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from emotrace.report import style
from emotrace.report.replies import chance_of
from emotrace.report.style import FAINT, INK, MARKERS, SERIES, Picture
from emotrace.signatures import typed

Point = Mapping[str, Any]
BAND = "#009E73"
MOST = 6
"""Lines in one figure."""


@typed
def dose_curve(report: Mapping[str, Any]) -> Picture:
    """Accuracy, fluent accuracy and median perplexity against the dose, one line per layer range; the chosen point is marked.

    Where several positions were tried, those of the chosen point are shown; of many layer ranges the `MOST` that reach most.

    The ``ci95`` of a point is that of ``accuracy_fluent`` (of ``accuracy`` where that is absent). Layer ranges stand a little
    beside each other so that intervals can be told apart.

    Args:
        report: needs ``sweep``; uses ``chosen``, ``fluency.bounds.perplexity`` and ``dose_unit``, the name of the dose axis.

    Raises:
        EmotraceError: if ``sweep`` is absent.
    """
    chosen = report.get("chosen") or {}
    sweep = _of_interest(style.need(report, "sweep", "dose_curve"), chosen)
    ranges: dict[str, list[Point]] = {}
    for point in sorted(sweep, key=lambda p: (min(p["layers"]), len(p["layers"]), p["dose"])):
        ranges.setdefault(style.layer_range(point["layers"]), []).append(point)
    perplexity = any(math.isfinite(style.number(p.get("perplexity"))) for p in sweep)
    figure = style.canvas(7.2 if perplexity else 4.8, _claim(sweep, chosen), _caption(report, chosen))
    panels = list(
        figure.subplots(1 + perplexity, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + perplexity])[:, 0]
    )
    n = style.span([int(p["n"]) for p in sweep if "n" in p])
    style.axes(panels[0], f"Held-out training skeletons, n = {n} replies per point", "", "replies read as asked")
    style.percent_axis(panels[0], 1.06)
    style.chance_line(panels[0], chance_of(report))
    places = _places(sorted({style.number(p["dose"]) for p in sweep}))
    step = 0.012 * (max(places.values()) - min(places.values()) or 1.0)
    for i, points in enumerate(ranges.values()):
        look = {
            "color": SERIES[i % len(SERIES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.6,
        }
        x = [places[style.number(p["dose"])] + step * (i - (len(ranges) - 1) / 2) for p in points]
        read = [style.number(p.get("accuracy")) for p in points]
        panels[0].plot(x, read, color=look["color"], linewidth=1, linestyle=":")
        shown = [_shown(p) for p in points]
        panels[0].plot(x, shown, zorder=4, **look)
        for at, point in zip(x, points, strict=True):
            style.whisker(panels[0], at, style.interval(point), look["color"])
        values = [style.number(p.get("perplexity")) for p in points]
        if perplexity:
            panels[1].plot(x, values, **look)
        for at, point, both in zip(x, points, zip(shown, values, strict=True), strict=True):
            if _is_chosen(point, chosen):
                for ax, y in zip(panels, both, strict=False):
                    ax.plot([at], [y], marker="*", markersize=16, zorder=6, linestyle="none", markerfacecolor="#F0E442",
                            markeredgecolor=INK)  # fmt: skip
    if perplexity:
        _perplexity_axis(panels[1], report)
    panels[-1].set_xticks(list(places.values()), [f"{d:g}" for d in places])
    panels[-1].set_xlabel(str(report.get("dose_unit") or "dose"), fontsize=10, color=INK)
    handles = _handles(report, list(ranges), perplexity)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _of_interest(sweep: Sequence[Point], chosen: Point) -> list[Point]:
    """Points at the chosen positions, of the layer ranges that reach most."""
    here = [p for p in sweep if "positions" not in chosen or p.get("positions") == chosen["positions"]]
    best: dict[str, float] = {}
    for point in here:
        name = style.layer_range(point["layers"])
        sure = style.number((point.get("ci95") or [_shown(point)])[0])  # small samples reach high by luck
        best[name] = max(best.get(name, 0.0), float(np.nan_to_num(sure)))
    first = [style.layer_range(chosen["layers"])] if "layers" in chosen else []
    keep = list(dict.fromkeys([*first, *sorted(best, key=lambda name: -best[name])]))[:MOST]
    return [p for p in here if style.layer_range(p["layers"]) in keep]


def _places(doses: Sequence[float]) -> dict[float, float]:
    """Dose → where it stands: at its logarithm where the doses span a factor of eight or more, else at itself."""
    if doses[0] > 0 and doses[-1] >= 8 * doses[0]:
        return {d: math.log2(d) for d in doses}
    return {d: d for d in doses}


def _handles(report: Mapping[str, Any], ranges: Sequence[str], perplexity: bool) -> list[Any]:
    out: list[Any] = [
        Line2D(
            [],
            [],
            color=SERIES[i % len(SERIES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            label=f"layers {name}",
        )
        for i, name in enumerate(ranges)
    ]
    out += [
        Line2D([], [], color=FAINT, linewidth=1.6, label="read as asked and fluent"),
        Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="read as asked"),
        Line2D([], [], color=FAINT, marker="_", linestyle="none", markersize=8, label="95 % interval"),
        Line2D(
            [], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"chance {style.percent(chance_of(report))}"
        ),
    ]
    if report.get("chosen"):
        out.append(Line2D([], [], marker="*", markersize=12, linestyle="none", markerfacecolor="#F0E442", markeredgecolor=INK,
                          label="chosen"))  # fmt: skip
    if perplexity and _bounds(report):
        out.append(Patch(facecolor=BAND, alpha=0.2, label="fluent perplexity"))
    return out


def _perplexity_axis(ax: Axes, report: Mapping[str, Any]) -> None:
    style.axes(ax, "Median perplexity of the replies under the un-edited model (log scale)", "", "perplexity")
    ax.set_yscale("log")
    bounds = _bounds(report)
    if bounds:
        ax.axhspan(bounds[0], bounds[1], color=BAND, alpha=0.12, linewidth=0, zorder=0)
    low, high = ax.get_ylim()
    wide = high > 300 * low
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}" if v < 1e5 else f"{v:.0e}")
    ax.yaxis.set_minor_locator(NullLocator())


def _bounds(report: Mapping[str, Any]) -> Sequence[float] | None:
    return ((report.get("fluency") or {}).get("bounds") or {}).get("perplexity")


def _shown(point: Point) -> float:
    return style.number(point.get("accuracy_fluent", point.get("accuracy")))


def _is_chosen(point: Point, chosen: Point) -> bool:
    if (
        "layers" not in chosen
        or "dose" not in chosen
        or point.get("positions") != chosen.get("positions", point.get("positions"))
    ):
        return False
    return sorted(point["layers"]) == sorted(chosen["layers"]) and math.isclose(point["dose"], chosen["dose"])


def _caption(report: Mapping[str, Any], chosen: Point) -> str:
    text = """Steering was tried at growing doses and several layer ranges on training skeletons that the directions were not
        fitted on, the best settings on more of them than the others; the test file was not touched.
        Solid: replies read as the asked emotion and fluent; dotted: read as asked, fluent or not. Whiskers are 95 % intervals
        of the solid line, from a bootstrap over skeletons; n counts the judged replies of a point. Perplexity is that of the
        reply under the un-edited model, after the prompt without the emotion sentence."""
    if _bounds(report):
        text += " The green band holds the 1st to 99th percentile of the prompted replies to the training skeletons."
    if "layers" in chosen and "dose" in chosen:
        at = style.layer_range(chosen["layers"])
        text += f" The star is the point used on the test file: layers {at}, dose {chosen['dose']:g}."
    if "positions" in chosen:
        text += f" All at positions {chosen['positions']!r}; the table has the others."
    return text


def _claim(sweep: Sequence[Point], chosen: Point) -> str:
    point = next((p for p in sweep if _is_chosen(p, chosen)), None)
    word = "Chosen" if point is not None else "Highest"
    if point is None:
        point = max(sweep, key=lambda p: np.nan_to_num(_shown(p)))
    strongest = max((p for p in sweep if p["layers"] == point["layers"]), key=lambda p: p["dose"])
    after = ""
    if strongest["dose"] > point["dose"]:
        after = f"; {style.percent(_shown(strongest))} at dose {strongest['dose']:g}"
    what = "read as asked and fluent" if "accuracy_fluent" in point else "read as asked"
    where = f"layers {style.layer_range(point['layers'])} at dose {point['dose']:g}"
    return f"{word}: {where}, {style.percent(_shown(point))} {what}{after}"
