"""Contributions: sums over prompts of what neurons and heads write along directions, made where weights and activations are.

The activations of a chunk of prompts come as `requests.reduced` gives them: one tensor ``[layer, prompt, width]`` (``[layer ·
sublayer, prompt, dim]``) per variable. Sums are float64, on the CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from emotrace.traced import weights
from emotrace.traced.model import TracedModel
from emotrace.traced.precision import exactly

BLOCK_BYTES = 64 << 20
"""What heads write is held for so many prompts of a layer at a time, where a norm makes that necessary."""


class ChunkPart(NamedTuple):
    """What is made of a chunk, beside others.

    Attributes:
        name: of what it makes.
        function: of this package.
        values: what it takes of the chunk: number of a variable, and some of its cells or None for all.
        args: what else it takes.
    """

    name: str
    function: Any
    values: Any
    args: Any


def together(model: TracedModel, values: list, parts: list) -> dict:
    """What each `ChunkPart` makes of the same chunk of activations."""
    found = {}
    for part in parts:
        own = [values[i] if cells is None else values[i][cells] for i, cells in part.values]
        found[part.name] = part.function(model, own, *part.args)
    return found


# -- sums that need no weights ------------------------------------------------------------------------------------


def weighted(model: TracedModel, values: list, names: list, w: Tensor) -> dict:
    """Weighted sums over prompts: ``[row of w, cell, width]`` of each variable, by name."""
    return {n: torch.stack([w @ x.double() for x in value], dim=1) for n, value in zip(names, values, strict=True)}


def dotted(model: TracedModel, values: list, covectors: Tensor) -> Tensor:
    """The one read of each prompt along its own vector, ``[prompt]``."""
    return (values[0][0].double() * covectors).sum(-1)


def picked(model: TracedModel, values: list, columns: list) -> list:
    """Some columns of each cell of the one variable: ``[prompt, column]`` float32."""
    return [x[:, torch.tensor(at)].float() for x, at in zip(values[0], columns, strict=True)]


# -- neurons ------------------------------------------------------------------------------------------------------


def betas(model: TracedModel, specs: list, v: Tensor) -> tuple:
    """What one unit of each neuron (over ρ, where a norm follows) adds to the projection, and what the biases add.

    Args:
        model: an nnsight model with weights.
        specs: of the projections.
        v: unit directions ``[label, layer, d]`` float64.

    Returns:
        β ``[label, layer, unit]``; c⟨v, b⟩ ``[label, layer]`` (to be multiplied with mean 1/ρ where a norm follows); c⟨v, bias
        of the norm⟩ ``[label, layer]``; whether a norm follows, per layer.
    """
    beta, given, added, normed = [], [], [], []
    for i, spec in enumerate(specs):
        p, along = weights.output_projection(model, spec), v[:, i]
        seen = along if p.norm is None else p.norm.pulled(along.to(p.norm.gain.device)).cpu()
        beta.append(p.scale * p.along(seen))
        bias = torch.zeros(v.shape[-1]) if p.bias is None else p.bias.cpu()
        given.append(p.scale * (seen @ bias.double()))
        extra = torch.zeros(len(v), dtype=torch.float64) if p.norm is None else along @ p.norm.bias.cpu()
        added.append(p.scale * extra)
        normed.append(p.norm is not None)
    return torch.stack(beta, 1), torch.stack(given, 1), torch.stack(added, 1), normed


def neurons(model: TracedModel, values: list, specs: list, own: Tensor) -> dict:
    """Sums of one chunk: Σ max(a, 0), Σ min(a, 0), where a norm follows also Σ a and Σ 1/ρ, and Σ of a second variable.

    Args:
        model: an nnsight model.
        values: ``neuron``, and possibly another.
        specs: of the projections, one per layer.
        own: ``[label, prompt]``, 1 where a prompt has a label.
    """
    totals: dict = {"positive": [], "negative": [], "raw": [], "shrink": []}
    for value, spec in zip(values[0], specs, strict=True):
        x = value.double()
        p = weights.output_projection(model, spec)
        if p.norm is not None:
            shrink = 1 / p.norm.size(p.output(x)).cpu()
            totals["raw"].append(own @ x)
            totals["shrink"].append(own @ shrink)
            x = x * shrink[:, None]
        totals["positive"].append(own @ x.clamp(min=0))
        totals["negative"].append(own @ x.clamp(max=0))
    if len(values) > 1:
        totals["activation"] = [own @ x.double() for x in values[1]]
    return {name: torch.stack(per_layer, 1) for name, per_layer in totals.items() if per_layer}


# -- heads --------------------------------------------------------------------------------------------------------


class HeadLayer(NamedTuple):
    """How the heads of one layer are read.

    Attributes:
        spec: of the projection that they write through.
        directions: ``[label, d]`` float64.
        residual: the site read beside z; None for what the heads write alone.
        norm: envoy of the norm that what is read goes through, or None.
    """

    spec: weights.Spec
    directions: Tensor
    residual: Any
    norm: Any


class HeadWeights(NamedTuple):
    """`HeadLayer` with the weights in the place of where they are: an `OutputProjection`, and a `Norm` or None."""

    projection: weights.OutputProjection
    directions: Tensor
    residual: Any
    norm: Any


def heads(model: TracedModel, values: list, names: list, layers: list, n_heads: int, code: Tensor, memo: dict) -> dict:
    """Sums of one chunk: importance per label of prompt and direction, its square on the own label, and s(r).

    Args:
        model: an nnsight model.
        values: if read, the residual ``[layer · site, prompt, dim]``; ``z``.
        names: the residual sites, in the order of their cells.
        layers: `HeadLayer` s.
        n_heads: query heads.
        code: label of each prompt.
        memo: keeps what does not depend on the prompts, for another chunk.
    """
    if "parts" not in memo:
        memo["parts"] = [head_weights(model, layer) for layer in layers]
        through = any(part.norm is not None or part.projection.norm is not None for part in memo["parts"])
        memo["writes"] = None if through else torch.stack([_writes(part, n_heads) for part in memo["parts"]])
    parts, writes = memo["parts"], memo["writes"]
    z = values[-1].reshape(len(parts), len(code), n_heads, -1)
    residual = {}
    if names:
        grid = values[0].reshape(len(parts), len(names), len(code), -1)
        residual = {name: grid[:, j] for j, name in enumerate(names)}
    n_labels = len(parts[0].directions)
    own = torch.nn.functional.one_hot(code, n_labels).double()
    if writes is not None:
        importance = torch.einsum("lbhk,lhke->lhbe", z.double(), writes)
        base = _linear_baseline(code, importance, residual, parts)
    else:
        both = [_through_norms(part, i, z[i], residual) for i, part in enumerate(parts)]
        importance = torch.stack([x for x, _ in both])
        base = torch.stack([s[torch.arange(len(code)), code] for _, s in both])
    mine = importance.gather(-1, code[None, None, :, None].expand(*importance.shape[:3], 1))[..., 0]
    return {
        "first": torch.einsum("bp,lhbe->pelh", own, importance),
        "second": torch.einsum("bp,lhb->plh", own, mine.square()),
        "baseline": torch.einsum("bp,lb->pl", own, base),
    }


def post_normed(model: TracedModel, specs: list) -> list:
    """Whether a norm follows each projection."""
    return [weights.normed(model, spec) for spec in specs]


def head_weights(model: TracedModel, layer: HeadLayer) -> HeadWeights:
    """The weights of one layer, read where they are."""
    norm = layer.norm
    if norm is not None:
        norm = weights.norm_at(model, norm, layer.spec.d_model)
    return HeadWeights(weights.output_projection(model, layer.spec), layer.directions, layer.residual, norm)


def _writes(part: HeadWeights, n_heads: int) -> Tensor:
    """W_O,hᵀ v · c, float64 ``[head, head_dim, label]``."""
    p, v = part.projection, part.directions
    u = p.scale * p.along(v)
    return u.reshape(len(v), n_heads, -1).permute(1, 2, 0).contiguous()


def _linear_baseline(code: Tensor, importance: Tensor, residual: dict, parts: list) -> Tensor:
    """s(r) of each prompt on its own label's direction ``[layer, prompt]``."""
    if "resid_mid" in residual:  # a layer at a time: a chunk of all of them in float64 is most of what is held
        mid = residual["resid_mid"]
        return torch.stack([(x.double() * part.directions[code]).sum(-1) for x, part in zip(mid, parts, strict=True)])
    summed = importance.sum(1)[:, torch.arange(len(code)), code]
    for i, part in enumerate(parts):
        p = part.projection
        if p.bias is not None:
            summed[i] += p.scale * (part.directions[code] @ p.bias.double().cpu())
    return summed


