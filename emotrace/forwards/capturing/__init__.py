"""Capture: prompts → activations, labelled by layer, sublayer, token and everything the prompts carry."""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
