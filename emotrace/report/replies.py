"""Replies: figures of how replies were read: accuracy per method, confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from emotrace.arms import ARMS
from emotrace.labels import ANSWERS
from emotrace.replies.arms import LOWEST
from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import COLOURS, FAINT, INK, Picture, span
from emotrace.signatures import typed

CONTROLS: Final = tuple(arm.name for arm in ARMS.values() if arm.control)
"""What a method must beat; the highest of them is its best control."""
FIXED: Final = "none"
"""The un-edited model, asked for nothing: the same replies whatever emotion is aimed at."""
CROWDED: Final = 7
"""From so many methods on names are broken, and legends have two lines."""
CONTROLLED: Final = ("circuit", "steer")
"""Methods whose figure is the claim; the first one present gives the title."""


@typed
def accuracy_bars(
    report: Mapping[str, Any], claim: str = "", caption: str = "", *, second: str = "accuracy_fluent",
    hatched: str = "… and fluent",
) -> Picture:  # fmt: skip
    """Share of replies read as the asked emotion: per method (all, and fluent ones), and per method and emotion.

    Controls with several draws show the highest as the bar (ablated random components: the lowest), and every draw as a dot.
    Whiskers are the 95 % intervals of the
    leaves; the dashed line is chance, 1 / number of emotions: what replies reach that ignore the asked emotion.

    Args:
        report: content of report.json; needs ``accuracy``.
        claim: title; by default it says what was reached.
        caption: under it; by default it says what counts.
        second: part of the report that the hatched bars show.
        hatched: what they are, for the legend.

    Raises:
        EmotraceError: if ``accuracy`` is absent.
    """
    accuracy = style.need(report, "accuracy", "accuracy_bars")
    fluent = report.get(second) or {}
    methods = style.methods_of(accuracy)
    chance = chance_of(report)
    figure = style.canvas(
        7.0, claim or _accuracy_claim(report, methods, chance), caption or _accuracy_caption(report, chance)
    )
    above, below = figure.subplots(2, 1, height_ratios=[1.05, 1])
    _overall(above, accuracy, fluent, methods, chance)
    _by_emotion(below, accuracy, fluent, methods, chance, hatched)
    handles: list[Any] = [
        Patch(facecolor="#777777", label="read as the asked emotion"),
        Patch(facecolor="#dddddd", edgecolor="#777777", hatch="////", label=hatched),
        Line2D([], [], color=INK, marker="_", linestyle="none", markersize=8, label="95 % interval"),
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"chance {style.percent(chance)}"),
    ]
    if any(_draws(accuracy[m].get("overall")) for m in methods):
        handles.insert(
            3,
            Line2D(
                [], [], color=INK, marker="o", markersize=4, markerfacecolor="white", linestyle="none", label="one draw"
            ),
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return figure


@typed
def confusion(report: Mapping[str, Any]) -> Picture:
    """Asked emotion × blind answer, one matrix per method, as percentages of the replies of each asked emotion.

    Args:
        report: needs ``confusion``: ``{method: {emotion: {answer: count}}}``.

    Raises:
        EmotraceError: if it is absent.
    """
    tables = style.need(report, "confusion", "confusion")
    methods = style.methods_of(tables)
    answers = {str(a) for m in methods for row in tables[m].values() for a, n in row.items() if n or a in ANSWERS}
    columns = style.in_order(answers | set(ANSWERS))
    asked = style.emotions_of({e: 0 for m in methods for e in tables[m]})
    across = _across(len(methods))
    down = math.ceil(len(methods) / across)
    spare = across * down > len(methods)  # what holds no matrix holds the scale
    caption = """Rows are the emotion that was asked for, columns the blind judge's answer; numbers are percentages of the
        replies of a row, without an interval (those of the diagonal are in the figure above). n counts the replies of all rows
        of a method, over all draws where it was drawn several times. The replies of none were asked for no emotion: they
        are the same in every row, and their distribution is what the model says by itself."""
    side = {1: 3.6, 2: 3.3, 3: 2.75, 4: 2.35}[across]
    figure = style.canvas(0.9 + side * down, _confusion_claim(tables, methods), caption)
    panels = np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()
    image = None
    for i, (ax, method) in enumerate(zip(panels, methods, strict=False)):
        counts = np.array([[style.number(tables[method].get(e, {}).get(a, 0)) for a in columns] for e in asked])
        total = counts.sum(1, keepdims=True)
        share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
        rows = asked if i % across == 0 else [""] * len(asked)
        image = heat(ax, share, columns, rows, turn=50, text=_cell, vmin=0, vmax=1, size=9 if across < 4 else 7.5)
        style.titled(
            ax, f"{method} (n = {int(counts.sum()):,})", "blind answer" if i + across >= len(methods) else "",
            "asked emotion" if i % across == 0 else "", size=10.5 if across < 4 else 9,
        )  # fmt: skip
    for ax in panels[len(methods) :]:
        ax.set_axis_off()
    if image is not None:
        where: dict[str, Any] = {"ax": panels.tolist(), "shrink": 0.7, "aspect": 30, "pad": 0.01}
        if spare:
            where = {"cax": panels[-1].inset_axes((0.1, 0.5, 0.8, 0.08)), "orientation": "horizontal"}
        bar = scale(figure, image, "share of the replies of a row", **where)
        chance = 1 / max(len(asked), 1)
        (bar.ax.axvline if spare else bar.ax.axhline)(chance, color="#D55E00", linewidth=1.5)
        if spare:
            bar.ax.text(chance, 1.3, f"chance {style.percent(chance)}", ha="center", va="bottom", fontsize=9, color=INK)
            bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
        else:
            bar.set_ticks([0, chance, 0.5, 1], labels=["0 %", f"chance\n{style.percent(chance)}", "50 %", "100 %"])
    return figure


def _across(n: int) -> int:
    """Columns of so many matrices, of which none stands in a row alone."""
    if n <= 2 or n == 4:
        return min(n, 2)
    return 4 if n % 3 == 1 or n > 9 else 3


def chance_of(report: Mapping[str, Any]) -> float:
    """1 / number of asked emotions; a reply that ignores the asked emotion cannot be right more often on average."""
    names = {e for part in (report.get("accuracy") or {}).values() for e in part.get("by_emotion", {})}
    return 1 / (len(names) or len(ANSWERS) - 1)


def _overall(ax: Axes, accuracy: Mapping, fluent: Mapping, methods: Sequence[str], chance: float) -> None:
    style.axes(ax, "All asked emotions", "", "share of replies")
    style.percent_axis(ax, 1.14)
    style.chance_line(ax, chance)
    names = []
    for i, method in enumerate(methods):
        leaf = accuracy[method].get("overall") or {}
        second = (fluent.get(method) or {}).get("overall")
        pairs = [(i - 0.2, leaf, False), (i + 0.2, second, True)] if second else [(i, leaf, False)]
        for x, one, hatched in pairs:
            value = style.number(one)
            colour = COLOURS.get(method, FAINT)
            face: dict[str, Any] = (
                {"facecolor": colour} if not hatched else {"facecolor": "white", "hatch": "////", "alpha": 0.9}
            )
            ax.bar(x, 0 if math.isnan(value) else value, width=0.38, edgecolor=colour, linewidth=1, **face)
            if method != FIXED:
                style.whisker(ax, x, style.interval(one))
            draws = _draws(one)
            ax.plot(
                x + np.linspace(-0.08, 0.08, len(draws)) if len(draws) > 1 else [x] * len(draws),
                draws,
                linestyle="none",
                marker="o",
                markersize=4,
                markerfacecolor="white",
                markeredgecolor=INK,
                zorder=4,
            )
            ends = [] if method == FIXED else [style.interval(one)[1]]
            top = np.nanmax([value, *ends, *draws]) if math.isfinite(value) else 0
            halo = [withStroke(linewidth=3, foreground="white")]  # the line of chance may run behind it
            ax.text(
                x, top + 0.025, style.percent(value), ha="center", va="bottom", fontsize=9, color=INK, path_effects=halo
            )
        names.append(_method_label(method, leaf, len(methods) >= CROWDED))
    ax.set_xticks(range(len(methods)), names, fontsize=9)
    ax.set_xlim(-0.6, len(methods) - 0.4)


def _by_emotion(
    ax: Axes, accuracy: Mapping, fluent: Mapping, methods: Sequence[str], chance: float, hatched: str
) -> None:  # fmt: skip
    emotions = style.emotions_of({e: 0 for m in methods for e in accuracy[m].get("by_emotion", {})})
    ns = sorted({int(leaf["n"]) for m in methods for leaf in accuracy[m].get("by_emotion", {}).values() if "n" in leaf})
    n = f", n = {span(ns)} per bar" if ns else ""
    style.axes(ax, f"By asked emotion{n} (tick: {hatched})", "", "share of replies")
    style.percent_axis(ax, 1.05)
    style.chance_line(ax, chance)
    width = 0.84 / max(len(methods), 1)
    for i, method in enumerate(methods):
        for j, name in enumerate(emotions):
            leaf = accuracy[method].get("by_emotion", {}).get(name)
            x = j + (i - (len(methods) - 1) / 2) * width
            value = style.number(leaf)
            label = method if j == 0 else None
            ax.bar(
                x, 0 if math.isnan(value) else value, width=width * 0.92, color=COLOURS.get(method, FAINT), label=label
            )
            if method != FIXED:
                style.whisker(ax, x, style.interval(leaf), width=0.8)
            second = style.number((fluent.get(method) or {}).get("by_emotion", {}).get(name))
            if math.isfinite(second):
                ax.hlines(second, x - 0.36 * width, x + 0.36 * width, color="white", linewidth=3, zorder=3.2)
                ax.hlines(second, x - 0.36 * width, x + 0.36 * width, color=INK, linewidth=1.2, zorder=3.3)
    ax.set_xticks(range(len(emotions)), emotions, fontsize=10)
    handles = [Patch(facecolor=COLOURS.get(m, FAINT), label=m) for m in methods]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.1),
        ncols=len(methods) if len(methods) < CROWDED else -(-len(methods) // 2),
        fontsize=9,
        frameon=False,
        borderaxespad=0,
        columnspacing=1.2,
        handlelength=1.2,
    )


def shown_draw(method: str) -> str:
    """Which of several draws a bar shows: the one that is hardest to tell from the real thing."""
    return "lowest" if method in LOWEST else "highest"


def _method_label(method: str, leaf: Mapping[str, Any], narrow: bool) -> str:
    lines = [method.replace("_", "_\n") if narrow else method]
    draws = _draws(leaf)
    if len(draws) > 1:
        lines.append(f"{shown_draw(method)} of{chr(10) if narrow else ' '}{len(draws)} draws")
    if "n" in leaf:
        lines.append(f"n = {leaf['n']:,}")
    if leaf.get("n_unjudged"):
        lines.append(f"{leaf['n_unjudged']:,} unjudged")
    return "\n".join(lines)


def _draws(leaf: Mapping[str, Any] | None) -> list[float]:
    return [style.number(d) for d in (leaf or {}).get("draws") or []]


def _accuracy_claim(report: Mapping[str, Any], methods: Sequence[str], chance: float) -> str:
    accuracy = report["accuracy"]
    overall = {m: style.number(accuracy[m].get("overall")) for m in methods}
    main = next((m for m in (*CONTROLLED, "prompt", *methods) if m in overall), "")
    others = [m for m in ("steer", "prompt", "none") if m in overall and m != main]
    parts = [f"{m} {style.percent(overall[m])}" for m in others]
    controls = [overall[m] for m in CONTROLS if m in overall]
    if controls:
        parts.append(f"best control {style.percent(max(controls))}")
    parts.append(f"chance {style.percent(chance)}")
    return f"{main}: {style.percent(overall[main])} of replies read as the asked emotion\n({', '.join(parts)})"


def _accuracy_caption(report: Mapping[str, Any], chance: float) -> str:
    text = f"""A reply counts if the blind judge, who does not know what was asked, answers the asked emotion; neutral is a
        seventh answer. Chance ({style.percent(chance)}) is the most that replies reach on average which ignore the asked
        emotion. n is the number of judged replies; unjudged ones are left out, and the table states the worst case, in which
        all of them miss. Whiskers are 95 % intervals from a bootstrap over skeletons (Wilson's where every skeleton scores
        the same). none has no whiskers: its replies are the same whatever is aimed at, so that chance bounds it by design; by
        emotion it is what the model says by itself."""
    if report.get("accuracy_fluent"):
        text += """ Hatched bars, and the ticks below, count a reply only if it matches and its perplexity, length and
            repetition lie within the 1st to 99th percentile of the same model's prompted replies to the training skeletons."""
    if any("draws" in (part.get("overall") or {}) for part in report["accuracy"].values()):
        text += " Controls were drawn several times: a bar is the draw that its label names, each dot one draw."
    return text


def _confusion_claim(tables: Mapping[str, Any], methods: Sequence[str]) -> str:
    main = next(m for m in (*CONTROLLED, "prompt", *methods) if m in tables)
    worst = [(int(n), e, a) for e, row in tables[main].items() for a, n in row.items() if a != e and n]
    if not worst:
        return f"{main}: every reply is read as the asked emotion"
    n, asked, answer = max(worst)
    total = sum(tables[main][asked].values())
    return f"{main}: the most frequent misreading is {asked} as {answer} ({style.percent(n / total)} of its {total:,} replies)"


def _cell(share: float) -> str:
    return "" if not share else f"{100 * share:.0f}" if share >= 0.005 else "<1"
