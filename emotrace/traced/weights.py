"""Weights: what one head's or neuron's activation writes into the residual stream, taken from the model where it lives.

The output of a projection is ``x·matrix + bias``; what joins the residual stream is ``scale · norm(x·matrix + bias)``, where
``norm`` is the identity except in families that normalise a branch before adding it (Gemma-2, OLMo-2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from emotrace.traced.model import TracedModel
from emotrace.traced.precision import exactly

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8)
"""Tried where a norm does not say its own."""
ROWS = 4096
"""Rows of a matrix that are held in float64 at a time."""


class Norm:
    """N(x) = bias + gain ∘ P x / ρ(x), ρ(x) = √(mean((P x)²) + eps); P takes the mean away (LayerNorm) or is the identity.

    Attributes:
        gain: ``[d]`` float64.
        bias: ``[d]`` float64.
        eps: of ρ.
        centred: whether P takes the mean away.
    """

    def __init__(self, gain: Tensor, bias: Tensor, eps: float, centred: bool) -> None:
        self.gain, self.bias, self.eps, self.centred = gain, bias, eps, centred

    def __call__(self, x: Tensor) -> Tensor:
        """N(x) along the last dim, in float64."""
        x = self.centre(x.double())
        return self.bias + self.gain * x / self.size(x)[..., None]

    def centre(self, x: Tensor) -> Tensor:
        """P x."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def size(self, x: Tensor) -> Tensor:
        """ρ(x), without the last dim."""
        return (self.centre(x.double()).square().mean(-1) + self.eps).sqrt()

    def pulled(self, v: Tensor) -> Tensor:
        """w with ⟨v, N(x) − bias⟩ = ⟨w, x⟩ / ρ(x): the direction v seen from before the norm."""
        return self.centre(v.double() * self.gain)


class Spec(NamedTuple):
    """Where the last linear map of a branch is.

    Attributes:
        site: ``z`` or ``neuron``, its input.
        layer: 0-based.
        map: envoy of the map.
        end: envoy of what ends its branch.
        width: of its input.
        d_model: of its output.
        scale: c of the residual stream.
    """

    site: str
    layer: int
    map: Any
    end: Any
    width: int
    d_model: int
    scale: float


class OutputProjection:
    """The last linear map of a branch, and what becomes of its output.

    Attributes:
        site: ``z`` or ``neuron``, the input of the map.
        layer: 0-based.
        weight: ``[width, d_model]`` as the model holds it; row i is what one unit of column i writes.
        bias: ``[d_model]`` float32, or None.
        norm: between the map's output and ``attn_out`` or ``mlp_out``; None where they are the same.
        scale: c of the residual stream.
    """

    def __init__(
        self, site: str, layer: int, weight: Tensor, bias: Tensor | None, norm: Norm | None, scale: float
    ) -> None:
        self.site, self.layer, self.weight, self.bias = site, layer, weight, bias
        self.norm, self.scale = norm, scale

    @property
    def matrix(self) -> Tensor:
        """The weight in float32: a view of a float32 model, else a copy that is not kept."""
        return self.weight.float()

    def output(self, x: Tensor) -> Tensor:
        """``x·matrix + bias`` for x ``[…, width]``, before any norm; float32."""
        with exactly(self.weight):
            out = x.to(self.weight.device, torch.float32) @ self.matrix
        return out if self.bias is None else out + self.bias

    def along(self, v: Tensor) -> Tensor:
        """``matrix · v`` for v ``[…, d_model]``: float64 ``[…, width]`` on the CPU, with neither norm nor scale."""
        v = v.to(self.weight.device, torch.float64)
        parts = [v @ self.weight[at : at + ROWS].double().T for at in range(0, len(self.weight), ROWS)]
        return torch.cat(parts, dim=-1).cpu()


def output_projection(model: TracedModel, spec: Spec) -> OutputProjection:
    """The map that takes a site into the residual stream.

    Args:
        model: an nnsight model with weights.
        spec: where it is.

    Raises:
        ValueError: for a module without such a matrix, or a norm after it that is neither RMSNorm nor LayerNorm.
    """
    module, last, shape = spec.map._module, spec.end._module, (spec.width, spec.d_model)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(f"{_path(spec.map)} ({type(module).__name__}) has no weight matrix.")
    matrix = weight.detach() if type(module).__name__ == "Conv1D" else weight.detach().T
    if matrix.shape != shape:
        matrix = matrix.T
    if matrix.shape != shape:
        raise ValueError(f"{_path(spec.map)} has a weight of shape {tuple(weight.shape)}, not {shape}.")
    bias = getattr(module, "bias", None)
    bias = bias.detach().float() if isinstance(bias, Tensor) else None
    norm = norm_of(last, spec.d_model, _path(spec.end)) if follows(spec) else None
    return OutputProjection(spec.site, spec.layer, matrix, bias, norm, spec.scale)


def follows(spec: Spec) -> bool:
    """Whether something stands between a map and the end of its branch: a norm, where it is one of those read here."""
    return not any(m is spec.map._module for m in spec.end._module.modules())


def _path(envoy: Any) -> str:
    return str(envoy.path).partition(".")[2]


def norm_of(module: torch.nn.Module, width: int, place: str = "") -> Norm | None:
    """A module as the norm it computes, after comparing the two on random inputs; None for the identity.

    Weights are read as a gain or as gain − 1 (Gemma); which, and whether the mean is taken away, is what fits.

    Raises:
        ValueError: if it is neither RMSNorm nor LayerNorm.
    """
    vectors = dict(module.named_parameters())
    dtype = next((p.dtype for p in vectors.values()), torch.float32)
    device = next((p.device for p in vectors.values()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    # the small rows tell eps, the offset tells whether the mean is taken away
    rows = (torch.randn(4, width, generator=generator) + 0.5) * torch.tensor([[1.0], [3.0], [0.03], [0.01]])
    x = rows.to(device, dtype)
    with torch.no_grad():
        want = module(x).double()
    x = x.double()
    if torch.equal(want, x):
        return None
    gains, biases = (
        [torch.ones(width, dtype=torch.float64, device=device)],
        [torch.zeros(width, device=device).double()],
    )
    for name, p in vectors.items():
        if p.shape == (width,):
            value = p.detach().double()
            if "bias" in name:
                biases = [value]
            else:
                gains = [value, 1 + value]
    own = [getattr(module, n) for n in dir(module) if "eps" in n and isinstance(getattr(module, n, None), float)]
    tried = [Norm(g, b, eps, c) for g in gains for b in biases for eps in own or EPSILONS for c in (False, True)]
    errors = [float((n(x) - want).abs().max()) for n in tried]
    error, best = min(zip(errors, tried, strict=True), key=lambda pair: pair[0])
    if not error <= (1e-4 + 8 * torch.finfo(dtype).eps) * max(float(want.abs().max()), 1e-12):
        raise ValueError(
            f"{place or 'a norm'} ({type(module).__name__}) is neither RMSNorm nor LayerNorm (the closest deviates by "
            f"{error:.1e}), so what goes through it cannot be told apart."
        )
    return best
