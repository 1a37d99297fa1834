"""Weights: what one head's or neuron's activation writes into the residual stream, read from the model's projections.

The output of a projection is ``x·matrix + bias``; what joins the residual stream is ``scale · norm(x·matrix + bias)``, where
``norm`` is the identity except in families that normalise a branch before adding it (Gemma-2, OLMo-2).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from emotrace.labels import EmotraceError, unknown

ENDS = {"z": ("o_proj_out", "attn_out"), "neuron": ("neuron", "mlp_out")}
"""Site before a projection → a site at the projection itself, and the one that its branch adds to the residual."""
EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8)
"""Tried where a norm does not say its own."""
ROWS = 4096
"""Rows of a matrix that are held in float64 at a time."""


@dataclass(frozen=True)
class Norm:
    """N(x) = bias + gain ∘ P x / ρ(x), ρ(x) = √(mean((P x)²) + eps); P takes the mean away (LayerNorm) or is the identity.

    Attributes:
        gain: ``[d]`` float64.
        bias: ``[d]`` float64.
        eps: of ρ.
        centred: whether P takes the mean away.
    """

    gain: Tensor
    bias: Tensor
    eps: float
    centred: bool

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


@dataclass(frozen=True)
class Projection:
    """The last linear map of a branch, and what becomes of its output.

    Attributes:
        site: ``z`` or ``neuron``, the input of the map.
        layer: 0-based.
        weight: ``[width, d_model]`` as the model holds it; row i is what one unit of column i writes.
        bias: ``[d_model]`` float32, or None.
        norm: between the map's output and ``attn_out`` or ``mlp_out``; None where they are the same.
        scale: c of the residual stream.
    """

    site: str
    layer: int
    weight: Tensor
    bias: Tensor | None
    norm: Norm | None
    scale: float

    @property
    def matrix(self) -> Tensor:
        """The weight in float32: a view of a float32 model, else a copy that is not kept."""
        return self.weight.float()

    def output(self, x: Tensor) -> Tensor:
        """``x·matrix + bias`` for x ``[…, width]``, before any norm; float32."""
        out = x.to(self.weight.device, torch.float32) @ self.matrix
        return out if self.bias is None else out + self.bias

    def along(self, v: Tensor) -> Tensor:
        """``matrix · v`` for v ``[…, d_model]``: float64 ``[…, width]`` on the CPU, with neither norm nor scale."""
        v = v.to(self.weight.device, torch.float64)
        parts = [v @ self.weight[at : at + ROWS].double().T for at in range(0, len(self.weight), ROWS)]
        return torch.cat(parts, dim=-1).cpu()


def projection(model: Any, site: str, layer: int) -> Projection:
    """The map that takes a site into the residual stream.

    Args:
        model: from `emotrace.load`, with weights.
        site: ``z`` (the output projection of attention) or ``neuron`` (the down projection).
        layer: 0-based.

    Raises:
        EmotraceError: for another site, a layer without it (as in mixtures of experts), weights that are not here, or a
            norm after the projection that is neither RMSNorm nor LayerNorm.
    """
    if site not in ENDS:
        raise unknown("site", site, ENDS, "projection")
    sites, root = model.sites, model._module
    address = sites.address(site, layer)
    here, end = (sites.address(s, layer).path for s in ENDS[site])
    module = root.get_submodule(here)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise EmotraceError(f"{here} ({type(module).__name__}) has no weight matrix.")
    if weight.is_meta:
        raise EmotraceError(f"the weights of {here} are not here; load the model with its weights.")
    matrix = weight.detach() if isinstance(module, Conv1D) else weight.detach().T
    if matrix.shape != (address.width, sites.d_model):
        matrix = matrix.T
    if matrix.shape != (address.width, sites.d_model):
        raise EmotraceError(
            f"{here} has a weight of shape {tuple(weight.shape)}, not {(address.width, sites.d_model)}."
        )
    bias = getattr(module, "bias", None)
    bias = bias.detach().float() if isinstance(bias, Tensor) else None
    last = root.get_submodule(end)
    norm = None if any(m is module for m in last.modules()) else norm_of(last, sites.d_model, end)
    proof = sites.proofs.get(layer)
    return Projection(site, layer, matrix, bias, norm, sites.scale if proof is None else proof.scale)


def norm_of(module: nn.Module, width: int, place: str = "") -> Norm | None:
    """A module as the norm it computes, after comparing the two on random inputs; None for the identity.

    Weights are read as a gain or as gain − 1 (Gemma); which, and whether the mean is taken away, is what fits.

    Raises:
        EmotraceError: if it is neither RMSNorm nor LayerNorm.
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
    tried = [
        Norm(g, b, eps, centred)
        for g, b, eps, centred in itertools.product(gains, biases, own or EPSILONS, (False, True))
    ]
    errors = [float((n(x) - want).abs().max()) for n in tried]
    error, best = min(zip(errors, tried, strict=True), key=lambda pair: pair[0])
    if not error <= (1e-4 + 8 * torch.finfo(dtype).eps) * max(float(want.abs().max()), 1e-12):
        raise EmotraceError(
            f"{place or 'a norm'} ({type(module).__name__}) is neither RMSNorm nor LayerNorm (the closest deviates by "
            f"{error:.1e}), so what goes through it cannot be told apart."
        )
    return best


