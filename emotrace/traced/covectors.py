"""Covectors: what directions in the residual stream are to heads and neurons, made where the weights are.

A covector is a direction taken back through the last linear map of a branch, and through the norms behind it, but for their
division by ρ, which differs from row to row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from emotrace.traced import contributions, weights
from emotrace.traced.model import TracedModel


class Heads(NamedTuple):
    """Of every layer, in float64 on the CPU; biases are 0 where there is none.

    Attributes:
        u: c·W_Oᵀ x ``[label, layer, head · head_dim]``, x the direction before all norms behind W_O.
        bias: c⟨x, bias of W_O⟩ ``[label, layer]``.
        added: c⟨w, bias of the norm after W_O⟩ ``[label, layer]``.
        read: w, the direction before the norm that reads the sum ``[label, layer, d]``.
        read_bias: ⟨v, bias of that norm⟩ ``[label, layer]``.
        after: whether a norm follows W_O, per layer.
        reads: whether a norm reads the sum, per layer.
    """

    u: Tensor
    bias: Tensor
    added: Tensor
    read: Tensor
    read_bias: Tensor
    after: list
    reads: list


STACKED = ("u", "bias", "added", "read", "read_bias")
"""Fields of `Heads` that every layer adds a row to."""


def heads(model: TracedModel, layers: list) -> Heads:
    """What directions are to heads.

    Args:
        model: an nnsight model with weights.
        layers: of `contributions.heads`.
    """
    found: list = []
    for layer in layers:
        p, v, _, norm = contributions.head_weights(model, layer)
        w = _pulled(norm, v)
        x = _pulled(p.norm, w)
        nothing = torch.zeros(len(v), dtype=torch.float64)
        bias = nothing if p.bias is None else p.scale * (x @ p.bias.double().cpu())
        added = nothing if p.norm is None else p.scale * (w @ p.norm.bias.cpu())
        read_bias = nothing if norm is None else v @ norm.bias.cpu()
        found.append(Heads(p.scale * p.along(x), bias, added, w, read_bias, [p.norm is not None], [norm is not None]))
    stacked = {name: torch.stack([getattr(one, name) for one in found], 1) for name in STACKED}
    return Heads(**stacked, after=[one.after[0] for one in found], reads=[one.reads[0] for one in found])


def both(model: TracedModel, layers: list, specs: list, v: Tensor) -> tuple:
    """`heads` as a plain tuple, which comes back from a server, and `contributions.betas`; None for what has no layers."""
    return (
        tuple(heads(model, layers)) if layers else None,
        contributions.betas(model, specs, v) if specs else None,
    )


def _pulled(norm: weights.Norm | None, v: Tensor) -> Tensor:
    return v.double() if norm is None else norm.pulled(v.to(norm.gain.device)).cpu()
