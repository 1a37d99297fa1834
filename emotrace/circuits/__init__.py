"""Circuits: the neurons and heads that write an emotion, found, compared, kept, and made into edits.

circuit = discover(model, prompts, directions)
replies = emotrace.generate(model, plain, circuit.edits(strength=1.0))
"""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
