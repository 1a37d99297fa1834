"""Suite: what steering does to replies: paired arms and controls, measures of text, topic and emotion, TruthfulQA.

Offline everything has a default; topic and intensity then are proxies, and are signed as such. ``lm-eval`` runs under edits
through `harness.adapter`.
"""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
