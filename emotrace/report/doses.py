"""Doses: the figure of how accuracy and fluency change with the dose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from emotrace.report import style
from emotrace.report.replies import chance_of
from emotrace.report.style import COLOURS, FAINT, INK, Picture
from emotrace.signatures import typed

Point = Mapping[str, Any]
BAND = "#009E73"
MOST = 6
"""Layer ranges in one figure."""
LOOK: Final[dict[str, Any]] = {"color": COLOURS["steer"], "marker": "o", "markersize": 5, "linewidth": 1.6}


@typed
def dose_curve(report: Mapping[str, Any]) -> Picture:
    """Accuracy, fluent accuracy and median perplexity against the dose, a panel per layer range; the chosen point is marked.

    Where several positions were tried, those of the chosen point are shown; of many layer ranges the `MOST` that reach most.

    The ``ci95`` of a point is that of ``accuracy_fluent`` (of ``accuracy`` where that is absent). All panels have one scale.

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
    across = len(ranges) if len(ranges) < 4 else 3 if len(ranges) != 4 else 2
    down = math.ceil(len(ranges) / across)
    figure = style.canvas(1.2 + down * (3.4 if perplexity else 2.4), _claim(sweep, chosen), _caption(report, chosen))
    each = 1 + perplexity
    panels = figure.subplots(
        each * down, across, sharex=True, squeeze=False, height_ratios=[1.7, 1][:each] * down, sharey=False
    )
    places = _places(sorted({style.number(p["dose"]) for p in sweep}))
    for ax in panels.ravel():
        ax.set_axis_off()
    costs: list[Axes] = []
    for i, (name, points) in enumerate(ranges.items()):
        row, column = each * (i // across), i % across
        last = i + across >= len(ranges)
        above = panels[row, column]
        above.set_axis_on()
        _accuracy(above, points, places, report, f"layers {name}", column == 0)
        if perplexity:
            costs.append(panels[row + 1, column])
            costs[-1].set_axis_on()
            values = [style.number(p.get("perplexity")) for p in points]
            costs[-1].plot([places[style.number(p["dose"])] for p in points], values, **LOOK)
            _perplexity_axis(costs[-1], report, column == 0)
        mine = panels[row : row + each, column]
        for ax, shown in zip(mine, (_shown, _perplexity), strict=False):
            _star(ax, points, places, chosen, shown)
            ax.tick_params(labelbottom=last and ax is mine[-1])
        mine[-1].set_xticks(list(places.values()), [f"{d:g}" for d in places], fontsize=8.5)
        mine[-1].set_xlabel(str(report.get("dose_unit") or "dose") if last else "", fontsize=10, color=INK)
    if costs:
        bounds = [ax.get_ylim() for ax in costs]
        for ax in costs:
            ax.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
            _log_ticks(ax)
    figure.legend(handles=_handles(report, perplexity), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _accuracy(
    ax: Axes, points: Sequence[Point], places: Mapping[float, float], report: Mapping[str, Any], name: str, first: bool
) -> None:
    """Accuracy and fluent accuracy of one layer range by dose."""
    n = style.span([int(p["n"]) for p in points if "n" in p])
    style.axes(ax, f"{name} (n = {n} a point)", "", "replies read as asked" if first else "")
    style.percent_axis(ax, 1.06)
    style.chance_line(ax, chance_of(report))
    x = [places[style.number(p["dose"])] for p in points]
    ax.plot(x, [style.number(p.get("accuracy")) for p in points], color=LOOK["color"], linewidth=1, linestyle=":")
    ax.plot(x, [_shown(p) for p in points], zorder=4, **LOOK)
    for at, point in zip(x, points, strict=True):
        style.whisker(ax, at, style.interval(point), LOOK["color"])
    ax.tick_params(labelleft=first)


def _star(
    ax: Axes, points: Sequence[Point], places: Mapping[float, float], chosen: Point, shown: Callable[[Point], float]
) -> None:
    for point in points:
        if _is_chosen(point, chosen):
            ax.plot(
                [places[style.number(point["dose"])]], [shown(point)], marker="*", markersize=16, zorder=6, linestyle="none",
                markerfacecolor="#F0E442", markeredgecolor=INK,
            )  # fmt: skip


def _perplexity(point: Point) -> float:
    return style.number(point.get("perplexity"))


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


def _handles(report: Mapping[str, Any], perplexity: bool) -> list[Any]:
    out: list[Any] = [
        Line2D(
            [], [], label="read as asked and fluent; perplexity" if perplexity else "read as asked and fluent", **LOOK
        ),
        Line2D([], [], color=LOOK["color"], linewidth=1, linestyle=":", label="read as asked, fluent or not"),
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


def _perplexity_axis(ax: Axes, report: Mapping[str, Any], first: bool) -> None:
    style.axes(ax, "", "", "perplexity" if first else "")
    ax.set_yscale("log")
    bounds = _bounds(report)
    if bounds:
        ax.axhspan(bounds[0], bounds[1], color=BAND, alpha=0.12, linewidth=0, zorder=0)
    ax.tick_params(labelleft=first)


def _log_ticks(ax: Axes) -> None:
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 2, 5)))
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
        reply under the un-edited model, after the prompt without the emotion sentence (below, log scale)."""
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
