"""Graphs: a circuit as a layered drawing, what is given at the bottom, the metric at the top."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from emotrace.discovery.selection import ends
from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.report.style import Picture
from emotrace.signatures import typed

RAISES, LOWERS = style.COLOURS["prompt"], style.COLOURS["steer"]
LINES: Final = {"q": (0, (5, 2)), "k": (0, (1, 1.5)), "v": "solid", "mlp": "solid", "out": "solid"}
BENDS: Final = {"q": 0.07, "k": -0.07}
"""What is added to the bend of an edge, so that those between the same two nodes lie apart."""
STAGGER: Final = (-0.17, 0.11, -0.06, 0.2)
MOST: Final = 150
"""Edges above which a drawing is no longer readable."""


@typed
def circuit_graph(mask: xr.DataArray, scores: xr.Dataset | xr.DataArray | None = None, title: str = "") -> Picture:
    """A circuit of edges as a layered graph.

    Blue edges raise the metric, orange ones lower it; the width is the magnitude of the score. Dashed edges enter
    queries, dotted ones keys; all others are solid. Heads of a layer stand beside its MLP, one row above it;
    what a group of heads shares as key or value goes to those of its heads that are drawn.

    Args:
        mask: of the circuit, boolean ``[edge]``, of `emotrace.discovery.select`.
        scores: of the same edges; None draws all alike.
        title: above it; None says what it is.

    Returns:
        A figure, for `emotrace.report.save`.

    Raises:
        EmotraceError: for nodes, no edge, more than `MOST`, or scores of other edges.
    """
    if "edge" not in mask.dims:
        raise EmotraceError("circuit_graph draws edges; a circuit of nodes has none (score with level='edge').")
    inside = np.asarray(mask.values, dtype=bool)
    if not 0 < inside.sum() <= MOST:
        raise EmotraceError(f"circuit_graph draws 1 to {MOST} edges, not {int(inside.sum())}: select fewer.")
    weights = np.ones(inside.size)
    if scores is not None:
        found: Any = scores["score"] if isinstance(scores, xr.Dataset) else scores
        found = found.mean("pair") if "pair" in found.dims else found
        if not np.array_equal(found["edge"].values, mask["edge"].values):
            raise EmotraceError("circuit_graph: these scores are of other edges than the circuit's.")
        weights = np.asarray(found.values, dtype=float)
    edges, sizes = _drawn(mask, inside, weights)
    places = _layout([(s, t) for s, t, _ in edges])
    rows = sorted({y for _, y in places.values()})
    figure = style.canvas(
        max(3.2, 0.75 * len(rows) + 1.1), title or f"Circuit of {int(inside.sum())} edges",
        "Dashed: into a query; dotted: into a key. Width: magnitude of the score.",
    )  # fmt: skip
    ax = figure.add_subplot()
    ax.axis("off")
    width, height = (72 * float(inches) for inches in figure.get_size_inches())
    widths = np.abs(sizes)
    widths = 0.6 + 3.4 * widths / (widths.max() or 1.0)
    order = np.argsort(widths)
    for i in order[::-1]:
        source, target, part = edges[i]
        (x0, y0), (x1, y1) = places[source], places[target]
        bend = (
            0.0
            if abs(y1 - y0) <= 1 and abs(x1 - x0) < 1e-6
            else 0.12 * np.sign((x1 - x0) or 1) * min(1.0, (y1 - y0) / 4)
        )
        bend += BENDS.get(part, 0.0)
        rise = (x1 - x0) * width / 1.08, (y1 - y0) * height / len(rows)
        ax.add_patch(
            FancyArrowPatch(
                (x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=8,
                shrinkA=_to_edge(source, *rise), shrinkB=_to_edge(target, *rise),
                connectionstyle=f"arc3,rad={bend:.3f}", linewidth=float(widths[i]), linestyle=LINES[part],
                color=RAISES if sizes[i] >= 0 else LOWERS, alpha=0.75, zorder=1,
            )
        )  # fmt: skip
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.28", "facecolor": "white", "edgecolor": style.INK, "linewidth": 0.8}
        ax.text(x, y, name, ha="center", va="center", fontsize=8.5, color=style.INK, bbox=box, zorder=3)
    ax.set_xlim(-0.04, 1.04)
    ax.set_ylim(rows[0] - 0.5, rows[-1] + 0.5)
    used = {i for _, _, i in edges}
    marks = [Line2D([], [], color=RAISES, lw=2, label="raises the metric")]
    if bool((weights[inside] < 0).any()):
        marks.append(Line2D([], [], color=LOWERS, lw=2, label="lowers it"))
    named = {"q": "into a query", "k": "into a key", "v": "into a value"}
    marks += [Line2D([], [], color=style.FAINT, lw=1.5, linestyle=LINES[i], label=named[i]) for i in "qkv" if i in used]
    ax.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(marks), fontsize=9, frameon=False)
    return figure


def _drawn(
    mask: xr.DataArray, inside: np.ndarray, weights: np.ndarray
) -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """Source, node and input of every line, and its score: a key or value goes to those heads of its group that are drawn."""
    source, readers = ends(mask)
    shown = {source[i] for i in np.flatnonzero(inside)}
    lines, sizes = [], []
    for i in np.flatnonzero(inside):
        target = str(mask["target"].values[i])
        heads = [n for n in readers[i] if n in shown] or [
            readers[i][0] if len(readers[i]) == 1 else target.rsplit(".", 1)[0]
        ]
        lines += [(source[i], node, str(mask["input"].values[i])) for node in heads]
        sizes += [weights[i]] * len(heads)
    return lines, np.array(sizes)


def _to_edge(name: str, x: float, y: float) -> float:
    """Points from the middle of a name's box to just outside it, along (x, y)."""
    length = math.hypot(x, y) or 1.0
    half_width, half_height = 2.6 * len(name) + 5, 9.0
    return min(half_width * length / max(abs(x), 1e-9), half_height * length / max(abs(y), 1e-9)) + 2


def _row(name: str) -> float:
    found = re.fullmatch(r"(a|m)(\d+)(\.[hg]\d+)?", name)
    if found is None:
        return -1.0 if name == "embed" else 1e6
    return 2.0 * int(found[2]) + (found[1] == "m")


def _layout(edges: list[tuple[str, str]]) -> dict[str, tuple[float, int]]:
    """x in 0 … 1 and row of every node: rows in order of execution, x by the mean of the neighbours'."""
    names = sorted({n for e in edges for n in e}, key=lambda n: (_row(n), n))
    rows = {r: i for i, r in enumerate(sorted({_row(n) for n in names}))}
    near: dict[str, list[str]] = {n: [] for n in names}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    x: dict[str, float] = {}
    by_row: dict[float, list[str]] = {}
    for n in names:
        by_row.setdefault(_row(n), []).append(n)
    for members in by_row.values():
        for i, n in enumerate(members):
            x[n] = (i + 1) / (len(members) + 1)
    for _ in range(12):
        for members in by_row.values():
            members.sort(key=lambda n: np.mean([x[m] for m in near[n]] or [x[n]]))
            for i, n in enumerate(members):
                x[n] = (i + 1) / (len(members) + 1)
    alone = [members[0] for row, members in by_row.items() if len(members) == 1 and 0 <= row < 1e6]
    for i, n in enumerate(alone):  # off the middle line, or longer edges would run behind them
        x[n] += STAGGER[i % len(STAGGER)]
    return {n: (x[n], rows[_row(n)]) for n in names}
