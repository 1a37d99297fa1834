"""Find: prove the sites of a model on its shrunken twin, confirm them on the real weights."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from emotrace.labels import EmotraceError
from emotrace.sites import twin as twins
from emotrace.sites.address import Address
from emotrace.sites.equations import LayerProof, confirm, held, rows
from emotrace.sites.probe import Call, Recording, record
from emotrace.sites.proof import prove_layer
from emotrace.sites.table import Sites


def find(module: nn.Module) -> Sites:
    """The proven sites of a transformers model.

    The form (paths, tuple indices, residual arithmetic) is proven in float32 on a shrunken random twin of the same
    class and configuration; where the real weights are here, every layer's equations are confirmed on them at the same
    addresses, within the rounding of their dtype. Where no twin can be built, or the weights disagree with it, the
    proof is made on the real weights alone.

    Args:
        module: a ``PreTrainedModel`` with weights, or on the meta device.

    Raises:
        EmotraceError: if the model has no stack of layers of which each is visited once, or no layer closes.
    """
    on_meta = any(p.is_meta for p in module.parameters())
    twin, recording, reason = twins.shrunken(module, record_ids)
    if twin is None or recording is None:
        if on_meta:
            raise EmotraceError(
                f"{type(module).__name__}: no shrunken twin can be built from its configuration ({reason}), and its "
                "weights are not here, so its sites cannot be proven. Load it with weights."
            )
        return _prove(module, module, record_ids(module))
    sites = _prove(twin, module, recording)
    sites.twin = twin
    if on_meta:
        return sites
    real = record_ids(module)
    reason = _confirm(sites, real)
    if reason is None:
        return sites
    try:
        return _prove(module, module, real)
    except EmotraceError as error:
        raise EmotraceError(f"{sites.model_class}: {reason}; and on the weights alone: {error}") from error


def _config(module: nn.Module) -> Any:
    return module.config.get_text_config()  # type: ignore[operator, union-attr]


def record_ids(module: nn.Module) -> Recording:
    """A probe of a model on ids that are no special tokens."""
    config = _config(module)
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls", "mask")]
    avoid = {t for value in special for t in (value if isinstance(value, (list, tuple)) else [value]) if t is not None}
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    return record(module, embedding.weight.shape[0], avoid)


def _prove(probed: nn.Module, real: nn.Module, recording: Recording) -> Sites:
    name = type(real).__name__
    config = _config(real)
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
    _widths_of(real, probed, addresses)
    forms = {p.form for p in shown}
    return Sites(
        model_class=name,
        form=shown[0].form if len(forms) == 1 else "mixed",
        scale=statistics.median(p.scale for p in shown),
        closure_error=max(p.error for p in shown),
        n_layers=int(config.num_hidden_layers),
        n_heads=int(config.num_attention_heads),
        n_kv_heads=_kv_heads(config),
        vocab_size=int(real.get_input_embeddings().weight.shape[0]),  # type: ignore[operator]
        addresses=addresses,
        unproven={i: p for i, p in enumerate(proofs) if isinstance(p, str)},
        overwritten=frozenset((c.path, side) for c in recording.calls for side in c.overwritten),
        attn_implementation=str(getattr(config, "_attn_implementation", None)),
        proofs={i: p for i, p in enumerate(proofs) if isinstance(p, LayerProof)},
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


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    given = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(given or config.num_attention_heads)


def _widths_of(real: nn.Module, probed: nn.Module, found: dict[str, dict[int | None, Address]]) -> None:
    """Put the widths of the real model in place of its twin's, read from the shapes of its weights."""
    if real is probed:
        return
    d_model = int(_config(real).hidden_size)
    for site, by_layer in found.items():
        for layer, a in by_layer.items():
            width = d_model
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
