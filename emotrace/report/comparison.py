"""Comparison: the figure of what steering and the circuit reach at an equal distance from the un-edited model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from emotrace.report import arms, style
from emotrace.report.replies import chance_of
from emotrace.report.style import COLOURS, FAINT, INK, MARKERS, Picture
from emotrace.signatures import typed

Point = Mapping[str, Any]


@typed
def equal_kl(report: Mapping[str, Any]) -> Picture:
    """Accuracy among fluent replies against KL from the un-edited model, one line per method, doses beside the points.

    The ``ci95`` of a point is that of ``accuracy_fluent`` (of ``accuracy`` where that is absent). Where ``prompt`` is no point
    of the comparison, its fluent accuracy on the test file is a line across.

    Args:
        report: needs ``comparison``: ``{method, dose or lambda, kl, accuracy, accuracy_fluent, ci95, n}`` per point; uses
            ``accuracy_fluent.prompt``.

    Raises:
        EmotraceError: if ``comparison`` is absent.
    """
    points: Sequence[Point] = style.need(report, "comparison", "equal_kl")
    lines = by_method(points)
    claim = [arms.title(report, ("beats_steering_at_equal_kl",)), _claim(lines, _what(points))]
    figure = style.canvas(5.2, "\n".join(filter(None, claim)), _caption(report))
    ax = figure.subplots()
    n = style.span([int(p["n"]) for p in points if "n" in p])
    style.axes(ax, f"Held-out training skeletons, n = {n} replies per point", "", f"replies read {_what(points)}")
    ax.set_xlabel("KL from the un-edited model, nats per token", fontsize=10, color=INK)
    style.percent_axis(ax, 1.13)
    ax.set_ylim(bottom=-0.09)
    style.chance_line(ax, chance_of(report))
    for i, (method, found) in enumerate(lines.items()):
        colour, marker = COLOURS.get(method, FAINT), MARKERS[i % len(MARKERS)]
        x = [style.number(p.get("kl")) for p in found]
        y = [shown(p) for p in found]
        if any("accuracy_fluent" in p for p in found):
            ax.plot(x, [style.number(p.get("accuracy")) for p in found], color=colour, linewidth=1, linestyle=":")
        ax.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.8, zorder=4)
        for point, at in zip(found, x, strict=True):
            style.whisker(ax, at, style.interval(point), colour)
    kls = [v for v in (style.number(p.get("kl")) for p in points) if math.isfinite(v)]
    if kls and min(kls) > 0 and max(kls) >= 8 * min(kls):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    prompt = style.number(((report.get("accuracy_fluent") or {}).get("prompt") or {}).get("overall"))
    handles: list[Any] = [
        Line2D([], [], color=COLOURS.get(m, FAINT), marker=MARKERS[i % len(MARKERS)], markersize=6, label=_name(m, lines[m]))
        for i, m in enumerate(lines)
    ]  # fmt: skip
    if math.isfinite(prompt) and "prompt" not in lines:
        ax.axhline(prompt, color=COLOURS["prompt"], linewidth=1.4, linestyle=(0, (6, 2)), zorder=2)
        handles.append(
            Line2D([], [], color=COLOURS["prompt"], linewidth=1.4, linestyle=(0, (6, 2)),
                   label=f"prompt {style.percent(prompt)} (test file)")
        )  # fmt: skip
    handles += [
        Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="fluent or not"),
        Line2D([], [], color=FAINT, marker="_", linestyle="none", markersize=8, label="95 % interval"),
        Line2D(
            [], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"chance {style.percent(chance_of(report))}"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    _label(figure, ax, lines)
    return figure


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Method → its points by growing KL; points without a KL are left out."""
    known = [p for p in points if math.isfinite(style.number(p.get("kl")))]
    return {
        m: sorted((p for p in known if p["method"] == m), key=lambda p: p["kl"])
        for m in style.methods_of({str(p["method"]): 0 for p in known})
    }


def gap(lines: Mapping[str, Sequence[Point]]) -> tuple[float, float, float] | None:
    """(KL, circuit, steer) where, of all KL that both reach, the better of the two is best; between points interpolated."""
    both = [lines.get(m, ()) for m in ("circuit", "steer")]
    if not all(both):
        return None
    low, high = max(p[0]["kl"] for p in both), min(p[-1]["kl"] for p in both)
    grid = sorted({style.number(p["kl"]) for ps in both for p in ps if low <= p["kl"] <= high} | {low, high})
    if low > high:
        return None
    circuit, steer = (np.interp(grid, [p["kl"] for p in ps], [shown(p) for p in ps]) for ps in both)
    at = int(np.nan_to_num(np.maximum(circuit, steer)).argmax())
    return float(grid[at]), float(circuit[at]), float(steer[at])


