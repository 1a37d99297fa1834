"""Sites: where activations live in any Hugging Face model, found by one probe and proven numerically.

There is no table of model families: a shrunken random twin shows the form of the residual stream, the real weights
confirm it, and what cannot be proven is refused by name.
"""

from emotrace.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
