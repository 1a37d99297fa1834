"""Models: what is loaded, and what is installed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from nnsight import TransformersModel

from emotrace.testing.ndif_server.inner import get_local_env


def load(directory: Path, dtype: str) -> TransformersModel:
    """A model from its folder, causal or masked; ``auto`` leaves its weights in the dtype that it was saved in."""
    config, auto = described(directory)
    return wrapped(auto.from_pretrained(directory, dtype=held(config, dtype)), directory)


def held(config: Any, dtype: str) -> torch.dtype:
    """The dtype of the weights of a model."""
    return (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)


def described(directory: Path) -> tuple[Any, Any]:
    """The configuration of a model, and the class that makes it."""
    config = transformers.AutoConfig.from_pretrained(directory)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    return config, transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM


def wrapped(module: torch.nn.Module, directory: Path) -> TransformersModel:
    """nnsight's model of a module, frozen."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    device = next(module.parameters()).device
    model = TransformersModel(module.eval().requires_grad_(False), tokenizer=tokenizer, device=device)
    model.task = "fill-mask" if "MaskedLM" in type(module).__name__ else "text-generation"
    return model


def environment(versions: dict[str, str]) -> dict[str, Any]:
    """What /env says is installed: what is, and the versions that it is to claim."""
    env = _environment()
    return {**env, "packages": env["packages"] | versions}


@functools.cache
def _environment() -> dict[str, Any]:
    env = get_local_env()
    return {**env, "packages": {k: v for k, v in env["packages"].items() if k != "emotrace" and v != "local"}}
