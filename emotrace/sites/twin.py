"""Twin: a narrow random model of the same class and configuration, on which the form of a model is proven."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

HEAD_DIM = 16
VOCAB = 512
LARGEST = 100_000_000
"""Parameters up to which a twin of the original width is tried, where the configuration cannot be narrowed."""
WINDOW = 4
"""Tokens of a window or chunk of a twin, so that a short probe sees what it hides."""
_WINDOWS = re.compile(
    r"window(_size)?$|chunk_(size|length)$|^local_attention$|^block_size$|^original_max_position_embeddings$"
)


def shrunken(
    module: nn.Module, probe: Callable[[nn.Module], T], windows: bool = True
) -> tuple[nn.Module | None, T | None, str]:
    """A random fp32 twin of a transformers model: all its layers, a few narrow heads, a small vocabulary.

    The twin has the module paths and the residual arithmetic of the original, at a cost that does not depend on the
    original's width. Weights are drawn so that every branch matters (biases and norms too, which many families
    initialise to 0 and 1). Where the narrowest configuration does not run, wider ones are tried.

    Args:
        module: the model, with weights or on the meta device.
        probe: run on the twin; a twin that it refuses is none.
        windows: narrow windows and chunks of tokens too, to `WINDOW`.

    Returns:
        ``(twin, what the probe returned, "")``, or ``(None, None, reason)``.
    """
    reason = "its configuration cannot be narrowed"
    heads = getattr(module.config.get_text_config(), "head_dim", None)  # type: ignore[operator, union-attr]
    for head_dim in (HEAD_DIM, heads if isinstance(heads, int) else 64, None):
        config: Any = copy.deepcopy(module.config)
        for part in {id(c): c for c in (config, config.get_text_config())}.values():
            if head_dim is not None:
                _narrow(part, head_dim)
            if windows:
                for within, name, _ in windows_of(part):
                    _shorten(within, name)
            _set(part, "vocab_size", min(int(getattr(part, "vocab_size", VOCAB)), VOCAB))
            _special_tokens(part)
        if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa"):
            config._attn_implementation = "sdpa"
        try:
            twin = _build(type(module), config)
            return twin, probe(twin), ""
        except Exception as error:  # sizes of this family depend on each other in its own way: the next one is wider
            reason = f"{type(error).__name__}: {error}"
    return None, None, reason


def _build(cls: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        size = sum(p.numel() for p in cls._from_config(copy.deepcopy(config), dtype=torch.float32).parameters())
    if size > LARGEST:
        raise ValueError(f"the twin would have {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = cls._from_config(config, dtype=torch.float32)
    randomise(twin)
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


def windows_of(config: Any) -> list[tuple[Any, str, int]]:
    """Where a configuration says how many tokens a window, a chunk or a table of positions spans: ``(holder, name, tokens)``."""
    found = []
    inner = [v for v in vars(config).values() if isinstance(v, dict)]
    inner += [v for held in inner for v in held.values() if isinstance(v, dict)]  # positions of each type of layers
    for within in (vars(config), *inner):
        for name, value in within.items():
            sizes = value if isinstance(value, (list, tuple)) and value else [value]
            if isinstance(name, str) and _WINDOWS.search(name) and all(type(n) is int and n > 0 for n in sizes):
                found.append((config if within is vars(config) else within, name, min(sizes)))
    return found


def _shorten(within: Any, name: str) -> None:
    """Bring a window down to `WINDOW` tokens."""
    if isinstance(within, dict):
        within[name] = min(within[name], WINDOW)
    else:
        size = getattr(within, name)
        short = [min(n, WINDOW) for n in size] if isinstance(size, (list, tuple)) else min(size, WINDOW)
        _set(within, name, short)


def _narrow(config: Any, head_dim: int) -> None:
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    few = min(heads, 4)
    for name in ("num_key_value_heads", "num_kv_heads"):
        kv = getattr(config, name, None)
        if isinstance(kv, int) and 0 < kv < heads:
            few = 4 if (heads // kv) % 2 == 0 else heads // kv
            _set(config, name, max(1, few * kv // heads))
        elif isinstance(kv, int):
            _set(config, name, few)
    sizes = {
        "num_attention_heads": few,
        "hidden_size": few * head_dim,
        "num_local_experts": 8,
        "num_experts": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_k": 2,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "rotary_dim": head_dim,
    }
    if getattr(config, "qk_rope_head_dim", None) is not None:  # multi-head latent attention
        sizes |= dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), head_dim)
    if getattr(config, "embedding_size", None) == width:  # electra
        sizes["embedding_size"] = few * head_dim
    if getattr(config, "word_embed_proj_dim", None) == width:  # opt
        sizes["word_embed_proj_dim"] = few * head_dim
    feed_forward = ["intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size"]
    feed_forward += [] if getattr(config, "intermediate_size", None) is not None else ["hidden_dim"]  # distilbert
    sizes |= dict.fromkeys(feed_forward, 48)
    for name, size in sizes.items():
        old = getattr(config, name, None)
        if isinstance(old, int) and not isinstance(old, bool):
            _set(config, name, size if name in ("num_attention_heads", "hidden_size") else min(old, size))
    if isinstance(getattr(config, "head_dim", None), int):
        _set(config, "head_dim", head_dim)


def _special_tokens(config: Any) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and token >= VOCAB:
            _set(config, name, VOCAB - 1)
        elif isinstance(token, (list, tuple)):
            _set(config, name, [min(int(t), VOCAB - 1) for t in token])


def _set(config: Any, name: str, value: Any) -> None:
    if getattr(config, name, None) is not None:
        with contextlib.suppress(AttributeError):  # computed from the others, as head_dim is in some families
            setattr(config, name, value)
