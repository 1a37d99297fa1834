"""Remote: models that live elsewhere: the server, its jobs, and what a client knows of a model without its weights."""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
