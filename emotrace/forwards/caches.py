"""Caches: what a model's caches need to be made: an empty one, and the step after which nothing is computed."""

from __future__ import annotations

import inspect
from typing import Any

import transformers

from emotrace.configs import text_config
from emotrace.sites import LanguageModel
from emotrace.traced.caches import Setup


def setup(model: LanguageModel, program: list) -> Setup:
    """What `emotrace.traced.caches` needs.

    Args:
        model: the nnsight model.
        program: of the forwards; layers after its last step are not computed for the beginnings either.
    """
    empty = transformers.DynamicCache(config=text_config(model._module.config))
    return Setup(empty, program[-1:], "position_ids" in inspect.signature(model._module.forward).parameters)


def options(model: LanguageModel) -> dict[str, Any]:
    """What a forward without a beginning is told: to keep nothing."""
    takes = inspect.signature(model._module.forward).parameters
    return {"use_cache": False} if "use_cache" in takes and model.sites.encoder.causal else {}
