"""Identity: what a manifest says of a model, and the versions of what computed with it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emotrace import configs
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel

SAMPLED = 32
"""Weight matrices of which a few numbers are noted."""


def identity(
    module: Any, model_id: str, revision: str | None, backend: str = "local", weights: str | None = None
) -> dict[str, Any]:
    """What a manifest says of a model: id, revision, hashes of configuration and weights, dtype, attention, where it runs.

    Args:
        module: of transformers.
        model_id: hub id, directory or GGUF file.
        revision: as it was asked for.
        backend: where it runs.
        weights: its `weights_hash`, where that is known.
    """
    here = not next(module.parameters()).is_meta
    config = {k: v for k, v in module.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return {
        "model_id": model_id if not Path(model_id).exists() else Path(model_id).name,
        "revision": revision or configs.field(module.config, "_commit_hash") or "",
        "config_hash": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "weights_hash": weights or weights_hash(module),
        "weights_sample": _weights_sample(module),
        "dtype": str(module.dtype).removeprefix("torch."),
        "attn_implementation": str(configs.field(module.config, "_attn_implementation", "")),
        "backend": backend,
        "device": str(next(module.parameters()).device) if here else "remote",
        "threads": torch.get_num_threads() if here else None,
    }


def made_by(model: LanguageModel) -> dict[str, Any]:
    """What of a loaded model its results depend on; where weights are elsewhere, its id and revision stand for them."""
    known, encoder = model.sites.identity, model.sites.encoder
    names = ("config_hash", "weights_hash", "dtype", "attn_implementation")
    names += () if known.get("backend", "local") == "local" else ("model_id", "revision")
    return {**{n: known.get(n) for n in names}, "tokenizer_hash": encoder.tokenizer_hash}


def refuse_changed(model: LanguageModel) -> None:
    """Refuse a model whose weights are no longer those it was loaded with, before something of it is written or continued.

    Raises:
        EmotraceError: naming both hashes.
    """
    module, known = model._module, model.sites.identity.get("weights_hash")
    if known is None or any(p.is_meta for p in module.parameters()) or (now := weights_hash(module)) == known:
        return
    raise EmotraceError(
        f"{model.sites.model_class} has other weights than it was loaded with ({known} then, {now} now): load it again, "
        "emotrace.load(model), so that what is written says what made it."
    )


def weights_hash(module: nn.Module) -> str:
    """Hash of the name, shape and numbers of every parameter and of every buffer that checkpoints hold."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *_stored_buffers(module)):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(b"absent" if tensor.is_meta else bits(tensor.detach()))
    return digest.hexdigest()[:16]


def _stored_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers beside the parameters in a checkpoint, as the bias by which DeepSeek chooses experts; others follow from the
    configuration."""
    for path, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def bits(tensor: torch.Tensor) -> bytes:
    """Integer sums of the bit patterns along every row and every column: no order of adding changes them, and one changed
    number, two rows or two columns that change places do."""
    if not tensor.numel():
        return b""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    width, each = (tensor.shape[-1] if tensor.ndim else 1), tensor.element_size()
    size = math.gcd(8, width * each)  # eight bytes at a time where a row is a multiple of them
    table = tensor.contiguous().reshape(-1, width)
    table = table.clone() if table.storage_offset() * each % size else table
    table = table.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    return b"".join(table.sum(axis, dtype=torch.int64).cpu().numpy().tobytes() for axis in (0, 1))


def _weights_sample(module: nn.Module) -> str:
    """Some weights as bfloat16 patterns, 4 hexadecimal digits each: nearly the same in whatever dtype they are loaded."""
    here = [p.detach() for p in module.parameters() if not p.is_meta and p.numel() and p.is_floating_point()]
    chosen = [p for p in here if p.ndim > 1] or here  # gains and biases of different models are often all 1 or 0
    chosen = [chosen[i * len(chosen) // SAMPLED] for i in range(SAMPLED)] if len(chosen) > SAMPLED else chosen
    per = -(-SAMPLED // max(1, len(chosen))) * 4
    found = []
    for weight in chosen:
        flat = weight.reshape(-1)
        at = [(2 * i + 1) * flat.numel() // (2 * per) for i in range(per)]
        bits = flat[torch.tensor(at, device=flat.device)].to(torch.bfloat16).view(torch.int16).tolist()
        found += [f"{b & 0xFFFF:04x}" for b in bits]
    return "".join(found)


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    """Read once: each is looked for in the files of an installed package."""
    return {name: version(name) for name in ("emotrace", "nnsight", "torch", "transformers", "zarr", "xarray", "numpy")}