def shown(point: Point) -> float:
    """What is drawn of a point."""
    return style.number(point.get("accuracy_fluent", point.get("accuracy")))


def dose_of(point: Point) -> str:
    """The dose of steering, or the λ of a circuit, as text."""
    for name, sign in (("dose", ""), ("lambda", "λ ")):
        if math.isfinite(style.number(point.get(name))):
            return f"{sign}{point[name]:g}"
    return ""


def _label(figure: Picture, ax: Axes, lines: Mapping[str, Sequence[Point]]) -> None:
    """Doses beside the points, where there is room: over or under the whisker, or at a side; ends and best points first."""
    figure.draw_without_rendering()  # where things stand is known once they are laid out
    at = ax.transData.transform
    taken: list[Bbox] = []
    known = [(m, p, style.number(p["kl"]), shown(p)) for m, ps in lines.items() for p in ps if math.isfinite(shown(p))]
    for _, point, x, y in known:
        px, py = at((x, y))
        taken.append(Bbox.from_bounds(px - 6, py - 6, 12, 12))
        ends = style.interval(point)
        if all(map(math.isfinite, ends)):
            (_, low), (_, high) = at([(x, ends[0]), (x, ends[1])])
            taken.append(Bbox.from_extents(px - 3, low, px + 3, high))
    first = {id(p) for ps in lines.values() for p in (ps[0], ps[-1], max(ps, key=lambda p: np.nan_to_num(shown(p))))}
    for method, point, x, y in sorted(known, key=lambda k: id(k[1]) not in first):
        ends = [v for v in (y, *style.interval(point)) if math.isfinite(v)]
        places: Any = (
            ((x, max(ends)), (0, 4), "center", "bottom"), ((x, min(ends)), (0, -4), "center", "top"),
            ((x, y), (7, 0), "left", "center"), ((x, y), (-7, 0), "right", "center"),
        )  # fmt: skip
        for where, offset, across, up in places if dose_of(point) else ():
            text = ax.annotate(
                dose_of(point), where, offset, textcoords="offset points", fontsize=9, color=COLOURS.get(method, FAINT),
                ha=across, va=up, zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
            box = text.get_window_extent()
            inside = ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1 and ax.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _name(method: str, points: Sequence[Point]) -> str:
    unit = "λ" if any("lambda" in p for p in points) else "dose" if any("dose" in p for p in points) else ""
    return f"{method} ({unit} beside the points)" if unit else method


def _what(points: Sequence[Point]) -> str:
    return "as asked and fluent" if any("accuracy_fluent" in p for p in points) else "as asked"


def _caption(report: Mapping[str, Any]) -> str:
    text = """KL is the mean over the tokens of the un-edited model's own replies of Σ p ln(p / p′), p being its probabilities of
        the next token and p′ those of the edited model: how far a method moves the model, whatever it says. The title compares
        the methods at that KL, of all that both reach, at which the better one is best, interpolating between points. Solid:
        replies read as the asked emotion and fluent; dotted: read as asked, fluent or not. Whiskers are 95 % intervals of the
        solid line, from a bootstrap over skeletons; n counts the judged replies of a point. Doses stand where there is room; the
        table has all. All on training skeletons that
        neither directions nor circuits were fitted on; the test file was not touched"""
    if ((report.get("accuracy_fluent") or {}).get("prompt") or {}).get("overall"):
        text += ", but for the dashed line: what asking in words reaches there"
    return f"{text}."


def _claim(lines: Mapping[str, Sequence[Point]], what: str) -> str:
    found = gap(lines)
    if found is not None:
        kl, circuit, steer = found
        return (
            f"At an equal KL of {kl:.2g} nats: circuit {style.percent(circuit)}, steer {style.percent(steer)} "
            f"of replies read {what}"
        )
    best = {m: max(points, key=lambda p: np.nan_to_num(shown(p))) for m, points in lines.items()}
    parts = [f"{m} {style.percent(shown(p))} at {style.number(p['kl']):.2g} nats" for m, p in best.items()]
    return f"Best, read {what}: {', '.join(parts)}"
