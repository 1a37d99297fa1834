"""Style: the canvas, colours and small marks that every figure shares; no pyplot, no global state."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import matplotlib
import matplotlib.font_manager
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from emotrace.arms import ARMS
from emotrace.labels import ANSWERS, EMOTIONS, VALENCES, EmotraceError
from emotrace.replies.arms import SCORES

WIDTH: Final = 9.0
"""Inches; 1350 px at 150 dpi, so that 10 points are 14 px where the page shows the picture 900 px wide."""
DPI: Final = 150
INK: Final = "#222222"
FAINT: Final = "#8a8a8a"
COLOURS: Final = {arm.name: arm.colour for arm in ARMS.values()}
"""One colour per arm."""
SERIES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
AMOUNTS: Final = "Blues"
"""Colour map of what grows from 0."""
SIGNED: Final = "RdBu_r"
"""Of what has a sign: blue, white at 0, red."""
SIGNED_OUTLINED: Final = ListedColormap(matplotlib.colormaps[SIGNED](np.linspace(0.12, 0.88, 256)), "signed")
"""`SIGNED` without the darkest ends, on which an outline would not be seen."""
SIGNED_POINTS: Final = "coolwarm"
"""Of signed values where white would be lost: points, and lines one pixel wide."""
DISTANCES: Final = "viridis"
"""Of distances, whose order matters and whose 0 does not."""
EMPTY: Final = "#f2f2f2"
"""Where there is no number."""
COUNTS: Final = ListedColormap(
    [EMPTY, *(f"#{int(213 - 60 * i / 7):02x}{int(94 - 50 * i / 7):02x}00" for i in range(8))]
)
"""Of sparse counts: one already differs from none."""
LIGHT: Final = 0.5
"""Brightness from which a colour bears dark text."""
NAN: Final = float("nan")


class Picture(Figure):
    """A figure with the paragraph that stands under it: definition, n, and how the interval was reached."""

    caption: str = ""


def canvas(height: float, title: str, caption: str = "") -> Picture:
    """An empty figure of the common width with its claim as title, and its caption in one line."""
    figure = Picture(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.caption = " ".join(caption.split())
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left", wrap=False)
    return figure


def text_on(colour: tuple[float, float, float, float]) -> str:
    """The colour of text that is read on another one: white on dark, `INK` on light or on none.

    Args:
        colour: red, green, blue and opacity, 0..1.
    """
    red, green, blue, opacity = colour
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    return INK if not opacity or brightness >= LIGHT else "white"


def claim(figure: Figure) -> str:
    """The title of a figure, in one line."""
    return " ".join(figure.get_suptitle().split())


def axes(ax: Axes, title: str = "", x: str = "", y: str = "") -> Axes:
    """Common look: light grid along y, no box, readable sizes."""
    titled(ax, title, x, y)
    ax.tick_params(labelsize=9, colors=INK, length=3)
    ax.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def titled(ax: Axes, title: str = "", x: str = "", y: str = "", size: float = 10.5) -> None:
    """Title at the left, and what stands along the axes."""
    ax.set_title(title, fontsize=size, loc="left", color=INK)
    ax.set_xlabel(x, fontsize=10, color=INK)
    ax.set_ylabel(y, fontsize=10, color=INK)


def percent_axis(ax: Axes, top: float = 1.0) -> None:
    """0 to 100 % along y, with room above for numbers."""
    ax.set_ylim(0, top)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    ax.set_yticks(ticks, [f"{100 * t:.0f} %" for t in ticks])


def chance_line(ax: Axes, chance: float) -> None:
    """The dashed line of somebody who does not know the answer; goes by the name *chance* in a legend."""
    ax.axhline(chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5, label=f"chance {percent(chance)}")


def whisker(ax: Axes, x: float, ci: tuple[float, float], colour: str = INK, width: float = 1.1) -> None:
    """A vertical 95 % interval at x, drawn from its bounds; nothing where they are unknown."""
    if all(map(math.isfinite, ci)):
        ax.vlines(x, ci[0], ci[1], color=colour, linewidth=width, zorder=3)
        ax.plot([x, x], ci, linestyle="none", marker="_", markersize=5, markeredgewidth=width, color=colour, zorder=3)


def names(figure: Figure, ax: Axes, points: Sequence[tuple[str, float, float]], size: float = 8) -> None:
    """Names beside points, each where no point and no other name is, with a line to its point where that is not beside it.

    Args:
        figure: of the axes, everything else drawn: where things stand must be known.
        ax: where.
        points: name, x and y.
        size: of the text.
    """
    ax.margins(x=0.1)
    ax.autoscale_view()
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in ax.transData.transform([p[1:] for p in points])]
    ways = [(c, s) for c in (1, -1) for s in (0, 1, -1)] + [(0, 1), (0, -1)]
    for name, x, y in points:
        best: tuple[int, Any] | None = None
        for far, (across, up) in itertools.product((6, 14, 24, 36), ways):
            text = ax.annotate(
                name, (x, y), (far * across, far * up), textcoords="offset points", fontsize=size, color=INK,
                ha=("center", "left", "right")[across], va=("center", "bottom", "top")[up],
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5} if far > 6 else None,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
            text.set_in_layout(False)  # what has been placed would move
            text.get_window_extent()  # places it
            box = Text.get_window_extent(text)  # without the line
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            cost = sum(box.overlaps(other) for other in taken) + 100 * (not inside)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = cost, text
            else:
                text.remove()
            if not cost:
                break
        if best is not None:
            taken.append(Text.get_window_extent(best[1]))


def number(value: object) -> float:
    """A float; NaN for None and whatever is not a number. Of a leaf ``{value, …}``, its value."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else NAN


