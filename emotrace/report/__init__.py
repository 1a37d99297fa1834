"""Report: figures, tables and one HTML page of a run. Data in, files out; no model, no global state."""

from emotrace.lazy import attach, renamed

__getattr__, __dir__, __all__ = attach(__name__, __file__)
save = renamed(__name__, "save")
