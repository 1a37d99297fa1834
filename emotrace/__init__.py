"""emotrace: find where a language model computes emotion, and control the emotion it expresses.

    import emotrace as et

    model = et.load("meta-llama/Llama-3.2-3B-Instruct")
    prompts = et.datasets.sev("data/sev.jsonl")
    acts = et.capture(model, prompts, sites=("resid_mid", "resid_post"), positions="last", out="runs/activations.zarr")
    dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence"))
    edits = [et.Add("resid_post", layers=range(11, 21), vector=dirs.sel(emotion="anger"), strength=8, scale="rms")]
    replies = et.generate(model, et.datasets.sev("data/sev.jsonl", instruction=False), edits)

Rooms are imported when they are first used, so that reading a store does not load torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emotrace import (
        attribution,
        circuits,
        cli,
        datasets,
        directions,
        discovery,
        dose,
        edits,
        extraction,
        interop,
        judges,
        prompt_tuning,
        replies,
        report,
        rsa,
        scoring,
        sites,
        stats,
        store,
        suite,
        testing,
    )
    from emotrace.circuits import Circuit
    from emotrace.edits import Ablate, Add, Project, Scale
    from emotrace.forwards.capturing import capture
    from emotrace.forwards.generation import generate
    from emotrace.labels import EMOTIONS, EMOTIONS_EV, SITES, SUBLAYERS, VALENCES, EmotraceError
    from emotrace.model import load
    from emotrace.provenance import adopt
    from emotrace.sites import Site
    from emotrace.store import Activations, open_activations

__version__ = _version("emotrace")

_ROOMS = (
    "attribution", "circuits", "cli", "datasets", "directions", "discovery", "dose", "edits", "extraction", "interop", "judges",
    "prompt_tuning", "replies", "report", "rsa", "scoring", "sites", "stats", "store", "suite", "testing",
)  # fmt: skip
_NAMES = {
    "capture": "forwards.capturing",
    "Circuit": "circuits",
    **dict.fromkeys(("Ablate", "Add", "Project", "Scale"), "edits"),
    "generate": "forwards.generation",
    **dict.fromkeys(("EMOTIONS", "EMOTIONS_EV", "SITES", "SUBLAYERS", "VALENCES", "EmotraceError"), "labels"),
    "load": "model",
    "adopt": "provenance",
    "Site": "sites",
    **dict.fromkeys(("Activations", "open_activations"), "store"),
}

__all__ = [
    "EMOTIONS",
    "EMOTIONS_EV",
    "SITES",
    "SUBLAYERS",
    "VALENCES",
    "Ablate",
    "Activations",
    "Add",
    "Circuit",
    "EmotraceError",
    "Project",
    "Scale",
    "Site",
    "adopt",
    "attribution",
    "capture",
    "circuits",
    "cli",
    "datasets",
    "directions",
    "discovery",
    "dose",
    "edits",
    "extraction",
    "generate",
    "interop",
    "judges",
    "load",
    "open_activations",
    "prompt_tuning",
    "replies",
    "report",
    "rsa",
    "scoring",
    "sites",
    "stats",
    "store",
    "suite",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"emotrace.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"emotrace.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'emotrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
