"""Figures: every figure of a report, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import xarray as xr

from emotrace.report import arms, style
from emotrace.report.attention import attention_patterns
from emotrace.report.circuits import circuit_map
from emotrace.report.comparison import equal_kl
from emotrace.report.curves import effect_curves
from emotrace.report.doses import dose_curve
from emotrace.report.effects import influence_profile
from emotrace.report.frontiers import frontier
from emotrace.report.geometry import chosen_layer, similarity_maps
from emotrace.report.layers import agnosticism, layer_profile
from emotrace.report.overlap import circuit_overlap
from emotrace.report.parts import CircuitParts
from emotrace.report.replies import accuracy_bars, confusion
from emotrace.report.saved import save_figure
from emotrace.report.style import Picture
from emotrace.signatures import typed

__all__ = [
    "Shown",
    "accuracy_bars",
    "agnosticism",
    "attention_patterns",
    "circuit_map",
    "circuit_overlap",
    "confusion",
    "dose_curve",
    "draw",
    "effect_curves",
    "equal_kl",
    "frontier",
    "influence_profile",
    "layer_profile",
    "save_figure",
    "similarity_maps",
]


class Shown(NamedTuple):
    """A figure with its file name (without ending) and heading; it carries its caption itself."""

    name: str
    heading: str
    figure: Picture


@typed
def draw(
    report: Mapping[str, Any],
    directions: xr.DataArray | None = None,
    found: xr.Dataset | None = None,
    circuits: Mapping[str, Any] | CircuitParts | None = None,
) -> list[Shown]:
    """Every figure that the data suffice for, in the order of the page.

    Args:
        report: content of report.json; absent parts leave their figure out.
        directions: ``[emotion, layer, sublayer, dim]`` of `directions.centered_mean`.
        found: of `directions.context_agnosticism`.
        circuits: `CircuitParts`, or a mapping of its fields.

    Raises:
        EmotraceError: for a part of ``circuits`` that is unknown or lacks what its figure needs.
    """
    parts = CircuitParts.of(circuits)
    out: list[Shown] = []

    def add(name: str, heading: str, figure: Picture) -> None:
        out.append(Shown(name, heading, figure))

    methods = {m for part in ("accuracy", "confusion") for m in report.get(part) or {}}
    spoken = style.only(report, [m for m in methods if m not in arms.OTHERS])
    if spoken.get("accuracy"):
        add("accuracy", "Accuracy by method", accuracy_bars(spoken, arms.title(report, ("steers", "modulates"))))
    if spoken.get("confusion"):
        add("confusion", "What was asked and what was read", confusion(spoken))
    for panel, picture in arms.drawn(report):
        add(panel.name, panel.heading, picture())
    if report.get("sweep"):
        add("dose", "Dose and fluency", dose_curve(report))
    if report.get("comparison"):
        add("comparison", "Steering and circuit at equal KL", equal_kl(report))
    if report.get("frontiers"):
        add("frontiers", "What every dose reaches, and what it costs", frontier(report))
    if directions is not None:
        at = chosen_layer([int(i) for i in directions["layer"].values], report.get("chosen"))
        add("similarity", "Similarity of the directions", similarity_maps(directions, at))
    if found is not None:
        add("agnosticism", "Are the directions context-agnostic?", agnosticism(found))
    if directions is not None and "norm" in directions.coords:
        add("layers", "Layer profile", layer_profile(directions, found, report.get("layer_profile")))
    if parts.circuit is not None or parts.heads is not None:
        add("circuit", "Where the components lie", circuit_map(parts))
    if parts.circuit is not None and len(parts.circuit.labels) > 1 and len(parts.circuit.components):
        add("overlap", "What circuits share", circuit_overlap(parts.circuit))
    if parts.curves:
        add("curves", "Do the best components carry the emotion?", effect_curves(parts.curves))
    if parts.influence is not None:
        add("influence", "Which sublayers matter", influence_profile(parts.influence))
    if parts.attention:
        add("attention", "Where top heads look", attention_patterns(parts.attention))
    return out
