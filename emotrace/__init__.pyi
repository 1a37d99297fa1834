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
    ranks,
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
from emotrace.forwards.centred import stream_directions
from emotrace.forwards.generation import generate
from emotrace.labels import EMOTIONS, EMOTIONS_EV, SITES, SUBLAYERS, VALENCES, EmotraceError
from emotrace.model import load
from emotrace.provenance import adopt
from emotrace.sites import Site
from emotrace.store import Activations, open_activations

__version__: str

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
    "ranks",
    "replies",
    "report",
    "rsa",
    "scoring",
    "sites",
    "stats",
    "store",
    "stream_directions",
    "suite",
    "testing",
]
