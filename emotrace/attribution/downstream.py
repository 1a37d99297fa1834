"""Downstream: the influence of sublayers as an expression over stored gradients. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments, provenance
from emotrace.attribution.files import kept
from emotrace.attribution.reference import local_directions
from emotrace.directions.groups import accepted_attrs, codes, counting
from emotrace.directions.source import Source, source
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.labels import GRADIENT, METRIC, EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.store import Activations

PLACE: Final = "gradient_influence"


@typed
def gradient_influence(
    acts: Activations,
    directions: xr.DataArray,
    *,
    label: str = "emotion",
    accepted: Iterable[str] | None = None,
    layers: Iterable[int] | int | None = None,
    out: str | Path | None = None,
) -> xr.Dataset:
    """`sublayer_influence` of stored gradients of a metric: its derivative along the direction of each residual.

    ::

        influence = mean over the prompts of e of ⟨d metric / d residual after the sublayer, v_e⟩, at the last prompt token

    The metric says what is read: with ``Projection(reference, layer=the last)`` and prompts that carry the label
    (``plain.for_each(emotion=…)``) it is what `sublayer_influence` computes. Summed in float64, in blocks of rows.

    Args:
        acts: of ``capture(model, prompts, ("resid_mid", "resid_post"), gradients=metric)``; in parallel models ``resid_post``.
        directions: ``[label, layer, sublayer, dim]``, of `emotrace.directions.centered_mean`.
        label: the dim of ``directions`` and label of the prompts.
        accepted: keys of the prompts that count; None for all.
        layers: 0-based; None for every layer that has directions and gradients.
        out: folder to save the result in, as ``influence``.

    Returns:
        As of `sublayer_influence`, without finite doses: ``influence, std [label, layer, sublayer]``, ``sigma [layer,
        sublayer]``, ``base, n [label]`` (mean of the metric, number of prompts). attrs name the store, its selection and plan.

    Raises:
        EmotraceError: for activations without gradients of the residual or without last prompt tokens, layers that either lacks,
            a label that prompts lack or that has no direction, or directions of another model.
    """
    if out is not None:
        to_folder(out)
    if f"residual{GRADIENT}" not in acts.variables or METRIC not in acts.variables:
        raise EmotraceError(
            f"{PLACE}: {acts.path} holds no gradients of the residual; capture resid_mid and resid_post with gradients=metric."
        )
    provenance.together(PLACE, acts=acts.attrs, directions=directions)
    if label not in directions.dims:
        raise unknown("label dim", label, directions.dims, f"{PLACE}(directions=…)")
    slopes, states = (source(acts, name, "last") for name in (f"residual{GRADIENT}", "residual"))
    chosen = _layers(slopes, directions, layers)
    without = [layer for layer in acts.attrs["layers_without_resid_mid"] if layer in chosen]
    local = local_directions(directions, chosen, without)
    places = [[str(s) for s in row] for row in local["read_at"].values]
    stored = slopes.array["sublayer"].values.tolist()
    lost = next((s for row in places for s in row if s not in stored), None)
    if lost is not None:
        raise EmotraceError(f"{PLACE}: {acts.path} holds no gradients of {lost!r}; capture that site.")
    if local.sizes["dim"] != slopes.shape[2]:
        raise EmotraceError(f"{PLACE}: the directions are {local.sizes['dim']} wide, the residual {slopes.shape[2]}.")
    values = local[label].values.tolist()
    keep = counting(slopes.table, accepted)
    rows = np.flatnonzero(keep)
    code = codes(slopes.table.iloc[rows], label, values, PLACE)
    n = np.bincount(code, minlength=len(values))
    total, square = np.zeros((2, len(values), len(chosen), 2))
    sigma = np.zeros((len(chosen), 2))
    v = local.transpose(label, "layer", "sublayer", "dim").values.astype(np.float64)
    for i, layer in enumerate(chosen):
        at = [stored.index(s) for s in places[i]]
        for part, g in slopes.blocks(_index(slopes, layer), rows):
            found = np.einsum("srd,rsd->rs", g[at], v[code[part], i])
            np.add.at(total[:, i], code[part], found)
            np.add.at(square[:, i], code[part], found**2)
        at = [states.array["sublayer"].values.tolist().index(s) for s in places[i]]
        for _, x in states.blocks(_index(states, layer), rows):
            sigma[i] += np.sqrt(np.square(x[at]).mean(-1)).sum(1)
    mean = total / n[:, None, None]
    base = np.bincount(
        code, weights=acts.sel(METRIC, position="last").values[rows].astype(np.float64), minlength=len(values)
    )
    dims = (label, "layer", "sublayer")
    data = {
        "influence": (dims, mean),
        "std": (dims, np.sqrt(np.maximum(square / n[:, None, None] - mean**2, 0.0))),
        "sigma": (dims[1:], sigma / len(rows)),
        "base": ((label,), base / n),
        "n": ((label,), n),
    }
    coords: dict[str, Any] = {name: local[name] for name in (label, "layer", "sublayer", "read_at", "flipped")}
    about = {
        "method": "sublayer_influence",
        "sign": "positive = more of the residual along its own direction raises the metric",
        "limit": "influence: exact derivative at dose 0, of stored gradients",
        "label": label, "readout": acts.attrs["gradients"], "position": "last", "n_prompts": len(rows),
        **accepted_attrs(slopes.table, keep), **slopes.provenance(),
    }  # fmt: skip
    result = xr.Dataset(data, coords, plain(about))
    return kept(result, out, "influence")


def _layers(slopes: Source, directions: xr.DataArray, layers: Iterable[int] | int | None) -> list[int]:
    """Layers that gradients and directions both have, or those asked for."""
    held, known = slopes.array["layer"].values.tolist(), np.atleast_1d(directions["layer"].values).tolist()
    both = [layer for layer in held if layer in known]
    chosen = both if layers is None else sorted(arguments.wholes(f"{PLACE}(layers)", layers))
    for layer in chosen:
        if layer not in both:
            raise unknown("layer", layer, both, f"{PLACE}: of gradients and directions")
    if not chosen:
        raise EmotraceError(f"{PLACE}: gradients of layers {held}, directions of {known}: none in common.")
    return chosen


def _index(rows: Source, layer: int) -> int:
    return rows.array["layer"].values.tolist().index(layer)
