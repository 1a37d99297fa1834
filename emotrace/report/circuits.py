"""Circuits: the figure of where the components of an emotion lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import FuncNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from emotrace.labels import RUN_ORDER, EmotraceError
from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.parts import CircuitParts, label_of
from emotrace.report.style import INK, Picture, span
from emotrace.signatures import typed

NEURONS = "#0072B2"
REST = "#d9d9d9"
NUMBERED = 12
"""Most layers whose bars carry the number of neurons."""


@typed
def circuit_map(parts: CircuitParts) -> Picture:
    """Layers × heads coloured by contribution, the circuit's outlined; beside it what its neurons contribute per layer.

    One panel per emotion, layer 0 at the bottom. The colours of all emotions have one scale, by the square root of the
    contribution, so that the few large ones do not hide the others. Bars: summed contribution of the circuit's neurons;
    behind them that of all neurons that contribute positively, where contributions are given.

    Args:
        parts: needs ``circuit`` or ``heads``; uses ``neurons``.

    Raises:
        EmotraceError: if both are absent.
    """
    labels, layers, kinds = _shape(parts)
    across = min(3, len(labels))
    down = math.ceil(len(labels) / across)
    side = min(3.3, max(1.9, 0.25 * len(layers)))
    figure = style.canvas(1.75 + down * (side + 0.6), _map_claim(parts, layers), _map_caption(parts))
    widths = {"head": 1.9, "neuron": 1.0}
    panels = figure.subplots(
        down, across * len(kinds), squeeze=False, sharey=True, width_ratios=[widths[k] for k in kinds] * across
    )
    for ax in panels.ravel():
        ax.set_visible(False)
    matrices = {e: _heads(parts, e, layers) for e in labels} if "head" in kinds else {}
    top = _largest(list(matrices.values()))
    norm = FuncNorm((lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda y: np.sign(y) * y**2), vmin=-top, vmax=top)
    image = None
    for i, emotion in enumerate(labels):
        row, column = divmod(i, across)
        first, last = column == 0, i + across >= len(labels)
        for j, kind in enumerate(kinds):
            ax = panels[row, column * len(kinds) + j]
            ax.set_visible(True)
            if kind == "head":
                image = _grid(ax, matrices[emotion], parts, emotion, layers, norm)
                ax.set_xlabel("head" if last else "", fontsize=10, color=INK)
            else:
                _bars(ax, parts, emotion, layers)
                ax.set_xlabel("neurons, Σ" if last else "", fontsize=10, color=INK)
            ax.set_title(_title(parts, emotion, kind, j == 0), fontsize=10, loc="left", color=INK)
            step = max(1, math.ceil(len(layers) / 10))
            ax.set_yticks(range(0, len(layers), step), [str(n) for n in layers[::step]], fontsize=9)
            ax.set_ylim(-0.5, len(layers) - 0.5)
            ax.set_ylabel("layer" if first and j == 0 else "", fontsize=10, color=INK)
            ax.tick_params(length=0, colors=INK, labelsize=9, labelleft=first and j == 0)
    bars = [ax for ax in panels[:, len(kinds) - 1 :: len(kinds)].ravel() if "neuron" in kinds]
    widest = max((ax.get_xlim()[1] for ax in bars if ax.get_visible()), default=1.0)
    for ax in bars:
        ax.set_xlim(0, widest)
    if image is not None:
        label = "contribution of a head (0: removing it changes nothing; colours by its square root)"
        bar = scale(figure, image, label, ax=panels, location="bottom", shrink=0.5, aspect=45, pad=0.02)
        ticks = [-top, -top / 4, -top / 25, 0, top / 25, top / 4, top]
        bar.set_ticks(ticks, labels=[f"{x:.2g}".replace("-", "−") for x in ticks])
    figure.legend(handles=_handles(parts, kinds), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _shape(parts: CircuitParts) -> tuple[list[str], list[int], list[str]]:
    """Labels in order, layers, and which of the kinds there is something to show of."""
    if parts.circuit is not None:
        labels, layers = parts.circuit.labels, list(parts.circuit.layers)
        present = set(parts.circuit.components["kind"])
    elif parts.heads is not None:
        labels, layers = parts.heads[label_of(parts.heads["contrast"])].values.tolist(), []
        present = set()
    else:
        raise EmotraceError("circuit_map needs 'circuit' or 'heads', and circuits has neither.")
    if parts.heads is not None:
        layers = sorted({*layers, *(int(i) for i in parts.heads["layer"].values)})
        present.add("head")
    return style.in_order(labels), layers, [k for k in RUN_ORDER if k in present]


def scores(data: xr.Dataset, parts: CircuitParts) -> xr.DataArray:
    """The variable that the circuit was ranked by, ``contrast`` where that is not said."""
    by = parts.circuit.meta.get("by") if parts.circuit is not None else None
    return data[by if by in data else "contrast"]


def _heads(parts: CircuitParts, emotion: str, layers: Sequence[int]) -> np.ndarray:
    """Contributions ``[layer, head]``: all of them, or only the circuit's where no others are known."""
    if parts.heads is not None:
        array = scores(parts.heads, parts)
        array = array.sel({label_of(array): emotion}).transpose("layer", "head").reindex(layer=list(layers))
        return np.asarray(array.values, dtype=np.float64)
    assert parts.circuit is not None
    out = np.full((len(layers), parts.circuit.mask("head").sizes["head"]), np.nan)
    rows = _rows(parts, emotion, "head")
    out[[layers.index(i) for i in rows["layer"]], rows["index"]] = rows["score"]
    return out


