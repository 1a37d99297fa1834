"""Overlap: the figure of how far the circuits of emotions share their components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import Picture
from emotrace.signatures import typed

if TYPE_CHECKING:
    from emotrace.circuits.circuit import Circuit


@typed
def circuit_overlap(circuit: Circuit) -> Picture:
    """Jaccard index of the circuits of every two emotions, neurons and heads apart.

    Args:
        circuit: a `Circuit` of two emotions or more.

    Raises:
        EmotraceError: for a circuit of one emotion.
    """
    if len(circuit.labels) < 2:
        raise EmotraceError(
            f"circuit_overlap: the circuit knows {circuit.labels} only; two emotions or more are compared."
        )
    found = circuit.overlap()
    order = style.in_order(circuit.labels)
    kinds = [str(k) for k in found["kind"].values]
    caption = f"""Jaccard index: components in both circuits over components in either, a component being one neuron or
        head of one layer. Mean and standard deviation (ddof 1) over {len(order) * (len(order) - 1) // 2} pairs of
        {circuit.label}s, n = number of components; they describe one circuit each, without an interval. By chance: random
        circuits with as many components in every layer."""
    figure = style.canvas(5.0, _overlap_claim(circuit, found, kinds), caption)
    panels = figure.subplots(1, 2, squeeze=False)[0]
    image = None
    for i, ax in enumerate(panels):
        if i >= len(kinds):
            ax.set_axis_off()
            continue
        matrix = found["jaccard"].sel({"kind": kinds[i], circuit.label: order, f"{circuit.label}_other": order}).values
        image = heat(ax, matrix, order, order if i == 0 else [""] * len(order), turn=45, text=_short, vmin=0, vmax=1)
        mask = circuit.mask(kinds[i]).transpose(circuit.label, ...).values
        n = style.span([int(m.sum()) for m in mask])
        style.titled(ax, f"{kinds[i]}s (n = {n} per {circuit.label})")
    if image is not None:
        scale(figure, image, "Jaccard index (0: nothing shared)", ax=panels.tolist(), shrink=0.75, aspect=25, pad=0.01)
    return figure


def by_chance(circuit: Circuit, kind: str) -> float:
    """The Jaccard index that two random circuits with as many components in every layer have, mean over pairs of labels.

    Σ_l a_l b_l / N over Σ_l (a_l + b_l − a_l b_l / N), a ratio of means: a, b components of the two in layer l out of N.
    """
    mask = circuit.mask(kind).transpose(circuit.label, "layer", ...).values.astype(np.float64)
    counts, size = mask.sum(-1), mask.shape[-1]
    values = []
    for i in range(len(counts)):
        for j in range(i):
            both = (counts[i] * counts[j] / size).sum()
            union = (counts[i] + counts[j]).sum() - both
            values += [both / union] if union > 0 else []
    return float(np.mean(values)) if values else math.nan


def _overlap_claim(circuit: Circuit, found: xr.Dataset, kinds: Sequence[str]) -> str:
    out = []
    for kind in kinds:
        mean, sd = (float(found[v].sel(kind=kind)) for v in ("mean", "sd"))
        spread = f" ± {sd:.3f}" if math.isfinite(sd) else ""
        out.append(f"{kind}s {mean:.3f}{spread} (random circuits of the same sizes: {by_chance(circuit, kind):.3f})")
    return f"What the circuits of two {circuit.label}s share, Jaccard index, mean ± sd over pairs:\n" + ";\n".join(out)


def _short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}".replace("0.", ".", 1) if value < 1 else "1"
