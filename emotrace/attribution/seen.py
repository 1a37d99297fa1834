"""Seen: what directions are as seen from heads and neurons, made once where the weights are, kept beside a store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from emotrace import arguments, disk
from emotrace.attribution.chunked import METHOD
from emotrace.attribution.files import kept
from emotrace.attribution.weights import chosen_layers, heads_read, refuse_single, vectors, weighed
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.forwards.entering import keeping
from emotrace.forwards.projections import spec
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.traced import covectors as leaf

PLACE = "covectors"


@typed
def covectors(
    model: LanguageModel,
    directions: xr.DataArray,
    *,
    label: str = "emotion",
    kinds: Iterable[str] | None = None,
    layers: Iterable[int] | int | None = None,
    head_readout: str = "residual",
    out: str | Path | None = None,
) -> xr.Dataset:
    """What each direction is to heads and neurons: all that their contributions need of the weights.

    With v_e the unit direction (heads: at ``resid_mid``, in parallel models ``resid_post``; neurons: at ``resid_post``), c the
    residual scale, and ``w = P(gain ∘ v)`` a direction taken back through a norm ``N(x) = bias + gain ∘ P x / ρ(x)``, but for its
    ρ::

        z[e, l, h]      = c · W_O,hᵀ x      x = w behind the norm that follows W_O (where there is one), else w
        neuron[e, l, n] = c · W_down,n x
        read[e, l]      = w                 behind the norm that reads the sum (`head_readout` normed, post-LN), else v

    Whole weight matrices stay where they are. ``head_contributions(acts, covectors)``, ``neuron_contributions(acts, covectors)``
    and ``circuits.discover(acts, covectors)`` need no model.

    Args:
        model: from `emotrace.load`.
        directions: ``[label, layer, sublayer, dim]`` of `directions.centered_mean`; used as unit vectors.
        label: the label that is contrasted.
        kinds: of ``head`` and ``neuron``; None for those that the model has in these layers.
        layers: 0-based layers; None for all with directions.
        head_readout: of the heads: ``residual``, or ``normed`` (the input of the MLP).
        out: folder to save them in as ``covectors``.

    Returns:
        Dataset, float64: ``z[label, layer, head, head_dim]``, ``neuron[label, layer, unit]``, ``read[label, layer, dim]``, and
        what biases add: ``z_bias, z_added, read_bias, neuron_bias, neuron_added`` ``[label, layer]``. attrs ``z_layers`` and
        ``neuron_layers`` name the layers that have the site (others hold 0); ``z_after, z_reads, neuron_after`` those with a
        norm, ``residual`` the site that each layer of ``z_layers`` is read with; and model, read-out, form, scale, digest of
        the directions.

    Raises:
        EmotraceError: for layers or directions that do not fit, a model with neither heads nor neurons, or a norm that is neither
            RMSNorm nor LayerNorm.
    """
    if out is not None:
        to_folder(out)
    asked = KINDS if kinds is None else list(dict.fromkeys(kinds))
    for kind in asked:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS, f"{PLACE}(kinds=…)")
    at = {k: _at(model, directions, COMPONENTS[k].site, layers, kinds is not None) for k in asked}
    if not any(at.values()):
        raise EmotraceError(
            f"{PLACE}: {model.sites.model_class} has neither heads (z) nor neurons in the layers of the directions."
        )
    read = heads_read(model, directions, label, at["head"], head_readout, PLACE) if at.get("head") else None
    specs, v, values = [], torch.empty(0), [] if read is None else read.values
    if units := at.get("neuron") or []:
        values, v = vectors(directions, label, units, "resid_post", model.sites.d_model, PLACE)
        refuse_single(values, label, PLACE)
        specs = [spec(model, "neuron", layer) for layer in units]
    with keeping(model, out):
        of_heads, neurons = weighed(model, leaf.both, [] if read is None else read.parts, specs, v)
    every = sorted({*(at.get("head") or ()), *units})
    place = {layer: i for i, layer in enumerate(every)}
    data: dict[str, Any] = {}
    about: dict[str, Any] = {"form": model.sites.form, "residual_scale": model.sites.scale, "readout": head_readout}

    def put(name: str, dims: tuple[str, ...], those: list[int], array: Any) -> None:
        array = np.asarray(array, dtype=np.float64)
        whole = np.zeros((len(values), len(every), *array.shape[2:]))
        whole[:, [place[layer] for layer in those]] = array
        data[name] = ((label, "layer", *dims), whole)

    coords: dict[str, Any] = {label: np.array(values), "layer": every}
    if read is not None:
        heads = leaf.Heads(*of_heads)
        n_heads = model.sites.size("z", read.layers)["head"]
        coords["head"] = np.arange(n_heads)
        u = heads.u.reshape(len(values), len(read.layers), n_heads, -1)
        put("z", ("head", "head_dim"), read.layers, u)
        put("read", ("dim",), read.layers, heads.read)
        for name, array in (("z_bias", heads.bias), ("z_added", heads.added), ("read_bias", heads.read_bias)):
            put(name, (), read.layers, array)
        about |= read.about | {
            "head_sublayer": read.about["direction_sublayer"], "z_layers": read.layers,
            "residual": [part.residual for part in read.parts],
            "z_after": [layer for layer, has in zip(read.layers, heads.after, strict=True) if has],
            "z_reads": [layer for layer, has in zip(read.layers, heads.reads, strict=True) if has],
        }  # fmt: skip
        del about["direction_sublayer"]
    if units:
        beta, bias, added, normed = neurons
        coords["unit"] = np.arange(beta.shape[-1])
        for name, dims, array in (("neuron", ("unit",), beta), ("neuron_bias", (), bias), ("neuron_added", (), added)):
            put(name, dims, units, array)
        about |= {
            "neuron_layers": units,
            "neuron_after": [layer for layer, has in zip(units, normed, strict=True) if has],
        }
    result = xr.Dataset(
        data, coords,
        plain({"method": METHOD, "sign": "positive = the component raises the projection", "label": label, **about,
               **model.sites.identity, "directions_digest": disk.digest(directions)}),
    )  # fmt: skip
    return kept(result, out, PLACE)


def _at(model: LanguageModel, directions: xr.DataArray, site: str, layers: Any, needed: bool) -> list[int]:
    """Layers of a kind; none where the model lacks it and nobody named it."""
    if needed or (layers is None and model.sites.has(site)):
        return chosen_layers(model, [site], layers, directions, PLACE)
    if layers is None:
        return []
    asked = sorted(arguments.wholes(f"{PLACE}(layers)", layers))
    having = [layer for layer in asked if model.sites.has(site, layer)]
    return chosen_layers(model, [site], having, directions, PLACE) if having else []
