"""Edits: interventions as data, checked against a model before anything runs."""

from emotrace.edits.files import save  # noqa: F401  # not later: nnsight gives every object, modules too, a save
from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
