"""Weights: where the projections and directions are from which contributions follow; `emotrace.traced.weights` does the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import xarray as xr
from torch import Tensor, nn

from emotrace import arguments, provenance
from emotrace.attribution.head_sums import READOUTS
from emotrace.forwards.entering import enter
from emotrace.forwards.projections import head_layer, reading_norm_path, spec
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.traced import weights as leaf
from emotrace.traced.contributions import HeadLayer
from emotrace.traced.weights import Norm, OutputProjection

R = TypeVar("R")


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


class UnitVectors(NamedTuple):
    """Values of a label, and its unit vectors at one sublayer: float64 ``[label, layer, dim]``."""

    values: list[Any]
    v: Tensor


def vectors(
    directions: xr.DataArray, label: str, layers: Sequence[int], sublayer: str, width: int, place: str
) -> UnitVectors:
    """The unit vectors of the directions at one sublayer.

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
    return UnitVectors(values, v / norms[..., None])


class HeadsRead(NamedTuple):
    """How the heads of some layers are read along directions.

    Attributes:
        layers: 0-based.
        values: of the label.
        parts: one per layer.
        about: what results say of it: ``label, readout, readout_site, direction_sublayer, form, residual_scale``.
    """

    layers: list[int]
    values: list[Any]
    parts: list[HeadLayer]
    about: dict[str, Any]


def heads_read(
    model: LanguageModel,
    directions: xr.DataArray,
    label: str,
    layers: Iterable[int] | int | None,
    head_readout: str,
    place: str,
) -> HeadsRead:
    """Layers that have heads and directions, and how they are read; checked before anything runs.

    Raises:
        EmotraceError: for an unknown read-out, layers or directions that do not fit, ``normed`` in a parallel model, or fewer
            than two values of the label.
    """
    if head_readout not in READOUTS:
        raise unknown("readout", head_readout, READOUTS, place)
    chosen = chosen_layers(model, ["z"], layers, directions, place)
    has_mid = [model.sites.has("resid_mid", layer) for layer in chosen]
    if head_readout == "normed" and not all(has_mid):
        raise EmotraceError(
            f"{place}(head_readout='normed'): layer {chosen[has_mid.index(False)]} of {model.sites.model_class} has no "
            "resid_mid, so no norm reads it (parallel residual). Use head_readout='residual'."
        )
    sublayers = ["resid_mid" if has else "resid_post" for has in has_mid]
    by_site = {s: vectors(directions, label, chosen, s, model.sites.d_model, place) for s in set(sublayers)}
    values = next(iter(by_site.values())).values
    refuse_single(values, label, place)
    parts = [
        head_layer(model, layer, head_readout, by_site[s].v[:, i])
        for i, (layer, s) in enumerate(zip(chosen, sublayers, strict=True))
    ]
    about = {
        "label": label, "readout": head_readout,
        "readout_site": ", ".join(dict.fromkeys("resid_mid" if has else "attn_out" for has in has_mid)),
        "direction_sublayer": ", ".join(dict.fromkeys(sublayers)),
        "form": model.sites.form, "residual_scale": model.sites.scale,
    }  # fmt: skip
    return HeadsRead(chosen, values, parts, about)


def refuse_single(values: Sequence[Any], label: str, place: str) -> None:
    """Refuse directions of fewer than two values, between which nothing is contrasted."""
    if len(values) < 2:
        raise EmotraceError(f"{place}: a contrast needs two or more values of {label!r}; the directions have {values}.")
