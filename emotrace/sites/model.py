"""Model: a language model as `emotrace.load` returns it, for those who read types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from emotrace.traced.model import TracedModel

if TYPE_CHECKING:
    from emotrace.sites.attached import Sites


class LanguageModel(TracedModel, Protocol):
    """What emotrace needs of a model: nnsight's own ``TransformersModel`` with its sites attached.

    Attributes:
        sites: what the model has, where it is, and how that was proven; reads, writes and encodes.
    """

    sites: Sites
