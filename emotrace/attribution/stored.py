"""Stored: the scores of heads and neurons as expressions over stored activations and covectors. Pure: no model, no torch.

Rows are worked on in runs of whole prompts, so that memory is bounded by a run (or by the longest prompt); runs depend on the
rows alone, so a store and memory give the same bits. Products and sums of a few rows are float32, as the stored numbers are, but
for what norms take back; these are added up in float64. That is off by some 1e-7 of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

from emotrace.attribution import summed
from emotrace.attribution.chunked import (
    Reader,
    about,
    aligned,
    counted,
    require,
    require_norm,
    shared_layers,
)
from emotrace.attribution.files import kept
from emotrace.attribution.head_sums import Norms, Vectors, layer_sums
from emotrace.attribution.totals import SignedTotal, Total, weighed
from emotrace.files import to_folder
from emotrace.labels import unknown
from emotrace.store import Activations

VARIABLES = ("neuron", "neuron_pre")


def heads(
    acts: Activations,
    covectors: xr.Dataset,
    *,
    accepted: Iterable[str] | None = None,
    layers: Iterable[int] | int | None = None,
    out: str | Path | None = None,
) -> xr.Dataset:
    """`head_contributions` of stored activations.

    With u_h the covector of head h, q_h = z_h·u_h, ρ and ρ_h what a norm divides by with all heads and without h (variables that
    ``capture(…, components=True)`` stores)::

        no norm                                       importance = q_h
        a norm follows W_O       q_h ← t/ρ − (t − q_h)/ρ_h,   t = Σ_h q_h + c⟨x, b⟩
        a norm reads the sum     q_h ← m/ρ − (m − q_h)/ρ_h,   m = ⟨w, what it is given⟩
    """
    place = "head_contributions"
    if out is not None:
        to_folder(out)
    chosen = shared_layers(acts, covectors, "z", layers, place)
    names = aligned(acts, covectors, "z", "head", place)
    norms = [Norms.of(acts, covectors, layer, len(names), place) for layer in chosen]
    rows = counted(acts, covectors, accepted, place)
    values = covectors[covectors.attrs["label"]].values.tolist()
    n_labels, n_layers, n_heads = len(values), len(chosen), len(names)
    first = np.zeros((n_labels, n_labels, n_layers, n_heads))
    second = np.zeros((n_labels, n_layers, n_heads))
    baseline = np.zeros((n_labels, n_layers))
    for i, (layer, norm, vectors) in enumerate(zip(chosen, norms, Vectors.of(covectors, chosen, names), strict=True)):
        reads = Reader(acts, "z", norm.variables, layer, norm.residual)
        with np.errstate(over="ignore", invalid="ignore"):  # refused by `finite`
            found = layer_sums(reads, rows, vectors, norm)
        reads.finite(rows, *found)
        first[:, :, i], second[:, i], baseline[:, i] = found
    sums = {"first": first, "second": second}
    if all(norm.whole for norm in norms):
        sums["baseline"] = baseline
    attrs = {
        "method": f"{summed.HEADS}, mean over a prompt's rows",
        **about(acts, covectors, rows),
        "readout_site": covectors.attrs["readout_site"], "direction_sublayer": covectors.attrs["head_sublayer"],
        "readout": covectors.attrs["readout"], "post_norm": int(any(norm.after for norm in norms)),
    }  # fmt: skip
    result = summed.heads(sums, rows.n, summed.Axes(covectors.attrs["label"], values, chosen, names), attrs)
    return kept(result, out, "heads")


def neurons(
    acts: Activations,
    covectors: xr.Dataset,
    *,
    accepted: Iterable[str] | None = None,
    variable: str = "neuron",
    layers: Iterable[int] | int | None = None,
    out: str | Path | None = None,
) -> xr.Dataset:
    """`neuron_contributions` of stored activations."""
    place = "neuron_contributions"
    if out is not None:
        to_folder(out)
    if variable not in VARIABLES:
        raise unknown("variable", variable, VARIABLES, place)
    chosen = shared_layers(acts, covectors, "neuron", layers, place)
    names = aligned(acts, covectors, "neuron", "unit", place)
    others = [variable] if variable != "neuron" else []
    for name in others:
        require(acts, name, chosen, place)
    normed = [layer in covectors.attrs["neuron_after"] for layer in chosen]
    if any(normed):
        require_norm(
            acts, "neuron_norm", [layer for layer, has in zip(chosen, normed, strict=True) if has], "'neuron'", place
        )
    rows = counted(acts, covectors, accepted, place)
    values = covectors[covectors.attrs["label"]].values.tolist()
    shape = (len(values), len(chosen), len(names))
    found = ["positive", "negative", *(["raw"] if any(normed) else []), *(["activation"] if others else [])]
    sums = {name: np.zeros(shape) for name in found}
    shrink = np.zeros((len(values), sum(normed)))
    for i, layer in enumerate(chosen):
        reads = Reader(acts, "neuron", [*others, *(["neuron_norm"] if normed[i] else [])], layer, None)
        total = {name: Total(len(values), len(names)) for name in found[2:]}
        signed, inverse = SignedTotal(len(values), len(names)), Total(len(values), 1)
        with np.errstate(over="ignore", invalid="ignore"):  # refused by `finite`
            for run, read in reads.runs(rows):
                if others:
                    total["activation"].add(run, weighed(run, read[variable]))
                x = weighed(run, read["neuron"])
                if "raw" in total:
                    total["raw"].add(run, x)
                if normed[i]:
                    ratio = 1 / read["neuron_norm"]
                    x *= ratio
                    inverse.add(run, weighed(run, ratio))
                signed.add(run, x)
            high, low = signed.parts()
        reads.finite(rows, inverse.sums, high, low, *(one.sums for one in total.values()))
        sums["positive"][:, i], sums["negative"][:, i] = high, low
        for name, one in total.items():
            sums[name][:, i] = one.sums
        if normed[i]:
            shrink[:, sum(normed[:i])] = inverse.sums[:, 0]
    part = covectors.sel(layer=chosen, unit=names)
    order = (covectors.attrs["label"], "layer", "unit")
    weights = {
        "beta": part["neuron"].transpose(*order).values,
        "bias": part["neuron_bias"].transpose(*order[:2]).values,
        "added": part["neuron_added"].transpose(*order[:2]).values,
    }
    attrs = {
        "method": f"{summed.NEURONS}, mean over a prompt's rows",
        **about(acts, covectors, rows), "direction_sublayer": "resid_post", "readout_site": "mlp_out",
        "post_norm": int(any(normed)), "variable": variable,
    }  # fmt: skip
    axes = summed.Axes(order[0], values, chosen, names)
    result = summed.neurons({**sums, "shrink": shrink}, rows.n, weights, normed, axes, attrs)
    return kept(result, out, "neurons")
