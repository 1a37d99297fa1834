"""Confirm: the sites of a weightless model, shown on its twin, hold on the server: one tiny request."""

from __future__ import annotations

import math
from typing import Any

import torch

from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.sites.equations import TOLERANCE
from emotrace.sites.own import Side, Site
from emotrace.traced import confirm as leaf
from emotrace.traced.steps import Read, ordered


def confirm(model: LanguageModel, inputs: dict[str, Any]) -> None:
    """Repeat the closure of every layer on the real weights, there; take over what the server says of its numbers.

    Layers that do not close lose their sites.

    Args:
        model: weightless, its sites attached.
        inputs: ids and mask of a small batch.

    Raises:
        EmotraceError: where no layer closes.
    """
    sites = model.sites
    if sites.form == "stream":
        raise EmotraceError(
            f"{sites.model_class}: no sum of its layers is known that could be confirmed on the server's weights "
            f"({sites.unproven[0]}). Load it here."
        )
    reads, layers = [], []
    for proof in sites.proofs.values():
        closure = leaf.Closure(*range(len(reads), len(reads) + 4), scale=proof.scale)
        reads += [
            proof.sites[name].read(model, number)
            for name, number in zip(("resid_pre", "attn_out", "mlp_out", "resid_post"), closure, strict=False)
        ]
        if proof.norms is not None:
            after = proof.sites["attn_out"].order
            ends = (proof.sites["mlp_out"].order, proof.sites["resid_post"].order)
            places: tuple[tuple[str, Side, float], ...] = (
                (proof.norms[0], "input", after),
                (proof.norms[1], "input", ends[0]),
                (proof.norms[0], "output", after),
            )
            norms = leaf.PostNorms(*range(len(reads), len(reads) + 3))
            for number, (path, side, order) in zip(norms, places, strict=True):
                half = 0.25 if side == "input" else 0.5
                reads.append(Read(order + half, sites.resolve(Site(path, side)).lower(model), number))
            closure = closure._replace(scale=None, norms=norms)
        layers.append(closure)
    answer = sites.remote.call(model, leaf.closures, (inputs, ordered(reads), layers))
    errors, roundings, dtypes, copies = answer
    dtype, stored = (getattr(torch, name.removeprefix("torch.")) for name in dtypes)
    allowed = [TOLERANCE + 4 * torch.finfo(dtype).eps * r for r in roundings]
    odd = [layer for layer, e in zip(sites.proofs, errors, strict=True) if not math.isfinite(e)]
    if odd:
        raise EmotraceError(f"{sites.model_class}: on the server the activations of layer {odd[0]} are not finite.")
    good = {layer: e for (layer, e, a) in zip(sites.proofs, errors, allowed, strict=True) if e <= a}
    if not good:
        raise EmotraceError(
            f"{sites.model_class}: the residual closes on the twin but not on the server's weights (error {min(errors):.1e})."
        )
    for layer in [layer for layer in sites.proofs if layer not in good]:
        sites.unproven[layer] = "the residual closes on the twin but not on the server's weights"
        del sites.proofs[layer]
        for by_layer in sites.addresses.values():
            by_layer.pop(layer, None)
    sites.closure_error = max(good.values())
    sites.remote.copies = copies
    model._module.to(stored)
