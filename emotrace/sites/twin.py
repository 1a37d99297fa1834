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

from emotrace.configs import field, number, text_config

T = TypeVar("T")

HEAD_DIM = 16
VOCAB = 512
LARGEST = 100_000_000
"""Parameters up to which a twin of the original width is tried, where the configuration cannot be narrowed."""
WINDOW = 4
"""Tokens of a window or chunk of a twin, so that a short probe sees what it hides."""
_WINDOWS = re.compile(
    r"window(_size)?$|chunk_(size|length)$|^local_attention$|^(index_)?block_size$|^original_max_position_embeddings$"
    r"|^index_topk(_blocks)?$|^indexer_budget$"
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
    for head_dim in (HEAD_DIM, number(text_config(module.config), "head_dim") or 64, None):
        try:
            config = _narrowed(module.config, head_dim, windows)
            twin = _build(type(module), config)
            return twin, probe(twin), ""
        except Exception as error:  # sizes of this family depend on each other in its own way: the next one is wider
            reason = f"{type(error).__name__}: {error}"
    return None, None, reason


def _narrowed(original: Any, head_dim: int | None, windows: bool) -> Any:
    """A copy of a configuration with a small vocabulary and, where a head_dim is given, few narrow heads."""
    config: Any = copy.deepcopy(original)
    for part in {id(c): c for c in (config, text_config(config))}.values():
        own = _overrides(part)
        if own:  # fields of single layers: they are put back, narrowed in the same proportion, when the others are
            part.per_layer_config = None
        before = {name: number(part, name) for name in {n for layer in own.values() for n in layer}}
        if head_dim is not None:
            _narrow(part, head_dim)
        if windows:
            for within, name, _ in windows_of(part):
                _shorten(within, name)
        _set(part, "vocab_size", min(number(part, "vocab_size") or VOCAB, VOCAB))
        _set(part, "vocab_size_per_layer_input", min(number(part, "vocab_size_per_layer_input") or VOCAB, VOCAB))
        _special_tokens(part)
        if own:
            part.per_layer_config = {
                layer: {n: _in_proportion(value, before[n], number(part, n)) for n, value in fields.items()}
                for layer, fields in own.items()
            }
    if field(config, "_attn_implementation") not in ("eager", "sdpa"):
        config._attn_implementation = "sdpa"
    return config


def _overrides(config: object) -> dict[int, dict[str, Any]]:
    """Of a configuration whose layers differ, the fields of each layer that has some of its own."""
    spec = field(config, "_heterogeneity_spec")
    return {} if spec is None else copy.deepcopy(spec.per_layer_overrides)


def _in_proportion(value: object, before: int | None, after: int | None) -> object:
    """One layer's number, as much larger or smaller than that of the other layers as it was before they changed."""
    if not isinstance(value, int) or isinstance(value, bool) or before is None or after is None or before == after:
        return value
    return max(1, value * after // before)


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


def windows_of(config: object) -> list[tuple[Any, str, int]]:
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


def _shorten(within: object, name: str) -> None:
    """Bring a window down to `WINDOW` tokens."""
    if isinstance(within, dict):
        within[name] = min(within[name], WINDOW)
    else:
        size = getattr(within, name)
        short = [min(n, WINDOW) for n in size] if isinstance(size, (list, tuple)) else min(size, WINDOW)
        _set(within, name, short)


def _narrow(config: object, head_dim: int) -> None:
    heads, width = number(config, "num_attention_heads"), number(config, "hidden_size")
    if heads is None or width is None:
        return
    few = min(heads, 4)
    for name in ("num_key_value_heads", "num_kv_heads"):
        kv = number(config, name)
        if kv is not None and 0 < kv < heads:
            few = 4 if (heads // kv) % 2 == 0 else heads // kv
            _set(config, name, max(1, few * kv // heads))
        elif kv is not None:
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
    keys, values = number(config, "linear_num_key_heads"), number(config, "linear_num_value_heads")
    if keys and values and values % keys == 0:  # linear attention: two key heads, each with as many values as before
        sizes |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * (values // keys)}
        sizes |= {"linear_key_head_dim": head_dim // 2, "linear_value_head_dim": 3 * head_dim // 4}  # told apart
    if number(config, "qk_rope_head_dim") is not None:  # multi-head latent attention
        sizes |= dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), head_dim)
    for name in ("embedding_size", "word_embed_proj_dim"):  # electra, opt
        if number(config, name) == width:
            sizes[name] = few * head_dim
    feed_forward = ["intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size"]
    feed_forward += [] if field(config, "intermediate_size") is not None else ["hidden_dim"]  # distilbert
    sizes |= dict.fromkeys(feed_forward, 48)
    for name, size in sizes.items():
        old = field(config, name)
        if isinstance(old, int) and not isinstance(old, bool):
            wide = (
                "num_attention_heads",
                "hidden_size",
                "embedding_size",
                "word_embed_proj_dim",
            )  # the last two as hidden_size
            _set(config, name, size if name in wide else min(old, size))
        elif isinstance(old, list) and old and all(isinstance(n, int) for n in old):  # one for every layer
            _set(config, name, [max(1, min(n, size * n // max(old))) for n in old])
    if isinstance(field(config, "head_dim"), int):
        _set(config, "head_dim", head_dim)


def _special_tokens(config: object) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        token = field(config, name)
        if isinstance(token, int) and token >= VOCAB:
            _set(config, name, VOCAB - 1)
        elif isinstance(token, (list, tuple)):
            _set(config, name, [min(int(t), VOCAB - 1) for t in token])


def _set(config: object, name: str, value: object) -> None:
    if field(config, name) is not None:
        with contextlib.suppress(AttributeError):  # computed from the others, as head_dim is in some families
            setattr(config, name, value)
