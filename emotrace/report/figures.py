"""Figures: every figure of a report, by name, with the paragraph that says what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from emotrace.report import captions
from emotrace.report.doses import dose_curve
from emotrace.report.geometry import chosen_layer, similarity
from emotrace.report.layers import agnosticism, layer_profile
from emotrace.report.replies import accuracy_bars, confusion
from emotrace.report.style import save

__all__ = [
    "Shown",
    "accuracy_bars",
    "agnosticism",
    "confusion",
    "dose_curve",
    "draw",
    "layer_profile",
    "save",
    "similarity",
]


class Shown(NamedTuple):
    """A figure with its file name (without ending), heading and caption."""

    name: str
    heading: str
    caption: str
    figure: Figure


def draw(
    report: Mapping[str, Any], directions: xr.DataArray | None = None, found: xr.Dataset | None = None
) -> list[Shown]:
    """Every figure that the data suffice for, in the order of the page.

    Args:
        report: content of report.json; absent parts leave their figure out.
        directions: ``[emotion, layer, sublayer, dim]`` of `directions.centered_mean`.
        found: of `directions.context_agnosticism`.
    """
    out: list[Shown] = []

    def add(name: str, heading: str, caption: str, figure: Callable[[], Figure]) -> None:
        out.append(Shown(name, heading, caption, figure()))

    if report.get("accuracy"):
        add("accuracy", "Accuracy by method", captions.accuracy(report), lambda: accuracy_bars(report))
    if report.get("confusion"):
        add("confusion", "What was asked and what was read", captions.confusion(), lambda: confusion(report))
    if report.get("sweep"):
        add("dose", "Dose and fluency", captions.dose(report), lambda: dose_curve(report))
    if directions is not None:
        layers = [int(i) for i in directions["layer"].values]
        at = chosen_layer(layers, report.get("chosen"))
        add(
            "similarity",
            "Similarity of the directions",
            captions.similarity(directions),
            lambda: similarity(directions, at),
        )
    if found is not None:
        add(
            "agnosticism",
            "Are the directions context-agnostic?",
            captions.agnosticism(found),
            lambda: agnosticism(found),
        )
    if directions is not None and "norm" in directions.coords:
        profile = report.get("layer_profile")
        add("layers", "Layer profile", captions.layers(directions), lambda: layer_profile(directions, found, profile))
    return out
