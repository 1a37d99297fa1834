"""Find: prove the sites of a model on its shrunken twin, confirm them on the real weights."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from emotrace.configs import field, number, text_config
from emotrace.labels import EmotraceError
from emotrace.sites import twin as twins
from emotrace.sites.address import Address
from emotrace.sites.attached import Sites
from emotrace.sites.entries import moved_out
from emotrace.sites.equations import LayerProof, confirm, held, rows
from emotrace.sites.finite import refuse_values, refuse_weights
from emotrace.sites.heads import carried, layer_numbers
from emotrace.sites.heads import heads as heads_in
from emotrace.sites.probe import Call, Recording, draw, record
from emotrace.sites.proof import WITHOUT, Pair, prove_layer, prove_stream
from emotrace.sites.roles import refused
from emotrace.sites.table import Moment

CLOSURE = ("attn_out", "mlp_out", "resid_mid", "resid_post")
"""Where one of these does not do as its name says, the branches were not those of attention and MLP."""
TOGETHER = {"z": ("z", "o_proj_out"), "neuron": ("neuron", "neuron_pre")}
TRIES = 4
"""Pairs of branches that are tried in a layer."""


def find(module: nn.Module) -> Sites:
    """The proven sites of a transformers model.

    The form (paths, tuple indices, residual arithmetic) is proven in float32 on a shrunken random twin of the same
    class and configuration; where the real weights are here, every layer's equations are confirmed on them at the same
    addresses, within the rounding of their dtype. Where no twin can be built, or the weights disagree with it, the
    proof is made on the real weights alone.

    Args:
        module: a ``PreTrainedModel`` with weights, or on the meta device.

    Raises:
        EmotraceError: if the model has no stack of layers of which each is visited once, or no layer closes; for weights, or
            activations of the probe, that are not finite.
    """
    refuse_weights(module)
    on_meta = any(p.is_meta for p in module.parameters())
    twin, recording, reason = twins.shrunken(module, record_ids)
    if twin is None or recording is None:
        if on_meta:
            raise EmotraceError(
                f"{type(module).__name__}: no shrunken twin can be built from its configuration ({reason}), and its "
                "weights are not here, so its sites cannot be proven. Load it with weights."
            )
        recording = record_ids(module)
        refuse_values(module, recording)
        return _entered(_prove(module, module, recording), module, module, recording)
    sites = _prove(twin, module, recording)
    sites.twin = twin
    if on_meta:
        return _entered(sites, module, twin, recording)
    real = record_ids(module)
    refuse_values(module, real, sites.addresses)
    reason = _confirm(sites, real)
    if reason is None:
        return _entered(sites, module, twin, recording)
    try:
        return _entered(_prove(module, module, real, stream=False), module, module, real)
    except EmotraceError as error:
        raise EmotraceError(f"{sites.model_class}: {reason}; and on the weights alone: {error}") from error


def _entered(sites: Sites, real: nn.Module, probed: nn.Module, recording: Recording) -> Sites:
    return moved_out(sites, real, probed, probe_ids(probed), recording)


def _config(module: nn.Module) -> Any:
    return text_config(module.config)


def record_ids(module: nn.Module) -> Recording:
    """A probe of a model on ids that are no special tokens."""
    return record(module, probe_ids(module))


def probe_ids(module: nn.Module) -> torch.Tensor:
    """The ids of that probe."""
    config = _config(module)
    special = [field(config, f"{name}_token_id") for name in ("pad", "bos", "eos", "sep", "cls", "mask")]
    avoid = {t for value in special for t in (value if isinstance(value, (list, tuple)) else [value]) if t is not None}
    return draw(module, _vocabulary(module), avoid)


def _vocabulary(module: nn.Module) -> int:
    """Rows of the input embedding.

    Raises:
        EmotraceError: for a model that has no embedding of one vocabulary (several codebooks, latents, patches).
    """
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise EmotraceError(
            f"{type(module).__name__} has no input embedding of one vocabulary ({type(embedding).__name__}); emotrace takes "
            "models of token ids."
        )
    return int(weight.shape[0])


def _prove(probed: nn.Module, real: nn.Module, recording: Recording, stream: bool = True) -> Sites:
    """The sites of a model as its probe shows them.

    Args:
        probed: the twin, or the model itself.
        real: the model.
        recording: of what was probed.
        stream: whether the residual stream alone will do for a model with attention of which no layer closes.
    """
    name = type(real).__name__
    config = _config(real)
    n_layers = number(config, "num_hidden_layers")
    if not n_layers:
        raise EmotraceError(f"{name}: its configuration does not say how many layers it has (num_hidden_layers).")
    stack = _stack(probed, recording, n_layers, name)
    blocks = {layer: f"{stack}.{layer}" for layer in range(n_layers)}
    proofs = _of_their_roles(probed, recording, blocks)
    shown = {i: p for i, p in proofs.items() if isinstance(p, LayerProof)}
    if not shown and stream and not all(str(p).endswith(WITHOUT) for p in proofs.values()):
        shown = prove_stream(recording, blocks)
    if not shown:
        raise EmotraceError(f"{name}: its sites cannot be proven: {proofs[0]}.")
    addresses: dict[str, dict[int | None, Address]] = {}
    for layer, proof in shown.items():
        for site, address in proof.sites.items():
            addresses.setdefault(site, {})[layer] = address
    for site, address in _global_sites(probed, recording, blocks[n_layers - 1]).items():
        addresses[site] = {None: address}
    for site, by_layer in _heads(probed, real, recording, addresses, blocks).items():
        for layer, n in by_layer.items():
            shown[layer].sites[site] = addresses[site][layer] = replace(addresses[site][layer], heads=n)
    _widths_of(real, probed, addresses)
    forms = {p.form for p in shown.values()}
    heads = number(config, "num_attention_heads") or max((a.heads for a in addresses.get("z", {}).values()), default=0)
    return Sites(
        model_class=name,
        form=next(iter(forms)) if len(forms) == 1 else "mixed",
        scale=statistics.median(p.scale for p in shown.values()),
        closure_error=max(p.error for p in shown.values()),
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=_kv_heads(config, heads),
        vocab_size=_vocabulary(real),
        addresses=addresses,
        unproven={i: p for i, p in proofs.items() if isinstance(p, str)},
        overwritten=frozenset((c.path, side) for c in recording.calls for side in c.overwritten),
        cached=frozenset(c.path for c in recording.calls if c.cached),
        moments={c.path: Moment(c.order_in, c.order_out) for c in reversed(recording.calls)},  # the first call stays
        attn_implementation=str(field(config, "_attn_implementation")),
        proofs=shown,
    )


def _of_their_roles(probed: nn.Module, recording: Recording, blocks: Mapping[int, str]) -> dict[int, LayerProof | str]:
    """The proof of each layer without what does not do as its name says; where branches do not, others are tried."""
    unlike: dict[int, list[Pair]] = {layer: [] for layer in blocks}
    found: dict[int, LayerProof | str] = {}
    reason: dict[int, str] = {}
    pending = list(blocks)
    while pending:
        for layer in pending:
            proof = prove_layer(recording, layer, blocks[layer], unlike[layer])
            found[layer] = reason.get(layer, proof) if isinstance(proof, str) else proof
        proofs = {i: p for i in pending if isinstance(p := found[i], LayerProof)}
        pending = []
        for layer, reasons in refused(probed, probe_ids(probed), proofs).items():
            proof = proofs[layer]
            branch = next((site for site in CLOSURE if site in reasons), None)
            if branch is None:
                for site, why in reasons.items():
                    proof.lacking |= {name: why for name in TOGETHER[site] if proof.sites.pop(name, None) is not None}
                continue
            reason.setdefault(layer, f"{branch} would be at {proof.sites[branch].path}, but {reasons[branch]}")
            unlike[layer].append((proof.sites["attn_out"].path, proof.sites["mlp_out"].path))
            found[layer] = reason[layer]
            if len(unlike[layer]) < TRIES:
                pending.append(layer)
    return found


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
                site, None, path, "output", call.index, out.ndim == 2, call.order_out, out.shape[-1], error,
                overwritten="output" in call.overwritten,
            )  # fmt: skip

    add("embed", paths[id(module.get_input_embeddings())])  # type: ignore[operator]
    final = recording.at(last)[0]
    for call in recording.calls:
        if call.order_in > final.order_out and _norms(call, final):
            add("final_norm", call.path)
            break
    head = module.get_output_embeddings()  # type: ignore[operator]
    if head is not None and id(head) in paths:
        add("logits", paths[id(head)])
    return found


def _norms(call: Call, final: Call) -> bool:
    """Whether a call is a norm of what the last layer returned."""
    given, made, residual = call.inp, call.out, final.out
    if given is None or made is None or residual is None or given.numel() != residual.numel():
        return False
    if not given.shape[-1] == residual.shape[-1] == made.shape[-1] or not torch.equal(rows(given), rows(residual)):
        return False
    weights = list(call.module.parameters())
    return all(p.ndim == 1 for p in weights) and (bool(weights) or "norm" in call.path.lower())


def _kv_heads(config: object, heads: int) -> int:
    if field(config, "multi_query") and not field(config, "new_decoder_architecture"):
        return 1
    return number(config, "num_key_value_heads") or number(config, "num_kv_heads") or heads


def _heads(
    probed: nn.Module, real: nn.Module, recording: Recording, found: dict[str, dict[int | None, Address]],
    blocks: Mapping[int, str],
) -> dict[str, dict[int, int]]:  # fmt: skip
    """Heads of ``z`` and ``attn_pattern`` by layer: those of the probed model, or what they say of the real one."""
    z = {layer: a for layer, a in found.get("z", {}).items() if layer is not None}
    heads: dict[int, int] = {}
    for layer, n in heads_in(probed, probe_ids(probed), recording, z, blocks).items():
        at, block = z[layer].path, blocks[layer]
        here = layer_numbers(probed, block, at, _config(probed), layer)
        if n == 1 and not any(value == 1 and "head" in name for name, value in here[1].items()):
            continue  # all of z is mixed, but nothing says that it is one head
        if real is not probed:
            there = layer_numbers(real, block, at, _config(real), layer)
            width = _features(real.get_submodule(at), "input") or 0
            each = [carried(h, t, n, z[layer].width, width) for h, t in zip(here, there, strict=True)]
            n = next((k for k in each if k), 0)
        heads[layer] = n
    patterns: dict[int, int] = {}
    for layer, a in found.get("attn_pattern", {}).items():
        if layer is not None and real is not probed:
            here_, there_ = (number(_config(m), "num_attention_heads", layer) for m in (probed, real))
            patterns[layer] = there_ if there_ and here_ == a.heads else heads.get(layer, 0)
    return {"z": heads, "attn_pattern": patterns}


def _widths_of(real: nn.Module, probed: nn.Module, found: dict[str, dict[int | None, Address]]) -> None:
    """Put the widths of the real model in place of its twin's, read from the shapes of its weights."""
    if real is probed:
        return
    ends = [a for site in ("o_proj_out", "logits") for a in found.get(site, {}).values()]
    own = next(
        (_features(real.get_submodule(a.path), "output" if a.layer is not None else "input") for a in ends), None
    )
    d_model = number(_config(real), "hidden_size") or own
    for site, by_layer in found.items():
        for layer, a in by_layer.items():
            width = d_model or a.width
            if site in ("z", "neuron", "embed", "logits"):
                width = _features(real.get_submodule(a.path), a.side) or a.width
            elif site == "neuron_pre":
                width = found["neuron"][layer].width
            elif site == "attn_pattern":
                width = a.width
            by_layer[layer] = replace(a, width=width)


