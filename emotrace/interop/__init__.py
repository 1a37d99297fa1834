"""Interop: published layouts and other libraries' vectors read and written, and edits baked into plain checkpoints.

Everything read comes back labelled and in the layout that emotrace itself makes; what is written is what the authors' scripts
look for. Files are data: nothing in them is run.
"""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
