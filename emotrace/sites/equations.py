"""Equations: what must hold between recorded values for a place to be called a site.

Two closures are known::

    resid_pre + c·(attn_out + mlp_out) == resid_post                      sequential, parallel, scaled
    LN2(LN1(resid_pre + attn_out) + mlp_out) == resid_post                post-LN

and three identities: ``W_O·z + b == o_proj_out``, ``W_down·neuron + b ==`` the MLP branch, ``neuron = act(neuron_pre)``,
possibly times another projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import torch
from torch import Tensor

from emotrace.labels import LAYER_SITES, EmotraceError, unknown
from emotrace.sites.address import Address
from emotrace.sites.probe import Call, Recording

Form = Literal["sequential", "parallel", "post-ln", "stream"]
TOLERANCE = 1e-4
"""Largest relative deviation that float32 arithmetic may leave on a probe; lower precision adds its own rounding."""
CONFIRMED = 1e-2
"""Largest relative deviation of a matrix product on the real weights, whose form a float32 twin has shown."""
FEATURES = 128
"""Output features of a large projection that are compared, spread evenly."""


@dataclass
class LayerProof:
    """What was shown in one layer.

    Attributes:
        form: how the layer adds attention and MLP.
        scale: residual scale c.
        error: deviation of the closure.
        sites: addresses.
        norms: paths of LN1 and LN2 of a post-LN layer.
        lacking: site → why a proof that the architecture promised failed on the weights.
        gate: ``(path, part)`` of what multiplies the activation: the whole output (part None) of a projection, or one
            of its two halves; None where the activation is the neuron.
    """

    form: Form
    scale: float
    error: float
    sites: dict[str, Address] = field(default_factory=dict)
    norms: tuple[str, str] | None = None
    gate: tuple[str, int | None] | None = None
    lacking: dict[str, str] = field(default_factory=dict)


def rows(value: Tensor) -> Tensor:
    """``[batch, token, d]`` or flat ``[batch·token, d]`` as float64 ``[batch·token, d]``."""
    return value.reshape(-1, value.shape[-1]).double()


def deviation(got: Tensor, want: Tensor, like: Tensor | None = None) -> tuple[float, float]:
    """Largest relative deviation, and the tolerance that the dtype's rounding allows.

    error = max|got − want| / max|like|; tolerance = 1e-4 + 4·ε(dtype)·max|want| / max|like|.
    """
    if got.numel() != want.numel():
        return math.inf, 0.0
    scale = float(rows(want if like is None else like).abs().max()) or 1.0
    error = float((rows(got) - rows(want)).abs().max()) / scale
    rounding = 4 * torch.finfo(want.dtype).eps * float(rows(want).abs().max()) / scale
    return error if math.isfinite(error) else math.inf, TOLERANCE + rounding


def linear(call: Call) -> tuple[float, float]:
    """Deviation of ``W·x + b`` (either orientation of W) from what the projection returned."""
    assert call.inp is not None
    assert call.out is not None
    weight = getattr(call.module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.is_meta:
        return math.inf, 0.0
    x, want = rows(call.inp), rows(call.out)
    chosen = torch.linspace(0, want.shape[1] - 1, min(want.shape[1], FEATURES)).long()
    bias = getattr(call.module, "bias", None)
    errors = []
    # A square Conv1D and a square Linear differ only in orientation, so both are tried on their own shapes.
    for axis, shape in ((0, (want.shape[1], x.shape[1])), (1, (x.shape[1], want.shape[1]))):
        if weight.shape == shape:
            part = weight.detach().index_select(axis, chosen.to(weight.device)).cpu().double()
            product = x @ (part.T if axis == 0 else part)
            if isinstance(bias, Tensor):
                product = product + bias.detach().cpu().double()[chosen]
            errors.append(deviation(product, call.out.reshape(-1, want.shape[1])[:, chosen]))
    return min(errors, default=(math.inf, 0.0))


def held(recording: Recording, address: Address) -> Tensor | None:
    """What a recording holds at an address (element 0 of a tuple unless the address says otherwise)."""
    calls = recording.at(address.path)
    if len(calls) != 1:
        return None
    if address.side == "input":
        return calls[0].inp
    index = address.index or 0
    return calls[0].outs[index] if index < len(calls[0].outs) else None


def confirm(recording: Recording, proof: LayerProof) -> LayerProof | str:
    """A layer's proof repeated on another recording at the same addresses, with the errors and widths found there.

    Sites whose equation fails are left out; where the closure itself fails, the reason is returned.

    Raises:
        EmotraceError: for a site that has no equation in `EQUATIONS`.
    """
    found = closure(recording, proof)
    if found is None:
        return "a module that the twin calls is not called"
    error, tolerance = found
    if error > tolerance:
        return f"the residual closes on the twin but not on the weights (error {error:.1e} > {tolerance:.1e})"
    shown = LayerProof(proof.form, proof.scale, error, norms=proof.norms, gate=proof.gate)
    for site, address in proof.sites.items():
        if site not in EQUATIONS:
            raise unknown("site", site, EQUATIONS, "the equations of sites")
        tensor = held(recording, address)
        off = math.inf if tensor is None else EQUATIONS[site](recording, proof, address, tensor, error)
        if off <= max(CONFIRMED, tolerance) and tensor is not None:
            heads = tensor.shape[1] if site == "attn_pattern" else address.heads
            shown.sites[site] = replace(address, width=tensor.shape[-1], error=off, heads=heads)
        else:
            shown.lacking[site] = f"its equation holds on the twin but not on the weights (error {off:.1e})"
    return shown


def closure(recording: Recording, proof: LayerProof) -> tuple[float, float] | None:
    """Deviation and tolerance of a layer's closure on a recording; None where one of its modules is not called."""
    if proof.form == "stream":
        ends = [held(recording, proof.sites[name]) for name in ("resid_pre", "resid_post")]
        return None if any(value is None for value in ends) else (0.0, TOLERANCE)
    value = {name: held(recording, proof.sites[name]) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    pre, attn, mlp, post = value.values()
    if pre is None or attn is None or mlp is None or post is None:
        return None
    if proof.norms is None:
        return deviation(rows(pre) + proof.scale * (rows(attn) + rows(mlp)), post, rows(post) - rows(pre))
    return post_ln(recording, proof.norms, pre, attn, mlp, post)


def gate_value(recording: Recording, gate: tuple[str, int | None] | None) -> Tensor | float:
    """What multiplies the activation: 1, a projection's output, or one half of it."""
    if gate is None:
        return 1.0
    path, part = gate
    out = recording.at(path)[0].out
    assert out is not None
    return rows(out) if part is None else rows(out).chunk(2, dim=-1)[part]


def post_ln(
    recording: Recording, norms: tuple[str, str], pre: Tensor, attn: Tensor, mlp: Tensor, post: Tensor
) -> tuple[float, float]:
    """Deviation of the post-LN closure: the inputs of LN1 and LN2 are the sums, and LN2's output is ``resid_post``."""
    first, second = recording.at(norms[0])[0], recording.at(norms[1])[0]
    if first.inp is None or first.out is None or second.inp is None or second.out is None:
        return math.inf, 0.0
    found = (
        deviation(rows(pre) + rows(attn), first.inp),
        deviation(rows(first.out) + rows(mlp), second.inp),
        deviation(second.out, post),
    )
    return max(e for e, _ in found), min(t for _, t in found)


def _closed(recording: Recording, proof: LayerProof, address: Address, tensor: Tensor, closure: float) -> float:
    """The closure, of which the site is a term."""
    return closure


def _middle(recording: Recording, proof: LayerProof, address: Address, tensor: Tensor, closure: float) -> float:
    """``resid_pre + c·attn_out`` is what the next norm is given; in post-LN the closure itself passes through it."""
    if address.mirror is None:
        return closure if proof.norms is not None else math.inf
    pre, mid = held(recording, proof.sites["resid_pre"]), held(recording, address.mirror)
    if pre is None or mid is None:
        return math.inf
    error, tolerance = deviation(rows(pre) + proof.scale * rows(tensor), mid)
    return error if error <= tolerance else math.inf


def _product(recording: Recording, proof: LayerProof, address: Address, tensor: Tensor, closure: float) -> float:
    """``W·x + b`` of the projection at whose input or output the site is."""
    return linear(recording.at(address.path)[0])[0]


def _activated(recording: Recording, proof: LayerProof, address: Address, tensor: Tensor, closure: float) -> float:
    """``neuron = act(neuron_pre)``, possibly times another projection."""
    neuron = proof.sites.get("neuron")
    wanted = None if neuron is None else held(recording, neuron)
    got = recording.at(address.path)[0].out
    if wanted is None or got is None:
        return math.inf
    return deviation(rows(got) * gate_value(recording, proof.gate), wanted)[0]


def _shares(recording: Recording, proof: LayerProof, address: Address, tensor: Tensor, closure: float) -> float:
    """Attention is a distribution over tokens."""
    return float((tensor.double().sum(-1) - 1).abs().max())


EQUATIONS: Final[dict[str, Callable[[Recording, LayerProof, Address, Tensor, float], float]]] = {
    **dict.fromkeys(("resid_pre", "attn_out", "mlp_out", "resid_post"), _closed),
    "resid_mid": _middle, **dict.fromkeys(("o_proj_out", "z", "neuron"), _product),
    "neuron_pre": _activated, "attn_pattern": _shares,
}  # fmt: skip
"""Site of a layer → what confirms it on the weights: the deviation of its own equation."""
if set(EQUATIONS) != set(LAYER_SITES):
    raise EmotraceError(f"sites with no equation, or equations of no site: {sorted({*EQUATIONS} ^ {*LAYER_SITES})}.")
