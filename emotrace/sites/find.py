"""Find: prove the sites of a model on its shrunken twin, confirm them on the real weights."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from emotrace.labels import EmotraceError
from emotrace.sites import twin as twins
from emotrace.sites.address import Address
from emotrace.sites.probe import Recording, record
from emotrace.sites.proof import LayerProof, deviation, prove_layer, rows
from emotrace.sites.table import Sites

DIRECT_PARAMETERS = 50_000_000
"""A float32 model up to this size is proven on its own weights: the twin would say the same."""


def find(module: nn.Module) -> Sites:
    """The proven sites of a transformers model.

    The form (paths, tuple indices, residual arithmetic) is proven in float32 on a shrunken random twin of the same
    class and configuration; where the real weights are here, every layer is confirmed on them, within the rounding of
    their dtype. Where no twin can be built the proof is made on the real weights alone.

    Args:
        module: a ``PreTrainedModel`` with weights, or on the meta device.

    Raises:
        EmotraceError: if the model has no stack of layers of which each is visited once, or no layer closes.
    """
    parameters = list(module.parameters())
    on_meta = any(p.is_meta for p in parameters)
    small = sum(p.numel() for p in parameters) <= DIRECT_PARAMETERS
    exact = all(p.dtype == torch.float32 for p in parameters if p.is_floating_point())
    if not on_meta and small and exact:
        return _prove(module, module)
    twin = twins.shrunken(module)
    if twin is None:
        if on_meta:
            raise EmotraceError(
                f"{type(module).__name__}: no shrunken twin can be built from its configuration, and its weights are "
                "not here, so its sites cannot be proven. Load it with weights."
            )
        return _prove(module, module)
    sites = _prove(twin, module)
    return sites if on_meta else _confirm(sites, module)


def _config(module: nn.Module) -> Any:
    return module.config.get_text_config()  # type: ignore[operator, union-attr]


def _record(module: nn.Module) -> Recording:
    config = _config(module)
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "mask")]
    avoid = {t for value in special for t in (value if isinstance(value, (list, tuple)) else [value]) if t is not None}
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    return record(module, embedding.weight.shape[0], avoid)


def _prove(probed: nn.Module, real: nn.Module) -> Sites:
    name = type(real).__name__
    config = _config(real)
    recording = _record(probed)
    stack = _stack(probed, recording, int(config.num_hidden_layers), name)
    heads = int(_config(probed).num_attention_heads)
    proofs = [prove_layer(recording, i, f"{stack}.{i}", heads) for i in range(int(config.num_hidden_layers))]
    shown = [p for p in proofs if isinstance(p, LayerProof)]
    if not shown:
        raise EmotraceError(f"{name}: its sites cannot be proven: {proofs[0]}.")
    addresses: dict[str, dict[int | None, Address]] = {}
    for layer, proof in enumerate(proofs):
        if isinstance(proof, LayerProof):
            for site, address in proof.sites.items():
                addresses.setdefault(site, {})[layer] = address
    for site, address in _global_sites(probed, recording, f"{stack}.{int(config.num_hidden_layers) - 1}").items():
        addresses[site] = {None: address}
    forms = {p.form for p in shown}
    return Sites(
        model_class=name,
        form=shown[0].form if len(forms) == 1 else "mixed",
        scale=statistics.median(p.scale for p in shown),
        closure_error=max(p.error for p in shown),
        n_layers=int(config.num_hidden_layers),
        n_heads=int(config.num_attention_heads),
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        addresses=_widths_of(real, probed, addresses),
        unproven={i: p for i, p in enumerate(proofs) if isinstance(p, str)},
        attn_implementation=str(getattr(config, "_attn_implementation", None)),
    )


def _stack(module: nn.Module, recording: Recording, n_layers: int, name: str) -> str:
    """Path of the shallowest ``ModuleList`` with one entry per layer, each called exactly once."""
    lists = [(p, m) for p, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    for path, _ in sorted(lists, key=lambda pair: pair[0].count(".")):
        if all(len(recording.at(f"{path}.{i}")) == 1 for i in range(n_layers)):
            return path
    raise EmotraceError(
        f"{name}: found no list of {n_layers} layers of which each runs once in a forward "
        f"(lists of that length: {', '.join(p for p, _ in lists) or 'none'}). "
        "Models that visit one shared layer several times, encoder-decoders and recurrent blocks have no layer axis here."
    )


def _global_sites(module: nn.Module, recording: Recording, last: str) -> dict[str, Address]:
    found: dict[str, Address] = {}
    paths = {id(m): p for p, m in module.named_modules()}

    def add(site: str, path: str, error: float = 0.0) -> None:
        calls = recording.at(path)
        if len(calls) == 1 and calls[0].out is not None:
            call, out = calls[0], calls[0].out
            found[site] = Address(
                site, None, path, "output", call.index, out.ndim == 2, call.order_out, out.shape[-1], error
            )

    add("embed", paths[id(module.get_input_embeddings())])  # type: ignore[operator]
    (block,) = recording.at(last)
    for call in recording.calls:
        stays = call.inp is not None and call.out is not None and block.out is not None
        if stays and call.order_in > block.order_out and call.inp.shape[-1] == block.out.shape[-1] == call.out.shape[-1]:
            is_norm = any(p.ndim == 1 for p in call.module.parameters(recurse=False)) or "norm" in call.path.lower()
            same = call.inp.numel() == block.out.numel() and torch.equal(rows(call.inp), rows(block.out))
            if same and is_norm and not any(p.ndim > 1 for p in call.module.parameters()):
                add("final_norm", call.path)
                break
    head = module.get_output_embeddings()  # type: ignore[operator]
    if head is not None and id(head) in paths:
        add("logits", paths[id(head)])
    return found


def _widths_of(real: nn.Module, probed: nn.Module, found: dict[str, dict[int | None, Address]]):
    """The addresses with the widths of the real model, read from its weights' shapes."""
    if real is probed:
        return found
    config, small = _config(real), _config(probed)
    width = {int(small.hidden_size): int(config.hidden_size)}

    def real_width(a: Address) -> int:
        module = real.get_submodule(a.path)
        weight, theirs = getattr(module, "weight", None), getattr(probed.get_submodule(a.path), "weight", None)
        if a.site in ("z", "neuron", "embed", "logits") and weight is not None and theirs is not None:
            axis = list(theirs.shape).index(a.width) if a.site != "z" else _in_axis(theirs, a.width)
            return int(weight.shape[axis])
        return width.get(a.width, a.width)

    out: dict[str, dict[int | None, Address]] = {}
    for site, by_layer in found.items():
        out[site] = {
            layer: Address(**{**vars(a), "width": real_width(a)}) for layer, a in by_layer.items()
        }
    for layer, a in out.get("neuron_pre", {}).items():
        out["neuron_pre"][layer] = Address(**{**vars(a), "width": out["neuron"][layer].width})
    return out


