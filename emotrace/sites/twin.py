"""Twin: a narrow random model of the same class and configuration, on which the form of a model is proven."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

HEAD_DIM = 8
VOCAB = 512


def shrunken(module: nn.Module) -> nn.Module | None:
    """A random fp32 twin of a transformers model: all its layers, a few narrow heads, a small vocabulary.

    The twin has the module paths and the residual arithmetic of the original, at a cost that does not depend on the
    original's width. Weights are drawn so that every branch matters (biases and norms too, which many families
    initialise to 0 and 1).

    Args:
        module: the model, with weights or on the meta device.

    Returns:
        The twin, or None where this family's configuration cannot be narrowed.
    """
    config: Any = copy.deepcopy(module.config)
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        _narrow(part)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            cls: Any = type(module)
            twin = cls._from_config(config, dtype=torch.float32)
            randomise(twin)
    except Exception:  # a family whose sizes depend on each other in its own way: the caller proves on the real weights
        return None
    return twin.eval()


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter so that no branch is silent: matrices ~ N(0, 1/fan_in), vectors with noise of 0.1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / math.sqrt(min(parameter.shape[-2:])))
            else:
                parameter.add_(0.1 * noise)


def _narrow(config: Any) -> None:
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    kv = getattr(config, "num_key_value_heads", None)
    few = min(heads, 4)
    if isinstance(kv, int) and 0 < kv < heads:
        few = 4 if (heads // kv) % 2 == 0 else heads // kv
        _set(config, "num_key_value_heads", max(1, few * kv // heads))
    elif isinstance(kv, int):
        _set(config, "num_key_value_heads", few)
    head_dim = getattr(config, "head_dim", None)
    for name in ("num_attention_heads", "n_head", "encoder_attention_heads"):
        _set(config, name, few)
    if isinstance(head_dim, int):
        _set(config, "head_dim", HEAD_DIM)
    _set(config, "hidden_size", few * HEAD_DIM)
    old_ff = getattr(config, "intermediate_size", None)
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size", "hidden_dim"):
        if isinstance(getattr(config, name, None), int) and (name != "hidden_dim" or old_ff is None):
            _set(config, name, 48)
    for name in ("vocab_size",):
        if isinstance(getattr(config, name, None), int):
            _set(config, name, min(getattr(config, name), VOCAB))
    for name in ("embedding_size", "word_embed_proj_dim"):  # electra, opt
        if getattr(config, name, None) == width:
            _set(config, name, few * HEAD_DIM)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if isinstance(getattr(config, name, None), int):
            _set(config, name, min(getattr(config, name), 8))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and token >= VOCAB:
            _set(config, name, VOCAB - 1)
        elif isinstance(token, (list, tuple)):
            _set(config, name, [min(int(t), VOCAB - 1) for t in token])


def _set(config: Any, name: str, value: Any) -> None:
    if getattr(config, name, None) is not None:
        setattr(config, name, value)
