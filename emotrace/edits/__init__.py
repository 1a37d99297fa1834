"""Edits: interventions as data, checked against a model before anything runs."""

from emotrace.lazy import attach, renamed

__getattr__, __dir__, __all__ = attach(__name__, __file__)
save = renamed(__name__, "save")
