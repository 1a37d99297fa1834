from emotrace.sites.address import Address, envoy
from emotrace.sites.finding import find
from emotrace.sites.model import LanguageModel
from emotrace.sites.own import Site
from emotrace.sites.table import Sites

__all__ = ["Address", "LanguageModel", "Site", "Sites", "envoy", "find"]