def interval(leaf: object, name: str = "ci95") -> tuple[float, float]:
    """The bounds of a leaf, NaN where there are none."""
    bounds = leaf.get(name) if isinstance(leaf, Mapping) else None
    return (number(bounds[0]), number(bounds[1])) if bounds else (NAN, NAN)


def percent(value: object, digits: int = 0) -> str:
    """``93 %``; a dash where there is no number. Never rounds up to 100 % or down to 0 %."""
    x = number(value)
    if not math.isfinite(x):
        return "–"
    if 0 < abs(x) < 1 and round(100 * abs(x), digits) in (0, 100):
        digits = 2 if digits else 1
    return f"{100 * x:.{digits}f} %".replace("-", "−")


def signed(value: object, digits: int = 2) -> str:
    """``+0.52`` or ``−1.3``, with so many significant digits; a dash where there is no number."""
    x = number(value)
    if not math.isfinite(x):
        return "–"
    places = max(0, digits - 1 - math.floor(math.log10(abs(x)))) if x else digits
    return f"{x:+.{min(places, 6)}f}".replace("-", "−")


def visible(text: object) -> str:
    """A token with its blanks as ␣ and its line ends as ↵."""
    return str(text).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def printed(text: object, longest: int = 0) -> str:
    """A token as a figure can print it: `visible`, no mathematics, □ for what the font lacks.

    Args:
        text: of a token or prompt.
        longest: characters after which it is cut; 0 for never.
    """
    out = visible(text)
    out = out if not longest or len(out) <= longest else out[: longest - 1] + "…"
    out = "".join(c if ord(c) in _glyphs() else "□" for c in out)
    return out.replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[int]:
    path = matplotlib.font_manager.findfont(matplotlib.font_manager.FontProperties())
    return frozenset(matplotlib.font_manager.get_font(path).get_charmap())


def methods_of(part: Mapping[str, Any]) -> list[str]:
    """The methods of a part of report.json, in the order of `emotrace.arms.ARMS`; unknown ones at the end."""
    return in_order(part, tuple(ARMS))


def emotions_of(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Emotions in the order of `labels.EMOTIONS`, others at the end."""
    return in_order(names, EMOTIONS)


def in_order(names: Iterable[str], order: Sequence[str] = (*ANSWERS, "unjudged", *VALENCES)) -> list[str]:
    """Names sorted as in ``order``; those that are not in it keep their own order, after the others."""
    return sorted(map(str, names), key=lambda n: order.index(n) if n in order else len(order))


def need(report: Mapping[str, Any], name: str, figure: str) -> Any:
    """A part of report.json that a figure cannot do without.

    Raises:
        EmotraceError: if it is absent or empty.
    """
    part = report.get(name)
    if not part:
        raise EmotraceError(f"{figure} needs {name!r}, and report.json has only: {', '.join(report) or 'nothing'}.")
    return part


def lifts_of(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{method: {overall | emotion: leaf}}``; a lift without methods is that of ``steer``."""
    found = report.get("lift") or {}
    if any(isinstance(leaf, Mapping) and "value" in leaf for leaf in found.values()):
        found = {"steer": found}
    return {m: {n: found[m][n] for n in in_order(found[m], ("overall", *EMOTIONS))} for m in methods_of(found)}


def layer_range(layers: Sequence[int]) -> str:
    """``2–4`` for [2, 3, 4]; a list where there are gaps."""
    layers = sorted(int(i) for i in layers)
    if not layers:
        return "none"
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))


def span(values: Sequence[int]) -> str:
    """``480`` where all are the same, else ``470–480``."""
    if not values:
        return "unknown"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def only(report: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The report with the scores of some methods only."""
    parts = (*SCORES, "confusion")
    kept = {
        p: {m: t for m, t in report[p].items() if m in methods} for p in parts if isinstance(report.get(p), Mapping)
    }
    return {**report, **kept}