class Passed(NamedTuple):
    """What the heads of one layer write in some prompts, on its way to what is read; ``[prompt, …, d]`` float64.

    Attributes:
        branch: W_O z + b.
        wrote: what each head writes there, ``[prompt, head, d]``.
        r: what is read, before the norm that reads it.
        change: what each head adds to it, ``[prompt, head, d]``.
    """

    branch: Tensor
    wrote: Tensor
    r: Tensor
    change: Tensor


def passed(part: HeadWeights, z: Tensor, residual: Any) -> Any:
    """`Passed` in blocks of prompts: z ``[prompt, head, head_dim]``, and the residual site that the layer names, or None."""
    p = part.projection
    device = p.weight.device
    weight = p.matrix.reshape(z.shape[1], z.shape[2], -1)
    step = max(1, BLOCK_BYTES // (8 * z.shape[1] * weight.shape[-1]))
    for at in range(0, len(z), step):
        block = z[at : at + step].to(device, torch.float32)
        with exactly(weight):
            wrote = torch.einsum("bhk,hkd->bhd", block, weight).double()
        branch = out = p.output(block.flatten(1)).double()
        added = wrote
        if p.norm is not None:
            added, out = p.norm(branch)[:, None] - p.norm(branch[:, None] - wrote), p.norm(branch)
        r = p.scale * out
        if part.residual is not None:
            here = residual[at : at + step].to(device, torch.float64)
            r = here if part.residual == "resid_mid" else here + out
        yield Passed(branch, wrote, r, p.scale * added)


def sizes(model: TracedModel, heads: list, neurons: list) -> tuple:
    """What the norms behind heads and neurons divide by, ρ, in some rows.

    Args:
        model: an nnsight model.
        heads: per layer ``(HeadLayer without directions, z [row, head, head_dim], what it is read with [row, d] or None)``.
        neurons: per layer ``(Spec, neurons [row, unit])``.

    Returns:
        ``z_norm``, ``z_norm_without``, ``mid_norm``, ``mid_norm_without`` → per layer that has the norm ``[row]`` and, without
        each head, ``[row, head]``; and per layer of neurons ``[row]``. 1 where what looked like a norm changes nothing.
    """
    found: dict = {"z_norm": [], "z_norm_without": [], "mid_norm": [], "mid_norm_without": []}
    for layer, z, residual in heads:
        part = head_weights(model, layer)
        blocks = list(passed(part, z, residual))
        after, reads = weights.follows(layer.spec), layer.norm is not None
        for name, norm, there in (("z_norm", part.projection.norm, after), ("mid_norm", part.norm, reads)):
            if there:
                pairs = [(b.branch, b.wrote) if name == "z_norm" else (b.r, b.change) for b in blocks]
                found[name].append(torch.cat([_size(norm, x) for x, _ in pairs]).cpu())
                found[f"{name}_without"].append(torch.cat([_size(norm, x[:, None] - y) for x, y in pairs]).cpu())
    projections = [(weights.output_projection(model, spec), x) for spec, x in neurons]
    return found, [_size(p.norm, p.output(x)).cpu() for p, x in projections]


def _size(norm: Any, x: Tensor) -> Tensor:
    return torch.ones(x.shape[:-1], dtype=torch.float64) if norm is None else norm.size(x)


def _through_norms(part: HeadWeights, i: int, z: Tensor, residual: dict) -> tuple:
    """Importance ``[head, prompt, label]`` and s(r) ``[prompt, label]`` of one layer, in blocks of prompts."""
    norm = part.norm
    v = part.directions.to(part.projection.weight.device)
    importance, base = [], []
    for _, _, r, change in passed(part, z, residual[part.residual][i] if part.residual else None):
        if norm is not None:
            change, r = norm(r)[:, None] - norm(r[:, None] - change), norm(r)
        importance.append(torch.einsum("bhd,ed->hbe", change, v).cpu())
        base.append((r @ v.T).cpu())
    return torch.cat(importance, dim=1), torch.cat(base)
