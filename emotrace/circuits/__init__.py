"""Circuits: the neurons and heads that write an emotion, found, compared, kept, and made into edits.

circuit = discover(model, prompts, directions)
replies = emotrace.generate(model, plain, circuit.edits(strength=1.0))
"""

from emotrace.circuits.allocate import allocate, even_plan, published_plan
from emotrace.circuits.circuit import Circuit
from emotrace.circuits.differences import difference_vectors
from emotrace.circuits.discover import PRESETS, assemble, discover

__all__ = [
    "PRESETS",
    "Circuit",
    "allocate",
    "assemble",
    "difference_vectors",
    "discover",
    "even_plan",
    "published_plan",
]
