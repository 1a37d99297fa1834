"""Models: what is loaded, and what is installed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from nnsight import TransformersModel
from nnsight.ndif import get_local_env


def load(directory: Path, dtype: str) -> TransformersModel:
    """A model from its folder, causal or masked."""
    config = transformers.AutoConfig.from_pretrained(directory)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    module = auto.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    model = TransformersModel(module, tokenizer=transformers.AutoTokenizer.from_pretrained(directory))
    model.task = "fill-mask" if masked else "text-generation"
    return model


def environment(versions: dict[str, str]) -> dict[str, Any]:
    """What /env says is installed: what is, and the versions that it is to claim."""
    env = _environment()
    return {**env, "packages": env["packages"] | versions}


@functools.cache
def _environment() -> dict[str, Any]:
    env = get_local_env()
    return {**env, "packages": {k: v for k, v in env["packages"].items() if k != "emotrace" and v != "local"}}
