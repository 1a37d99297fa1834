"""Proof: search one layer's recorded values for the places at which the equations of a layer hold.

A site is what an equation of `emotrace.sites.equations` shows; what none of them shows is not a site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from emotrace.sites.address import Address
from emotrace.sites.equations import Form, LayerProof, deviation, linear, rows
from emotrace.sites.own import Side
from emotrace.sites.probe import BATCH, TOKENS, Call, Recording

WITHOUT = "has no attention module with a projection"
Pair = tuple[str, str]
"""Module paths of an attention's branch and an MLP's."""


@dataclass
class _Closure:
    attn: Call
    mlp: Call
    form: Form
    scale: float
    error: float
    mid: Call | None = None  # the module whose input (output, in post-LN) is resid_mid
    norms: tuple[str, str] | None = None


def prove_layer(recording: Recording, layer: int, path: str, unlike: Collection[Pair] = ()) -> LayerProof | str:
    """The proven sites of one layer, or the reason why its residual does not close.

    Args:
        recording: of the whole model.
        layer: 0-based index of the block.
        path: module path of the block.
        unlike: branches that close the residual but do not do what attention and MLP do.
    """
    (block,) = recording.at(path)
    calls = recording.under(path)
    if block.inp is None or block.out is None:
        return f"{path} takes or returns no floating-point tensor"
    root = _attention_root(calls)
    if root is None:
        return f"{path} {WITHOUT}"
    inside = [c for c in calls if c.path == root.path or c.path.startswith(root.path + ".")]
    outside = [c for c in calls if not (c.path == root.path or c.path.startswith(root.path + "."))]
    closure = _close(block, root, inside, outside, unlike) or _close_post_ln(block, inside, outside, unlike)
    if closure is None:
        return f"no pair of module outputs in {path} closes resid_pre + c·(attn_out + mlp_out) == resid_post"
    proof = LayerProof(closure.form, closure.scale, closure.error, norms=closure.norms)
    width, error = block.out.shape[-1], closure.error

    def plain(site: str, call: Call, side: Side, error: float, kind: Literal["plain", "base"] = "plain") -> Address:
        value = call.inp if side == "input" else call.out
        assert value is not None
        return Address(
            site, layer, call.path, side, call.index if side == "output" else None, flat=value.ndim == 2,
            order=call.order_in if side == "input" else call.order_out, width=value.shape[-1], error=error,
            kind=kind, overwritten=side in call.overwritten,
        )  # fmt: skip

    has_mid = closure.form == "sequential" and closure.mid is not None
    pre = plain("resid_pre", block, "input", error, "base" if has_mid else "plain")
    proof.sites["resid_pre"] = pre
    proof.sites["attn_out"] = attn = plain("attn_out", closure.attn, "output", error)
    proof.sites["mlp_out"] = plain("mlp_out", closure.mlp, "output", error)
    proof.sites["resid_post"] = plain("resid_post", block, "output", error)
    if closure.form == "post-ln" and closure.mid is not None:
        proof.sites["resid_mid"] = plain("resid_mid", closure.mid, "output", error)
    elif has_mid and closure.mid is not None:
        proof.sites["resid_mid"] = Address(
            "resid_mid", layer, attn.path, "output", attn.index, attn.flat, attn.order, width, error,
            kind="mid", scale=closure.scale, base=pre, mirror=plain("resid_mid", closure.mid, "input", error),
        )  # fmt: skip
    _add_z(proof, plain, inside, closure, width)
    _add_neurons(proof, plain, outside, closure.mlp, width)
    _add_pattern(proof, inside, layer)
    return proof


def prove_stream(recording: Recording, layers: Mapping[int, str]) -> dict[int, LayerProof]:
    """The residual stream alone: what each layer is given, where it is to the last bit what the one before returned.

    Args:
        recording: of the whole model.
        layers: module paths of the blocks.

    Returns:
        Proofs with ``resid_pre`` and ``resid_post``; none where one layer is not given what the last one returned.
    """
    calls = [recording.at(path)[0] for path in layers.values()]
    for call, after in zip(calls, [*calls[1:], None], strict=True):
        if call.inp is None or not _same_shape(call, calls[0]) or call.inp.shape[-1] != width_of(call):
            return {}
        if after is not None and (
            after.inp is None or call.out is None or not torch.equal(rows(after.inp), rows(call.out))
        ):
            return {}
    found: dict[int, LayerProof] = {}
    for layer, call in zip(layers, calls, strict=True):
        flat = call.inp is not None and call.inp.ndim == 2
        pre = Address("resid_pre", layer, call.path, "input", None, flat, call.order_in, width_of(call),
                      overwritten="input" in call.overwritten)  # fmt: skip
        post = Address("resid_post", layer, call.path, "output", call.index, flat, call.order_out, width_of(call),
                       overwritten="output" in call.overwritten)  # fmt: skip
        found[layer] = LayerProof("stream", 1.0, 0.0, {"resid_pre": pre, "resid_post": post})
    return found


def width_of(call: Call) -> int:
    """Last dim of what a call returned."""
    return 0 if call.out is None else call.out.shape[-1]


def _add_z(proof: LayerProof, plain: Callable[..., Address], inside: list[Call], closure: _Closure, width: int) -> None:
    hits = [c for c in inside if _is_projection(c.module) and c.out is not None and c.out.shape[-1] == width]
    o_proj = max((c for c in hits if c.order_out <= closure.attn.order_out), key=lambda c: c.order_out, default=None)
    if o_proj is None or o_proj.inp is None or not _ends(o_proj, closure.attn):
        return
    error, tolerance = linear(o_proj)
    if error <= tolerance:
        proof.sites["z"] = plain("z", o_proj, "input", error)
        proof.sites["o_proj_out"] = plain("o_proj_out", o_proj, "output", error)


def _add_neurons(proof: LayerProof, plain: Callable[..., Address], outside: list[Call], mlp: Call, width: int) -> None:
    down = _down_projection(outside, mlp, width)
    if down is None:
        return
    error, tolerance = linear(down)
    if error > tolerance:
        return
    proof.sites["neuron"] = plain("neuron", down, "input", error)
    found = _activation(outside, down)
    if found is not None:
        act, proof.gate, error = found
        proof.sites["neuron_pre"] = plain("neuron_pre", act, "input", error)


def _add_pattern(proof: LayerProof, inside: list[Call], layer: int) -> None:
    """The shallowest extra output of shape ``[batch, head, token, token]`` whose rows are distributions."""
    for call in sorted(inside, key=lambda c: c.depth):
        for i, value in enumerate(call.outs[1:], start=1):
            square = (
                value is not None and value.ndim == 4 and (value.shape[0], *value.shape[2:]) == (BATCH, TOKENS, TOKENS)
            )
            if value is None or not square or float(value.min()) < 0:
                continue
            error = float((value.double().sum(-1) - 1).abs().max())
            if error <= deviation(value.sum(-1), torch.ones_like(value[..., 0]))[1]:
                proof.sites["attn_pattern"] = Address(
                    "attn_pattern", layer, call.path, "output", i, False, call.order_out, TOKENS, error, writable=False,
                    heads=value.shape[1],
                )  # fmt: skip
                return


def _attention_root(calls: list[Call]) -> Call | None:
    def is_attention(call: Call) -> bool:
        names = f"{call.path.rsplit('.', 1)[-1]} {type(call.module).__name__}"
        named = re.search(r"attn|attention", names, re.IGNORECASE)
        norm = re.search(r"norm|ln_|dropout", names, re.IGNORECASE)
        return bool(named and not norm) and any(_is_projection(m) for m in call.module.modules())

    return min((c for c in calls if is_attention(c)), key=lambda c: (c.depth, c.order_in), default=None)


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _same_shape(call: Call, block: Call) -> bool:
    out, ref = call.out, block.out
    return out is not None and ref is not None and out.shape[-1] == ref.shape[-1] and out.numel() == ref.numel()


def _differ(attn: Call, mlp: Call, unlike: Collection[Pair]) -> bool:
    """Whether two calls may be two branches: two values, neither made inside the other, and not refused before."""
    if attn is mlp or (attn.path, mlp.path) in unlike or attn.out is None or mlp.out is None:
        return False
    if f"{mlp.path}.".startswith(f"{attn.path}.") or f"{attn.path}.".startswith(f"{mlp.path}."):
        return False
    return not torch.equal(rows(attn.out), rows(mlp.out))


def _close(
    block: Call, root: Call, inside: list[Call], outside: list[Call], unlike: Collection[Pair]
) -> _Closure | None:
    """The pair (attention's branch, MLP's branch) of module outputs that closes the residual, or None.

    The attention's branch is an output inside the attention, or of a post-norm after it that comes before the MLP's.
    """
    assert block.inp is not None
    assert block.out is not None
    pre, post = rows(block.inp), rows(block.out)
    change = post - pre
    attns = [c for c in inside if _same_shape(c, block)]
    attns += [c for c in outside if _same_shape(c, block) and c.order_in > root.order_out]
    mlps = [c for c in outside if _same_shape(c, block)]
    found: list[tuple[tuple, _Closure]] = []
    for attn in attns:
        for mlp in mlps:
            is_inside = attn in inside
            if not _differ(attn, mlp, unlike) or (not is_inside and mlp.order_out < attn.order_out):
                continue
            assert attn.out is not None
            assert mlp.out is not None
            both = rows(attn.out) + rows(mlp.out)
            fitted = float((change * both).sum() / (both * both).sum().clamp_min(1e-300))
            for c in (1.0, float(np.float32(fitted))):
                error, tolerance = deviation(pre + c * both, block.out, change)
                if error <= tolerance and c > 0:
                    depth = 0 if attn is root else attn.depth
                    rank = (c != 1.0, not is_inside, depth, mlp.depth, attn.order_in + mlp.order_in)
                    found.append((rank, _Closure(attn, mlp, "parallel", c, error)))
                    break
    if not found:
        return None
    closure = min(found, key=lambda pair: pair[0])[1]
    assert closure.attn.out is not None
    mid = pre + closure.scale * rows(closure.attn.out)
    for call in outside:
        if call.inp is not None and call.order_in > closure.attn.order_out and call.inp.numel() == mid.numel():
            error, tolerance = deviation(mid, call.inp)
            if error <= tolerance:
                closure.form, closure.mid = "sequential", call
                closure.scale = _exact_scale(block.inp, closure.attn.out, call.inp, closure.scale)
                break
    return closure


def _exact_scale(pre: Tensor, attn: Tensor, mid: Tensor, scale: float) -> float:
    """The float32 number next to a fitted scale with which ``pre + c·attn`` is ``resid_mid`` to the last bit."""
    if scale == 1.0 or mid.dtype != torch.float32:
        return scale
    pre, attn, mid = (t.reshape(-1, t.shape[-1]) for t in (pre, attn, mid))
    ulp = float(np.spacing(np.float32(scale)))
    near = [float(np.float32(scale + k * ulp)) for k in sorted(range(-32, 33), key=abs)]
    return min(near, key=lambda c: int((pre + c * attn != mid).sum()))


def _close_post_ln(block: Call, inside: list[Call], outside: list[Call], unlike: Collection[Pair]) -> _Closure | None:
    assert block.inp is not None
    assert block.out is not None
    pre = rows(block.inp)
    everything = [c for c in inside + outside if _same_shape(c, block) and c.inp is not None]
    best: _Closure | None = None
    for attn in (c for c in inside if _same_shape(c, block)):
        for first in everything:
            assert attn.out is not None
            assert first.inp is not None
            if first.order_in < attn.order_out or first.inp.numel() != pre.numel():
                continue
            error1, tolerance = deviation(pre + rows(attn.out), first.inp)
            if error1 > tolerance:
                continue
            after = (c for c in outside if _same_shape(c, block) and c.order_in > first.order_out)
            for mlp in (c for c in after if _differ(attn, c, unlike)):
                for second in (c for c in outside if _same_shape(c, block) and c.order_in > mlp.order_out):
                    assert first.out is not None
                    assert mlp.out is not None
                    assert second.out is not None
                    if second.inp is None or second.inp.numel() != pre.numel():
                        continue
                    error2, tolerance2 = deviation(rows(first.out) + rows(mlp.out), second.inp)
                    error3, tolerance3 = deviation(second.out, block.out)
                    error = max(error1, error2, error3)
                    if error2 <= tolerance2 and error3 <= tolerance3 and (best is None or error < best.error):
                        best = _Closure(attn, mlp, "post-ln", 1.0, error, first, (first.path, second.path))
    return best


def _down_projection(outside: list[Call], mlp: Call, width: int) -> Call | None:
    """The projection whose output is the MLP branch, or is what the post-norm that ends the branch was given."""
    hits = [c for c in outside if _is_projection(c.module) and c.out is not None and c.out.shape[-1] == width]
    return next((c for c in sorted(hits, key=lambda c: -c.order_out) if _ends(c, mlp)), None)


def _ends(projection: Call, branch: Call) -> bool:
    """Whether what a projection returns is the branch to the last bit, or what the post-norm that ends the branch is given."""
    out = projection.out
    return out is not None and any(
        end is not None and end.numel() == out.numel() and torch.equal(rows(end), rows(out))
        for end in (branch.out, branch.inp)
    )


def _activation(outside: list[Call], down: Call) -> tuple[Call, tuple[str, int | None] | None, float] | None:
    """The activation module with ``neuron == act(pre)`` or ``neuron == act(pre) · u``, u a projection's output."""
    assert down.inp is not None
    neuron = rows(down.inp)
    n, wide = neuron.shape
    factors: list[tuple[tuple[str, int | None] | None, Tensor]] = [(None, torch.ones_like(neuron))]
    for other in outside:
        if other.out is not None and other.order_out < down.order_in and _is_projection(other.module):
            value = rows(other.out)
            if value.shape == (n, wide):
                factors.append(((other.path, None), value))
            elif value.shape == (n, 2 * wide):
                factors += [((other.path, part), half) for part, half in enumerate(value.chunk(2, dim=-1))]
    for act in outside:
        bare = not any(True for _ in act.module.parameters()) and not isinstance(act.module, (nn.Dropout, nn.Identity))
        if not bare or act.inp is None or act.out is None or act.order_out > down.order_in:
            continue
        if act.out.shape[-1] != wide or act.out.numel() != neuron.numel() or torch.equal(act.inp, act.out):
            continue
        for gate, factor in factors:
            error, tolerance = deviation(rows(act.out) * factor, down.inp)
            if error <= tolerance:
                return act, gate, error
    return None
