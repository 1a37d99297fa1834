"""Judges: one protocol, blind answers; how each is named on a command line is in `labels.JUDGES`."""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