def _grid(
    ax: Axes, matrix: np.ndarray, parts: CircuitParts, emotion: str, layers: Sequence[int], norm: FuncNorm
) -> AxesImage:  # fmt: skip
    image = heat(ax, matrix, cmap=style.SIGNED_OUTLINED, norm=norm, origin="lower", interpolation="nearest")
    n = matrix.shape[1]
    step = max(1, math.ceil(n / 8))
    ax.set_xticks(range(0, n, step), [str(i) for i in range(0, n, step)])
    if parts.circuit is not None:
        rows = _rows(parts, emotion, "head")
        boxes = [
            Rectangle((h - 0.5, layers.index(layer) - 0.5), 1, 1)
            for layer, h in zip(rows["layer"], rows["index"], strict=True)
        ]
        width = 1.6 if n * len(layers) <= 200 else 0.8
        ax.add_collection(PatchCollection(boxes, facecolor="none", edgecolor="black", linewidth=width))
    return image


def _bars(ax: Axes, parts: CircuitParts, emotion: str, layers: Sequence[int]) -> None:
    rows = _rows(parts, emotion, "neuron")
    mass, count = rows.groupby("layer")["score"].sum(min_count=1), rows.groupby("layer").size()
    widths = np.nan_to_num([style.number(mass.get(i)) for i in layers])
    behind = _all_neurons(parts, emotion, layers)
    ax.barh(range(len(layers)), behind, height=0.8, color=REST)
    ax.barh(range(len(layers)), widths, height=0.8, color=NEURONS)
    style.axes(ax)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(2))
    longest = max(float(np.max(np.maximum(widths, behind), initial=0.0)), 1e-12)
    ax.set_xlim(0, longest * (1.35 if len(layers) <= NUMBERED else 1.05))
    if len(layers) <= NUMBERED:
        for y, layer in enumerate(layers):
            if count.get(layer, 0):
                at = max(widths[y], behind[y]) + 0.04 * longest
                ax.text(at, y, str(int(count[layer])), ha="left", va="center", fontsize=9, color=INK)


def _all_neurons(parts: CircuitParts, emotion: str, layers: Sequence[int]) -> np.ndarray:
    """Σ of the positive contributions of all neurons of every layer; 0 where they are not known."""
    if parts.neurons is None:
        return np.zeros(len(layers))
    array = scores(parts.neurons, parts)
    array = array.sel({label_of(array): emotion}).clip(min=0).sum("unit").reindex(layer=list(layers))
    return np.nan_to_num(np.asarray(array.values, dtype=np.float64))


def _rows(parts: CircuitParts, emotion: str, kind: str) -> Any:
    assert parts.circuit is not None
    table = parts.circuit.components
    return table[(table[parts.circuit.label].astype(str) == emotion) & (table["kind"] == kind)]


