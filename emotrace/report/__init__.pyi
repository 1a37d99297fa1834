from emotrace.report.figures import (
    accuracy_bars,
    agnosticism,
    attention_patterns,
    circuit_map,
    circuit_overlap,
    confusion,
    dose_curve,
    draw,
    effect_curves,
    equal_kl,
    influence_profile,
    layer_profile,
    save_figure,
    similarity_maps,
)
from emotrace.report.graphs import circuit_graph
from emotrace.report.page import Page, publish, render, write
from emotrace.report.parts import CircuitParts

__all__ = [
    "CircuitParts",
    "Page",
    "accuracy_bars",
    "agnosticism",
    "attention_patterns",
    "circuit_graph",
    "circuit_map",
    "circuit_overlap",
    "confusion",
    "dose_curve",
    "draw",
    "effect_curves",
    "equal_kl",
    "influence_profile",
    "layer_profile",
    "publish",
    "render",
    "save_figure",
    "similarity_maps",
    "write",
]
