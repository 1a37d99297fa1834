"""Roles: what a place does when something before it is changed, which ties an address to its name.

An equation such as ``W·x + b == output`` is true of any projection. So every layer of the probed model is given rows of one
prompt that differ in what was done to them:

====  ==================================================================================================================
row   what was done
====  ==================================================================================================================
0     nothing
1     the layer's input was changed at the first token: ``z`` and ``attn_out`` must change at other tokens too
2     likewise, with ``attn_out`` put back to row 0: ``neuron`` and ``mlp_out`` must change at the first token, only there
3     likewise, with ``o_proj_out`` put back: ``attn_out`` must be that of row 0
4     likewise, with the output of the neurons' projection put back: ``mlp_out`` must be that of row 0
====  ==================================================================================================================

The closure of the layer must hold in all rows. A layer's rows begin anew from row 0, so one forward serves all layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from emotrace.sites.address import Address
from emotrace.sites.equations import LayerProof, closure, deviation, held, rows
from emotrace.sites.probe import Change, ModuleSide, Recording, record

ROWS = 5
MOVED, STILL = 1e-3, 1e-4
"""Of the largest value: from where on a value counts as changed, and up to where as unchanged but for rounding."""


def refused(module: nn.Module, ids: Tensor, proofs: Mapping[int, LayerProof]) -> dict[int, dict[str, str]]:
    """Which proven places do not do what their name says.

    Args:
        module: the probed model.
        ids: of the probe, of which the first row is taken.
        proofs: of its layers.

    Returns:
        layer → site → reason; ``attn_out``, ``mlp_out``, ``resid_mid`` and ``resid_post`` stand for the whole closure.
    """
    if not proofs:
        return {}
    recording = record(module, ids[:1].expand(ROWS, -1).contiguous(), _changes(proofs))
    found = {layer: _of_layer(recording, proof) for layer, proof in proofs.items()}
    return {layer: reasons for layer, reasons in found.items() if reasons}


def _changes(proofs: Mapping[int, LayerProof]) -> dict[ModuleSide, Change]:
    changes: dict[ModuleSide, Change] = {}
    back: dict[ModuleSide, list[int]] = {}
    for layer, proof in proofs.items():
        pre = proof.sites["resid_pre"]
        changes[pre.path, pre.side] = begin_anew(layer, first_token)
        ends = {2: proof.sites["attn_out"], 3: proof.sites.get("o_proj_out"), 4: proof.sites.get("neuron")}
        for row, address in ends.items():
            if address is not None:
                back.setdefault((address.path, "output"), []).append(row)
    return changes | {place: _put_back(which) for place, which in back.items()}


def first_token(change: Tensor) -> Tensor:
    """Nothing but the change of the first token, for rows 1 and following."""
    kept = torch.zeros_like(change)
    kept[1:, 0] = change[:1, 0]
    return kept


def begin_anew(seed: int, where: Change | None = None) -> Change:
    """What every row of a layer begins with: row 0, and in some places noise of twice its size."""

    def change(value: Tensor) -> Tensor:
        first = value[:1].expand_as(value).clone()
        if where is None:
            return first
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(value.shape[1:], generator=generator).to(value.device, value.dtype)
        return first + where((2 * value[0].float().std()).to(value.dtype) * noise.expand_as(value))

    return change


def _put_back(which: list[int]) -> Change:
    def change(value: Tensor) -> Tensor:
        by_row = value.reshape(ROWS, -1).clone()
        by_row[which] = by_row[0].clone()
        return by_row.reshape(value.shape)

    return change


def _of_layer(recording: Recording, proof: LayerProof) -> dict[str, str]:
    closed = closure(recording, proof)
    if closed is None or closed[0] > closed[1]:
        return {"resid_post": "the residual does not close when the layer's input is changed"}
    reasons: dict[str, str] = {}

    def moved(site: str, row: int, address: Address | None = None) -> Tensor | None:
        return _moved(held(recording, address or proof.sites[site]), row)

    def elsewhere(site: str) -> bool:
        change = moved(site, 1)
        return change is not None and bool((change[1:] > MOVED).any())

    def only_there(site: str) -> bool:
        change = moved(site, 2)
        return change is not None and float(change[0]) > MOVED and bool((change[1:] <= STILL).all())

    def unmoved(site: str, row: int) -> bool:
        change = moved(site, row)
        return change is not None and bool((change <= STILL).all())

    if not elsewhere("attn_out"):
        reasons["attn_out"] = "it does not change where another token does, so it is no output of attention"
    if not only_there("mlp_out"):
        reasons["mlp_out"] = "it does not follow its own token alone, so it is no output of an MLP"
    mid = proof.sites.get("resid_mid")
    if mid is not None and mid.mirror is not None:
        pre, attn, given = (held(recording, a) for a in (proof.sites["resid_pre"], proof.sites["attn_out"], mid.mirror))
        if pre is None or attn is None or given is None:
            reasons["resid_mid"] = "a module that reads it is not called"
        else:
            error, tolerance = deviation(rows(pre) + proof.scale * rows(attn), given)
            if error > tolerance:
                reasons["resid_mid"] = "it is not resid_pre and attn_out when the layer's input is changed"
    if "z" in proof.sites:
        if not elsewhere("z"):
            reasons["z"] = "it does not change where another token does"
        elif not unmoved("attn_out", 3):
            reasons["z"] = "attn_out is made of more than its projection"
    if "neuron" in proof.sites:
        if not only_there("neuron"):
            reasons["neuron"] = "it does not follow its own token alone"
        elif not unmoved("mlp_out", 4):
            reasons["neuron"] = "mlp_out is made of more than its projection"
    return reasons


def _moved(value: Tensor | None, row: int) -> Tensor | None:
    """Largest change of each token against row 0, relative to the largest value."""
    if value is None:
        return None
    value = value.double().reshape(ROWS, -1, value.shape[-1])
    size = float(value[0].abs().max()) or 1.0
    return (value[row] - value[0]).abs().amax(-1) / size