def reading_norm(model: Any, layer: int) -> Norm | None:
    """The norm that is given ``resid_mid`` of a sequential layer; None where the MLP takes it as it is (OLMo-2, post-LN).

    Raises:
        EmotraceError: for a layer without ``resid_mid`` (parallel residual), as `Sites.address`.
    """
    address = model.sites.address("resid_mid", layer)
    if address.mirror is None:
        return None
    module = model._module.get_submodule(address.mirror.path)
    if any(p.ndim > 1 for p in module.parameters()):
        return None
    return norm_of(module, model.sites.d_model, address.mirror.path)


def chosen_layers(
    model: Any, sites: Sequence[str], layers: Iterable[int] | int | None, directions: xr.DataArray, place: str
) -> list[int]:
    """Layers that have the sites and a direction: those asked for, or all.

    Raises:
        EmotraceError: for a layer without one of the sites or without direction, or where none is left.
    """
    if not isinstance(directions, xr.DataArray) or "layer" not in directions.dims:
        raise EmotraceError(f"{place}: directions is a DataArray [label, layer, sublayer, dim] of emotrace.directions.")
    known = [int(i) for i in directions["layer"].values] if "layer" in directions.coords else []
    if layers is None:
        common = set(known).intersection(*(model.sites.layers(s) for s in sites))
        if not common:
            raise EmotraceError(f"{place}: no layer has a direction and all of {', '.join(sites)}.")
        return sorted(common)
    if isinstance(layers, slice):
        raise EmotraceError(f"{place}: give range({layers.start}, {layers.stop}) – layers take no slices.")
    asked = sorted({int(i) for i in ([layers] if isinstance(layers, int) else layers)})
    if not asked:
        raise EmotraceError(f"{place}: layers is empty.")
    for layer in asked:
        for site in sites:
            model.sites.address(site, layer)
        if layer not in known:
            raise unknown("layer of the directions", layer, known, place)
    return asked


def vectors(
    directions: xr.DataArray, label: str, layers: Sequence[int], sublayer: str, width: int, place: str
) -> tuple[list[Any], Tensor]:
    """Values of the label, and its unit vectors at one sublayer: float64 ``[label, layer, dim]``.

    Raises:
        EmotraceError: for missing dims, labels or sublayers, another width, or a vector of norm zero.
    """
    for dim in (label, "dim"):
        if dim not in directions.dims:
            raise unknown("dim of the directions", dim, directions.dims, place)
    if "sublayer" in directions.dims:
        names = [str(s) for s in directions["sublayer"].values]
        if sublayer not in names:
            raise unknown("sublayer of the directions", sublayer, names, place)
        directions = directions.sel(sublayer=sublayer)
    elif "sublayer" in directions.coords and str(directions["sublayer"].item()) != sublayer:
        raise EmotraceError(
            f"{place}: the directions belong to {directions['sublayer'].item()!r}, not to {sublayer!r}."
        )
    extra = set(directions.dims) - {label, "layer", "dim"}
    if extra:
        raise EmotraceError(f"{place}: the directions have the dims {sorted(map(str, extra))} too; select one of each.")
    if directions.sizes["dim"] != width:
        raise EmotraceError(
            f"{place}: the directions are {directions.sizes['dim']} wide, the residual stream of the model {width}."
        )
    picked = directions.sel(layer=list(layers)).transpose(label, "layer", "dim")
    v = torch.tensor(picked.values, dtype=torch.float64)
    norms = v.norm(dim=-1)
    if not bool(torch.isfinite(v).all()) or bool((norms == 0).any()):
        raise EmotraceError(f"{place}: a direction at {sublayer} has norm zero or is not finite.")
    values = picked[label].values.tolist() if label in picked.coords else list(range(len(v)))
    return values, v / norms[..., None]
