"""Sites: where activations live in any Hugging Face model, found by one probe and proven numerically.

There is no table of model families: a shrunken random twin shows the form of the residual stream, the real weights
confirm it, and what cannot be proven is refused by name.
"""

from emotrace.sites.address import Address, Site, envoy
from emotrace.sites.find import find
from emotrace.sites.model import LanguageModel
from emotrace.sites.table import Sites

__all__ = ["Address", "LanguageModel", "Site", "Sites", "envoy", "find"]
