"""Report: figures, tables and one HTML page of a run. Data in, files out; no model, no global state."""

from emotrace.lazy import attach
from emotrace.report.style import save  # noqa: F401  # not later: nnsight gives every object, modules too, a save

__getattr__, __dir__, __all__ = attach(__name__, __file__)