def _features(module: nn.Module, side: str) -> int | None:
    """In- or out-features of a Linear, a Conv1D (whose weight lies the other way round) or an Embedding."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return None
    if isinstance(module, nn.Embedding):
        return int(weight.shape[1])
    inputs, outputs = weight.shape if isinstance(module, Conv1D) else reversed(weight.shape)
    return int(inputs if side == "input" else outputs)


def _confirm(sites: Sites, recording: Recording) -> str | None:
    """Repeat the twin's proof on the real weights' recording; sites that fail there are removed.

    Returns:
        None, or the reason why no layer could be confirmed.
    """
    shown = {layer: confirm(recording, proof) for layer, proof in sites.proofs.items()}
    good = {layer: proof for layer, proof in shown.items() if isinstance(proof, LayerProof)}
    if not good:
        return str(next(iter(shown.values())))
    for layer, proof in good.items():
        proof.lacking = sites.proofs[layer].lacking | proof.lacking
    for site, by_layer in list(sites.addresses.items()):
        for layer, address in list(by_layer.items()):
            if layer is None:
                value = held(recording, address)
                if value is None:
                    del by_layer[layer]
                else:
                    by_layer[layer] = replace(address, width=value.shape[-1])
            elif layer in good and site in good[layer].sites:
                by_layer[layer] = good[layer].sites[site]
            else:
                del by_layer[layer]
        if not by_layer:
            del sites.addresses[site]
    sites.unproven.update({layer: proof for layer, proof in shown.items() if isinstance(proof, str)})
    sites.proofs = good
    sites.closure_error = max(p.error for p in good.values())
    return None
