"""Report: figures, tables and one HTML page of a run. Data in, files out; no model, no global state."""

from emotrace.report.figures import (
    accuracy_bars,
    agnosticism,
    confusion,
    dose_curve,
    draw,
    layer_profile,
    save,
    similarity,
)
from emotrace.report.page import render, write

__all__ = [
    "accuracy_bars",
    "agnosticism",
    "confusion",
    "dose_curve",
    "draw",
    "layer_profile",
    "render",
    "save",
    "similarity",
    "write",
]