def _in_axis(weight: torch.Tensor, width: int) -> int:
    """Axis of the input features: 1 in a Linear, 0 in a Conv1D; a square weight is read as a Linear."""
    return 1 if weight.shape[1] == width else 0


def _confirm(sites: Sites, module: nn.Module) -> Sites:
    """The twin's sites, each layer shown again on the real weights; a layer that fails there loses its sites."""
    recording = _record(module)
    real = _prove_from(recording, module, sites)
    worst = 0.0
    for site, by_layer in list(sites.addresses.items()):
        for layer in [k for k in by_layer if k is not None]:
            proof = real[layer]
            theirs = proof.sites.get(site) if isinstance(proof, LayerProof) else None
            ours = by_layer[layer]
            if theirs is None or (theirs.path, theirs.side, theirs.index) != (ours.path, ours.side, ours.index):
                if not _same_value(recording, ours, theirs):
                    del by_layer[layer]
                    continue
            else:
                by_layer[layer] = theirs
            worst = max(worst, proof.error if isinstance(proof, LayerProof) else 0.0)
        if not by_layer:
            del sites.addresses[site]
    if "resid_post" not in sites.addresses:
        reason = next(p for p in real if isinstance(p, str))
        raise EmotraceError(f"{sites.model_class}: the form proven on its twin fails on its weights: {reason}.")
    sites.closure_error = worst
    return sites


def _prove_from(recording: Recording, module: nn.Module, sites: Sites) -> list[LayerProof | str]:
    stack = sites.addresses["resid_post"][next(iter(sites.addresses["resid_post"]))].path.rsplit(".", 1)[0]
    return [prove_layer(recording, i, f"{stack}.{i}", sites.n_heads) for i in range(sites.n_layers)]


def _same_value(recording: Recording, ours: Address, theirs: Address | None) -> bool:
    """Whether two addresses carried the same value in the probe (a module and its last child, a dropout …)."""
    if theirs is None or ours.kind != theirs.kind:
        return False
    pair = []
    for a in (ours, theirs):
        call = recording.at(a.path)[0]
        pair.append(call.inp if a.side == "input" else call.outs[a.index or 0])
    if pair[0] is None or pair[1] is None or pair[0].numel() != pair[1].numel():
        return False
    error, tolerance = deviation(pair[0], pair[1])
    return error <= tolerance
