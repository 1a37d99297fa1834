"""Weights: what one head's or neuron's activation writes into the residual stream, taken from the model where it lives.

The output of a projection is ``x·matrix + bias``; what joins the residual stream is ``scale · norm(x·matrix + bias)``, where
``norm`` is the identity except in families that normalise a branch before adding it (Gemma-2, OLMo-2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from emotrace.traced import called, inner
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


class CalledProjection(OutputProjection):
    """An `OutputProjection` whose weights are not beside the block: each is taken by calls when it is asked for.

    Args:
        model: an nnsight model.
        spec: where the map is.
    """

    def __init__(self, model: TracedModel, spec: Spec) -> None:
        self.model, self.spec = model, spec
        self.site, self.layer, self.scale = spec.site, spec.layer, spec.scale
        self.norm = norm_at(model, spec.end, spec.d_model) if follows(spec) else None
        self.held: dict = {}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``[width, d_model]``, kept from then on."""
        if "weight" not in self.held:
            parts: list = []
            called.each(self.model, self.spec.map, self.spec.width, self.spec.d_model, parts.append)
            self.held["weight"] = torch.cat(parts)
        return self.held["weight"]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """``[d_model]`` float32, or None."""
        if "bias" not in self.held:
            self.held["bias"] = called.bias(self.model, self.spec.map, self.spec.width)
        return self.held["bias"]

    def output(self, x: Tensor) -> Tensor:
        """``x·matrix + bias`` as the model makes it; float32."""
        return called.through(self.model, self.spec.map, x.flatten(0, -2)).float().reshape(*x.shape[:-1], -1)

    def along(self, v: Tensor) -> Tensor:
        """``matrix · v``, of which no more than a block is held."""
        if "weight" in self.held:
            return OutputProjection.along(self, v)
        parts: list = []

        def keep(rows: Tensor) -> None:
            parts.append(v.to(rows.device, torch.float64) @ rows.double().T)

        called.each(self.model, self.spec.map, self.spec.width, self.spec.d_model, keep)
        return torch.cat(parts, dim=-1).cpu()


def output_projection(model: TracedModel, spec: Spec) -> OutputProjection:
    """The map that takes a site into the residual stream.

    Args:
        model: an nnsight model; where its weights are not beside the block, they are taken by calls.
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
    if inner.weightless(model):
        return CalledProjection(model, spec)
    bias = getattr(module, "bias", None)
    bias = bias.detach().float() if isinstance(bias, Tensor) else None
    norm = norm_of(last, spec.d_model, _path(spec.end)) if follows(spec) else None
    return OutputProjection(spec.site, spec.layer, matrix, bias, norm, spec.scale)


def follows(spec: Spec) -> bool:
    """Whether something stands between a map and the end of its branch: a norm, where it is one of those read here."""
    return not any(m is spec.map._module for m in spec.end._module.modules())


def normed(model: TracedModel, spec: Spec) -> bool:
    """Whether a norm follows a map."""
    return follows(spec) and norm_at(model, spec.end, spec.d_model) is not None


def _path(envoy: Any) -> str:
    return str(envoy.path).partition(".")[2]


def norm_at(model: TracedModel, envoy: Any, width: int) -> Norm | None:
    """As `norm_of`, of a module of a model, wherever its weights are."""
    if not inner.weightless(model):
        return norm_of(envoy._module, width, _path(envoy))
    x = _rows(width)
    sign = torch.ones(width)
    sign[1::2] = -1.0
    asked = torch.cat([x, torch.zeros(1, width), 64 * sign[None]])
    made = called.through(model, envoy, asked)
    asked, want = asked.to(made.dtype).double(), made.double()
    bias, large = want[len(x)], asked[-1]

    def gained(eps: float, centred: bool) -> Norm:
        plain = Norm(torch.ones(width).double(), bias, eps, centred)
        return Norm((want[-1] - bias) * plain.size(large) / plain.centre(large), bias, eps, centred)

    tried = [gained(eps, c) for eps in _own(envoy._module) for c in (False, True)]
    return _best(tried, asked[: len(x)], want[: len(x)], made.dtype, envoy._module, _path(envoy))


def norm_of(module: torch.nn.Module, width: int, place: str = "") -> Norm | None:
    """A module as the norm it computes, after comparing the two on random inputs; None for the identity.

    Weights are read as a gain or as gain − 1 (Gemma); which, and whether the mean is taken away, is what fits.

    Raises:
        ValueError: if it is neither RMSNorm nor LayerNorm.
    """
    vectors = dict(module.named_parameters())
    dtype = next((p.dtype for p in vectors.values()), torch.float32)
    device = next((p.device for p in vectors.values()), torch.device("cpu"))
    x = _rows(width).to(device, dtype)
    with torch.no_grad():
        want = module(x).double()
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
    tried = [Norm(g, b, eps, c) for g in gains for b in biases for eps in _own(module) for c in (False, True)]
    return _best(tried, x.double(), want, dtype, module, place)


def _rows(width: int) -> Tensor:
    """Random rows: small ones tell eps, the offset tells whether the mean is taken away."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, width, generator=generator) + 0.5) * torch.tensor([[1.0], [3.0], [0.03], [0.01]])


def _own(module: torch.nn.Module) -> list:
    """What a norm may add to its variance."""
    own = [getattr(module, n) for n in dir(module) if "eps" in n and isinstance(getattr(module, n, None), float)]
    return own or list(EPSILONS)


def _best(tried: list, x: Tensor, want: Tensor, dtype: torch.dtype, module: torch.nn.Module, place: str) -> Norm | None:
    """The norm that makes of rows what a module makes of them; None for the identity.

    Raises:
        ValueError: if none does.
    """
    if torch.equal(want, x):
        return None
    errors = [float((n(x) - want).abs().max()) for n in tried]
    error, best = min(zip(errors, tried, strict=True), key=lambda pair: pair[0])
    if not error <= (1e-4 + 8 * torch.finfo(dtype).eps) * max(float(want.abs().max()), 1e-12):
        raise ValueError(
            f"{place or 'a norm'} ({type(module).__name__}) is neither RMSNorm nor LayerNorm (the closest deviates by "
            f"{error:.1e}), so what goes through it cannot be told apart."
        )
    return best
