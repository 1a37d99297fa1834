"""Weights: where the projections and directions are from which contributions follow; `emotrace.traced.weights` does the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import xarray as xr
from torch import Tensor, nn

from emotrace import arguments, provenance
from emotrace.forwards.entering import enter
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, envoy
from emotrace.traced import weights as leaf
from emotrace.traced.weights import Norm, OutputProjection

R = TypeVar("R")

ENDS = {"z": ("o_proj_out", "attn_out"), "neuron": ("neuron", "mlp_out")}
"""Site before a projection → a site at the projection itself, and the one that its branch adds to the residual."""


def spec(model: LanguageModel, site: str, layer: int) -> leaf.Spec:
    """What `emotrace.traced.weights.output_projection` takes.

    Args:
        model: from `emotrace.load`.
        site: ``z`` (the output projection of attention) or ``neuron`` (the down projection).
        layer: 0-based.

    Raises:
        EmotraceError: for another site, or a layer without it (as in mixtures of experts).
    """
    if site not in ENDS:
        raise unknown("site", site, ENDS, "output_projection")
    sites = model.sites
    address = sites.address(site, layer)
    here, end = (envoy(model, sites.address(s, layer).path) for s in ENDS[site])
    proof = sites.proofs.get(layer)
    scale = sites.scale if proof is None else proof.scale
    return leaf.Spec(site, layer, here, end, address.width, sites.d_model, scale)


def weighed(model: LanguageModel, function: Callable[..., R], *args: object) -> R:
    """``function(model, *args)``, of `emotrace.traced.contributions`, where the weights are.

    Raises:
        EmotraceError: for weights that it cannot use, in its own words.
    """
    try:
        return enter(model, function, *args)
    except EmotraceError:
        raise
    except ValueError as error:
        raise EmotraceError(str(error)) from None


@typed
def output_projection(model: LanguageModel, site: str, layer: int) -> OutputProjection:
    """The map that takes a site into the residual stream, read here.

    Args:
        model: from `emotrace.load`, with weights.
        site: ``z`` (the output projection of attention) or ``neuron`` (the down projection).
        layer: 0-based.

    Raises:
        EmotraceError: for another site, a layer without it (as in mixtures of experts), weights that are not here, or a
            norm after the projection that is neither RMSNorm nor LayerNorm.
    """
    found = spec(model, site, layer)
    if any(p.is_meta for p in found.map._module.parameters()):
        raise EmotraceError(f"the weights of {found.map.path} are not here; load the model with its weights.")
    try:
        return leaf.output_projection(model, found)
    except ValueError as error:
        raise EmotraceError(str(error)) from None


def norm_of(module: nn.Module, width: int, place: str = "") -> Norm | None:
    """A module as the norm it computes, see `emotrace.traced.weights.norm_of`.

    Raises:
        EmotraceError: if it is neither RMSNorm nor LayerNorm.
    """
    try:
        return leaf.norm_of(module, width, place)
    except ValueError as error:
        raise EmotraceError(str(error)) from None


def reading_norm(model: LanguageModel, layer: int) -> Norm | None:
    """The norm that is given ``resid_mid`` of a sequential layer; None where the MLP takes it as it is (OLMo-2, post-LN).

    Raises:
        EmotraceError: for a layer without ``resid_mid`` (parallel residual), as `Sites.address`.
    """
    path = reading_norm_path(model, layer)
    return None if path is None else norm_of(model._module.get_submodule(path), model.sites.d_model, path)


def reading_norm_path(model: LanguageModel, layer: int) -> str | None:
    """Module path of the norm that is given ``resid_mid`` of a sequential layer, or None."""
    address = model.sites.address("resid_mid", layer)
    if address.mirror is None:
        return None
    module = model._module.get_submodule(address.mirror.path)
    return None if any(p.ndim > 1 for p in module.parameters()) else address.mirror.path


def chosen_layers(
    model: LanguageModel, sites: Sequence[str], layers: Iterable[int] | int | None, directions: xr.DataArray, place: str
) -> list[int]:
    """Layers that have the sites and a direction: those asked for, or all.

    Raises:
        EmotraceError: for a layer without one of the sites or without direction, or where none is left.
    """
    if not isinstance(directions, xr.DataArray) or "layer" not in directions.dims:
        raise EmotraceError(f"{place}: directions is a DataArray [label, layer, sublayer, dim] of emotrace.directions.")
    provenance.check(directions, model.sites, f"{place}(directions=…)")
    known = [int(i) for i in directions["layer"].values] if "layer" in directions.coords else []
    if layers is None:
        common = set(known).intersection(*(model.sites.layers(s) for s in sites))
        if not common:
            raise EmotraceError(f"{place}: no layer has a direction and all of {', '.join(sites)}.")
        return sorted(common)
    asked = sorted(arguments.wholes(f"{place}(layers)", layers))
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
