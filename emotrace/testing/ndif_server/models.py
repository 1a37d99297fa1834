"""Models: what is deployed, under which names, in which environment."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from nnsight import TransformersModel
from nnsight.ndif import get_local_env

WRAPPER = "nnsight.modeling.transformers.TransformersModel"


def load(directory: Path, dtype: str) -> TransformersModel:
    """A model from its folder, causal or masked."""
    config = transformers.AutoConfig.from_pretrained(directory)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    module = auto.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    model = TransformersModel(module, tokenizer=transformers.AutoTokenizer.from_pretrained(directory))
    model.task = "fill-mask" if masked else "text-generation"
    return model


def named(models: dict[str, TransformersModel], model_key: str) -> TransformersModel:
    """The model that a key names."""
    wrapper, _, rest = model_key.partition(":")
    wanted = json.loads(rest)
    model = models.get(wanted.get("repo_id"))
    right = model is not None and model.task == wanted.get("task") and wanted.get("revision") in (None, "main")
    if wrapper != WRAPPER or model is None or not right:
        up = ", ".join(f"{name} ({model.task})" for name, model in models.items())
        raise LookupError(f"{model_key} is not deployed. Running: {up}.")
    return model


def deployments(models: dict[str, TransformersModel]) -> dict[str, Any]:
    """What /status says of each model."""
    found = {}
    for name, model in models.items():
        about = {"repo_id": name, "revision": None, "task": model.task}
        key = f"{WRAPPER}:{json.dumps(about)}"
        state = {"model_key": key, "deployment_level": "HOT", "application_state": "RUNNING"}
        found[key] = about | state | {"revision": "main", "trust_remote_code": False}
    return {"deployments": found}


def environment(versions: dict[str, str]) -> dict[str, Any]:
    """What /env says is installed: what is, and the versions that it is to claim."""
    env = _environment()
    return {**env, "packages": env["packages"] | versions}


@functools.cache
def _environment() -> dict[str, Any]:
    env = get_local_env()
    return {**env, "packages": {k: v for k, v in env["packages"].items() if k != "emotrace" and v != "local"}}
