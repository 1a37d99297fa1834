from emotrace.sites.address import Address, envoy
from emotrace.sites.attached import Sites
from emotrace.sites.finding import find
from emotrace.sites.model import LanguageModel
from emotrace.sites.own import Site

__all__ = ["Address", "LanguageModel", "Site", "Sites", "envoy", "find"]
