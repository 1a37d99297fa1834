"""Attribution: what each neuron, head and sublayer contributes to an emotion, at the last prompt token.

Sign everywhere: positive means that the component raises the projection on the direction; removing it lowers it.
"""

from emotrace.lazy import attach, renamed

__getattr__, __dir__, __all__ = attach(__name__, __file__)
save = renamed(__name__, "save")