def _map_caption(parts: CircuitParts) -> str:
    by = str(parts.circuit.meta.get("by", "contrast")) if parts.circuit is not None else "contrast"
    score = {
        "contrast": "the mean over prompts of the emotion less that over prompts of the others",
        "mean": "the mean over prompts of the emotion",
    }.get(by, f"the score {by}")
    normed = parts.heads is not None and parts.heads.attrs.get("readout") == "normed"
    where = "its own layer" + (", after the norm that the MLP reads through," if normed else "")
    text = f"""A head contributes what the projection on the emotion's direction loses in {where} when the head is set
        to zero, a neuron its activation times the projection of its output weights, at the last prompt token: {score}.
        Positive (red): removing it lowers the emotion. Layer 0 is at the bottom; colours, by the square root of
        the contribution, and bars have one scale for all emotions."""
    if parts.circuit is not None:
        text += " Outlined: heads in the circuit."
        if "neuron" in set(parts.circuit.components["kind"]):
            text += " Bars: contributions of the circuit's neurons, summed per layer"
            text += "; the numbers beside them count them." if len(parts.circuit.layers) <= NUMBERED else "."
    counts = [x for part in (parts.heads, parts.neurons) if part is not None and "n" in part for x in part["n"].values]
    n = f"n = {span([int(x) for x in counts])} prompts per emotion" if counts else "n unknown"
    return f"{text} Means without an interval, {n}."


def _title(parts: CircuitParts, emotion: str, kind: str, first: bool) -> str:
    name = emotion if first else ""
    if parts.circuit is None:
        return name
    n = len(_rows(parts, emotion, kind))
    return f"{name}{': ' if name else ''}{n:,} {kind}{'' if n == 1 else 's'}"


def _largest(matrices: Sequence[np.ndarray]) -> float:
    values = np.abs(np.concatenate([m.ravel() for m in matrices])) if matrices else np.array([])
    values = values[np.isfinite(values)]
    return float(values.max(initial=0.0)) or 1.0


def _handles(parts: CircuitParts, kinds: Sequence[str]) -> list[Any]:
    out: list[Any] = []
    if "head" in kinds and parts.circuit is not None:
        out.append(Patch(facecolor="none", edgecolor="black", linewidth=1.4, label="head of the circuit"))
    if "neuron" in kinds:
        out.append(Patch(facecolor=NEURONS, label="neurons of the circuit, summed"))
        if parts.neurons is not None:
            out.append(Patch(facecolor=REST, label="all neurons that contribute positively"))
    return out


def _map_claim(parts: CircuitParts, layers: Sequence[int]) -> str:
    if parts.circuit is None:
        assert parts.heads is not None
        mean = scores(parts.heads, parts).clip(min=0).sum("head").mean(label_of(parts.heads["contrast"]))
        return f"Half of what heads contribute comes from {_half(mean.values, mean['layer'].values.tolist())}"
    table, parts_of = parts.circuit.components, []
    for kind in RUN_ORDER:
        rows = table[table["kind"] == kind]
        if not len(rows):
            continue
        n = style.span([int(x) for x in rows.groupby(parts.circuit.label).size()])
        at, score = np.asarray(rows["layer"]), np.nan_to_num(np.asarray(rows["score"], dtype=np.float64)).clip(min=0)
        where = _half(np.array([score[at == i].sum() for i in layers]), layers)
        parts_of.append(f"{n} {kind}s, half of their contribution from {where}" if where else f"{n} {kind}s")
    claim = f"A circuit per {parts.circuit.label}: " + ";\n".join(parts_of)
    return claim if parts_of else "The circuits are empty"


def _half(mass: np.ndarray, layers: Sequence[int]) -> str:
    """The shortest run of layers with at least half of the mass; of equally short ones that with most."""
    total = float(mass.sum())
    if total <= 0:
        return ""
    for length in range(1, len(layers) + 1):
        sums = np.convolve(mass, np.ones(length), "valid")
        if sums.max() >= total / 2 - 1e-12:
            at = int(sums.argmax())
            return f"layer{'s' if length > 1 else ''} {style.layer_range(layers[at : at + length])}"
    return ""
