"""Prompt tuning: soft prompts of a frozen model, the neurons they activate, and answers with neurons masked."""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
