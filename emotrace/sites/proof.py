"""Proof: from what a probe recorded in one layer, the sites that this layer has, each shown numerically.

Two closures are known::

    resid_pre + c·(attn_out + mlp_out) == resid_post                      sequential, parallel, scaled
    LN2(LN1(resid_pre + attn_out) + mlp_out) == resid_post                post-LN

and three identities: ``W_O·z + b == o_proj_out``, ``W_down·neuron + b ==`` the MLP branch, ``neuron`` = act(neuron_pre),
possibly times another projection. What none of them shows is not a site.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from emotrace.sites.address import Address
from emotrace.sites.probe import BATCH, TOKENS, Call, Recording

Form = Literal["sequential", "parallel", "post-ln"]
TOLERANCE = 1e-4
"""Largest relative deviation that float32 arithmetic may leave on a probe; lower precision adds its own rounding."""


@dataclass
class LayerProof:
    """What was shown in one layer: its form, the residual scale c, the closure error and the addresses."""

    form: Form
    scale: float
    error: float
    sites: dict[str, Address] = field(default_factory=dict)


@dataclass
class _Closure:
    attn: Call
    mlp: Call
    form: Form
    scale: float
    error: float
    mid: Call | None = None  # the module whose input (output, in post-LN) is resid_mid


def prove_layer(recording: Recording, layer: int, path: str, n_heads: int) -> LayerProof | str:
    """The proven sites of one layer, or the reason why its residual does not close.

    Args:
        recording: of the whole model.
        layer: 0-based index of the block.
        path: module path of the block.
        n_heads: query heads, for the shape of z.
    """
    (block,) = recording.at(path)
    calls = recording.under(path)
    if block.inp is None or block.out is None:
        return f"{path} takes or returns no floating-point tensor"
    root = _attention_root(calls, path)
    if root is None:
        return f"{path} has no attention module with a projection"
    inside = [c for c in calls if c.path == root.path or c.path.startswith(root.path + ".")]
    outside = [c for c in calls if c not in inside]
    closure = _close(block, root, inside, outside)
    if closure is None:
        return f"no pair of module outputs in {path} closes resid_pre + c·(attn_out + mlp_out) == resid_post"
    proof = LayerProof(closure.form, closure.scale, closure.error)
    width = block.out.shape[-1]

    def plain(site: str, call: Call, side: str, error: float = 0.0, index: int | None = None) -> Address:
        value = call.inp if side == "input" else call.outs[index or 0]
        assert value is not None
        where = call.index if (side == "output" and index is None) else index
        order = call.order_in if side == "input" else call.order_out
        return Address(
            site, layer, call.path, "input" if side == "input" else "output", where,
            flat=value.ndim == 2, order=order, width=value.shape[-1], error=error,
        )  # fmt: skip

    pre = plain("resid_pre", block, "input", closure.error)
    proof.sites["resid_pre"] = pre
    proof.sites["attn_out"] = plain("attn_out", closure.attn, "output", closure.error)
    proof.sites["mlp_out"] = plain("mlp_out", closure.mlp, "output", closure.error)
    proof.sites["resid_post"] = plain("resid_post", block, "output", closure.error)
    if closure.form == "post-ln" and closure.mid is not None:
        proof.sites["resid_mid"] = plain("resid_mid", closure.mid, "output", closure.error)
    elif closure.form == "sequential" and closure.mid is not None:
        attn = proof.sites["attn_out"]
        proof.sites["resid_mid"] = Address(
            "resid_mid", layer, attn.path, "output", attn.index, attn.flat, attn.order, width, closure.error,
            kind="mid", scale=closure.scale, base=pre, mirror=plain("resid_mid", closure.mid, "input"),
        )  # fmt: skip
    o_proj = _last_projection(inside, width)
    if o_proj is not None and o_proj.inp is not None and o_proj.inp.shape[-1] % n_heads == 0:
        error, tolerance = _linear_error(o_proj)
        if error <= tolerance:
            proof.sites["z"] = plain("z", o_proj, "input", error)
            proof.sites["o_proj_out"] = plain("o_proj_out", o_proj, "output", error)
    down = _down_projection(outside, closure.mlp, width)
    if down is not None:
        error, tolerance = _linear_error(down)
        if error <= tolerance:
            proof.sites["neuron"] = plain("neuron", down, "input", error)
            act = _activation(outside, down)
            if act is not None:
                proof.sites["neuron_pre"] = plain("neuron_pre", act[0], "input", act[1])
    for call in inside:
        for i, value in enumerate(call.outs[1:], start=1):
            if value is not None and value.shape == (BATCH, n_heads, TOKENS, TOKENS):
                found = proof.sites.get("attn_pattern")
                if found is None or call.depth < found.path.count(".") + 1:
                    address = plain("attn_pattern", call, "output", index=i)
                    proof.sites["attn_pattern"] = Address(**{**vars(address), "writable": False, "flat": False})
    return proof


def rows(value: Tensor) -> Tensor:
    """``[batch, token, d]`` or flat ``[batch·token, d]`` as float64 ``[batch·token, d]``."""
    return value.reshape(-1, value.shape[-1]).double()


def deviation(got: Tensor, want: Tensor, like: Tensor | None = None) -> tuple[float, float]:
    """Largest relative deviation, and the tolerance that the dtype's rounding allows.

    error = max|got − want| / max|like|; tolerance = 1e-4 + 4·ε(dtype)·max|want| / max|like|.
    """
    scale = float(rows(want if like is None else like).abs().max()) or 1.0
    error = float((rows(got) - rows(want)).abs().max()) / scale
    rounding = 4 * torch.finfo(want.dtype).eps * float(rows(want).abs().max()) / scale
    return error, TOLERANCE + rounding


def _attention_root(calls: list[Call], path: str) -> Call | None:
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


def _close(block: Call, root: Call, inside: list[Call], outside: list[Call]) -> _Closure | None:
    assert block.inp is not None and block.out is not None
    pre, post = rows(block.inp), rows(block.out)
    change = post - pre
    attns = [c for c in inside if _same_shape(c, block)] + [
        c for c in outside if _same_shape(c, block) and c.order_in > root.order_out
    ]
    mlps = [c for c in outside if _same_shape(c, block)]
    found: list[tuple[tuple[bool, float, int, int, int], _Closure]] = []
    for attn in attns:
        for mlp in mlps:
            if attn is mlp:
                continue
            assert attn.out is not None and mlp.out is not None
            both = rows(attn.out) + rows(mlp.out)
            fitted = float((change * both).sum() / (both * both).sum().clamp_min(1e-300))
            for c in (1.0, fitted):
                error, tolerance = deviation(pre + c * both, post.to(block.out.dtype), change)
                if error <= tolerance and c > 0:
                    rank = (c != 1.0, float(attn in inside), attn.depth, mlp.depth, attn.order_in + mlp.order_in)
                    found.append((_ranked(rank, attn is root), _Closure(attn, mlp, "parallel", c, error)))
                    break
    if found:
        closure = min(found, key=lambda pair: pair[0])[1]
        assert closure.attn.out is not None
        mid = pre + closure.scale * rows(closure.attn.out)
        for call in outside:
            if call.inp is not None and call.order_in > closure.attn.order_out and call.inp.numel() == mid.numel():
                error, tolerance = deviation(call.inp, mid.to(block.out.dtype))
                if error <= tolerance:
                    closure.form, closure.mid = "sequential", call
                    break
        return closure
    return _close_post_ln(block, inside, outside)


def _ranked(rank: tuple[bool, float, int, int, int], is_root: bool) -> tuple[bool, float, int, int, int]:
    scaled, in_attention, attn_depth, mlp_depth, order = rank
    return (scaled, -in_attention, 0 if is_root else attn_depth, mlp_depth, order)


def _close_post_ln(block: Call, inside: list[Call], outside: list[Call]) -> _Closure | None:
    assert block.inp is not None and block.out is not None
    pre = rows(block.inp)
    everything = [c for c in inside + outside if _same_shape(c, block)]
    best: _Closure | None = None
    for attn in (c for c in inside if _same_shape(c, block)):
        for first in everything:
            if first.inp is None or first.order_in < attn.order_out or first.inp.numel() != pre.numel():
                continue
            assert attn.out is not None
            error1, tolerance1 = deviation(pre + rows(attn.out), first.inp)
            if error1 > tolerance1:
                continue
            for mlp in (c for c in outside if _same_shape(c, block) and c.order_in > first.order_out):
                for second in (c for c in outside if _same_shape(c, block) and c.order_in > mlp.order_out):
                    assert first.out is not None and mlp.out is not None and second.out is not None
                    if second.inp is None or second.inp.numel() != pre.numel():
                        continue
                    error2, tolerance2 = deviation(rows(first.out) + rows(mlp.out), second.inp)
                    error3, _ = deviation(second.out, block.out)
                    error = max(error1, error2, error3)
                    if error2 <= tolerance2 and error3 <= TOLERANCE and (best is None or error < best.error):
                        best = _Closure(attn, mlp, "post-ln", 1.0, error, first)
    return best


def _last_projection(calls: list[Call], width: int) -> Call | None:
    hits = [c for c in calls if _is_projection(c.module) and c.out is not None and c.out.shape[-1] == width]
    return max(hits, key=lambda c: c.order_out, default=None)


def _down_projection(outside: list[Call], mlp: Call, width: int) -> Call | None:
    """The projection whose output is the MLP branch, or is what the post-norm that ends the branch was given."""
    hits = [c for c in outside if _is_projection(c.module) and c.out is not None and c.out.shape[-1] == width]
    for call in sorted(hits, key=lambda c: -c.order_out):
        assert call.out is not None
        for branch in (mlp.out, mlp.inp):
            if branch is not None and branch.numel() == call.out.numel() and torch.equal(rows(branch), rows(call.out)):
                return call
    return None


def _linear_error(call: Call) -> tuple[float, float]:
    """Deviation of ``W·x + b`` (either orientation of W) from what the projection returned."""
    assert call.inp is not None and call.out is not None
    weight: Tensor = call.module.weight.detach().double()  # type: ignore[union-attr, assignment, operator]
    x, want = rows(call.inp), call.out
    # A square Conv1D and a square Linear differ only in orientation, so both are tried on their own shapes.
    candidates = [w for w in (weight.T, weight) if w.shape == (x.shape[-1], want.shape[-1])]
    bias = getattr(call.module, "bias", None)
    offset = bias.detach().double() if isinstance(bias, Tensor) else 0.0
    errors = [deviation(x @ w + offset, want) for w in candidates]
    return min(errors, default=(float("inf"), 0.0))


def _activation(outside: list[Call], down: Call) -> tuple[Call, float] | None:
    """The activation module with ``neuron == act(pre)`` or ``neuron == act(pre) · u``, u a projection's output."""
    assert down.inp is not None
    neuron = rows(down.inp)
    wide = neuron.shape[-1]
    for act in outside:
        plain = not any(True for _ in act.module.parameters()) and not isinstance(act.module, (nn.Dropout, nn.Identity))
        if not plain or act.inp is None or act.out is None or act.out.shape[-1] != wide or act.order_out > down.order_in:
            continue
        if torch.equal(act.inp, act.out):
            continue
        factors = [torch.ones_like(neuron)]
        for other in outside:
            if other.out is not None and other.out.numel() % neuron.shape[0] == 0 and _is_projection(other.module):
                value = rows(other.out)
                factors += [value] if value.shape[-1] == wide else []
                factors += list(value.chunk(2, dim=-1)) if value.shape[-1] == 2 * wide else []
        for factor in factors:
            error, tolerance = deviation(rows(act.out) * factor, down.inp)
            if error <= tolerance:
                return act, error
    return None
