"""Stored: the scores of heads and neurons as expressions over stored activations and covectors. Pure: no model, no torch.

Rows are worked on in runs of whole prompts, so that memory is bounded by a run (or by the longest prompt); runs depend on the
rows alone, so a store and memory give the same bits. Products and sums of a run are float32, as the stored numbers are, but for
what norms take back; runs are added up in float64. That is off by some 1e-7 of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from emotrace.attribution import summed
from emotrace.attribution.chunked import (
    Reader,
    about,
    aligned,
    counted,
    has,
    require,
    require_norm,
    require_whole,
    shared_layers,
)
from emotrace.attribution.files import save_scores
from emotrace.files import to_folder
from emotrace.labels import EmotraceError, unknown
from emotrace.store import Activations

VARIABLES = ("neuron", "neuron_pre")
READOUTS = ("residual", "normed")
Z_NORM = ("z_norm", "z_norm_without")
MID_NORM = ("mid_norm", "mid_norm_without")


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
    for i, (layer, norm, vectors) in enumerate(zip(chosen, norms, _Vectors.of(covectors, chosen, names), strict=True)):
        reads = Reader(acts, "z", norm.variables, layer, norm.residual)
        with np.errstate(over="ignore", invalid="ignore"):  # refused by `finite`
            for run, read in reads.runs(rows):
                importance, s = _importance(read, vectors, norm)
                here = np.arange(len(run.code)), run.code
                first[:, :, i] += reads.finite(run.rows, np.matmul(run.own, importance)).transpose(1, 2, 0)
                means = np.add.reduceat(importance[:, *here] * run.weight, run.starts, axis=1)
                second[:, i] += (run.own[:, run.starts] > 0) @ np.square(means).T
                baseline[:, i] += reads.finite(run.rows, run.own @ s[here])
                if norm.residual is not None and not norm.reads:  # linear: of sums
                    baseline[:, i] += (reads.total(run, reads.ordered(run, read[norm.residual])) * vectors.read.T).sum(
                        1
                    )
    sums = {"first": first, "second": second}
    if all(norm.whole for norm in norms):
        sums["baseline"] = baseline
    attrs = {
        "method": f"{summed.HEADS}, mean over a prompt's rows",
        **about(acts, covectors, rows),
        "readout_site": covectors.attrs["readout_site"], "direction_sublayer": covectors.attrs["head_sublayer"],
        "readout": covectors.attrs["readout"], "post_norm": int(any(norm.after for norm in norms)),
    }  # fmt: skip
    result = summed.heads(
        sums, rows.n, label=covectors.attrs["label"], values=values, layers=chosen, about=attrs, names=names
    )
    if out is not None:
        save_scores(result, out, "heads")
    return result


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
        wanted = [*others, *(["neuron_norm"] if normed[i] else [])]
        reads = Reader(acts, "neuron", wanted, layer, None)
        for run, read in reads.runs(rows):
            if others:
                sums["activation"][:, i] += reads.total(run, reads.ordered(run, read[variable]))
            x = reads.ordered(run, read["neuron"])
            if "raw" in sums:
                sums["raw"][:, i] += reads.total(run, x)
            if normed[i]:
                ratio = 1 / read["neuron_norm"][run.order]
                shrink[:, sum(normed[:i])] += reads.total(run, ratio)[:, 0]
                x *= ratio
            total, size = reads.total(run, x), reads.total(run, np.abs(x, out=x))
            high = np.maximum((size + total) / 2, np.maximum(total, 0))  # never of the wrong sign by rounding
            sums["positive"][:, i] += high
            sums["negative"][:, i] += total - high
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
    result = summed.neurons(
        {**sums, "shrink": shrink},
        rows.n,
        weights,
        normed,
        label=order[0],
        values=values,
        layers=chosen,
        about=attrs,
        names=names,
    )
    if out is not None:
        save_scores(result, out, "neurons")
    return result


class Norms(NamedTuple):
    """What stands between the heads of one layer and what is read.

    Attributes:
        after: whether a norm follows W_O.
        reads: whether a norm reads the sum.
        residual: the stored sublayer that the sum is, or begins with; None where it is what the heads write, or is not stored.
        whole: whether s(r) follows from what is stored.
    """

    after: bool
    reads: bool
    residual: str | None
    whole: bool

    @property
    def variables(self) -> list[str]:
        """What is read beside z."""
        return [*Z_NORM[: 2 * self.after], *MID_NORM[: 2 * self.reads]]

    @classmethod
    def of(cls, acts: Activations, covectors: xr.Dataset, layer: int, n_heads: int, place: str) -> Norms:
        """Of one layer, after a look at whether the activations hold what it needs."""
        after, reads = (layer in covectors.attrs[name] for name in ("z_after", "z_reads"))
        site = covectors.attrs["residual"][covectors.attrs["z_layers"].index(layer)]
        there = site is not None and has(acts, site, layer)
        if there:
            require_whole(acts, "residual", ("dim",), place)
        for needed, names in ((after, Z_NORM), (reads, MID_NORM)):
            for name in names if needed else ():
                require_norm(acts, name, [layer], f"'{site}' and 'z'" if reads else "'z'", place)
        if reads and not there:
            raise EmotraceError(
                f"{place}: a norm reads {site} of layer {layer}, which {acts.path} does not hold; capture {site!r} and 'z' with "
                "components=True."
            )
        if (after or site == "resid_pre") and n_heads < covectors.sizes["head"]:
            raise EmotraceError(
                f"{place}: in layer {layer} a norm takes all heads together, so they cannot be narrowed to some."
            )
        every = n_heads == covectors.sizes["head"]
        return cls(after, reads, site if there else None, there or (site is None and every))


class _Vectors(NamedTuple):
    """The covectors of one layer's heads: ``u [head, head_dim, label]``, ``read [dim, label]``, the others ``[label]``."""

    u: np.ndarray
    bias: np.ndarray
    added: np.ndarray
    read_bias: np.ndarray
    read: np.ndarray

    @classmethod
    def of(cls, covectors: xr.Dataset, layers: list[int], names: np.ndarray) -> list[_Vectors]:
        """Of these heads, layer by layer."""
        part = covectors.sel(layer=layers, head=names)
        u = part["z"].transpose("layer", "head", "head_dim", ...).values
        read = part["read"].transpose("layer", "dim", ...).values
        biases = (part[name].transpose("layer", ...).values for name in ("z_bias", "z_added", "read_bias"))
        columns = (u, *biases, read)
        return [cls(*(np.ascontiguousarray(column[i]) for column in columns)) for i in range(len(layers))]


def _importance(values: dict[str, np.ndarray], vectors: _Vectors, norm: Norms) -> tuple[np.ndarray, np.ndarray]:
    """Importance ``[head, row, label]`` and s(r) ``[row, label]`` of a run, the latter without a residual that no norm reads.

    Products are float32, behind norms, where large numbers are taken from each other, float64.
    """
    kind = np.float64 if norm.variables else np.float32
    z = values["z"].reshape(len(values["z"]), len(vectors.u), -1).astype(kind, copy=False)
    q = np.matmul(z.transpose(1, 0, 2), vectors.u.astype(kind)).astype(np.float64)
    total = q.sum(0) + vectors.bias
    if norm.after:
        size, without = (values[name].astype(np.float64) for name in Z_NORM)
        q = total / size - (total - q) / without.T[:, :, None]
        total = total / size + vectors.added
    along = np.zeros_like(total) if norm.residual == "resid_mid" else total
    if norm.reads:
        along = along + values[str(norm.residual)].astype(np.float64) @ vectors.read
        size, without = (values[name].astype(np.float64) for name in MID_NORM)
        q = along / size - (along - q) / without.T[:, :, None]
        along = along / size + vectors.read_bias
    return q, along
