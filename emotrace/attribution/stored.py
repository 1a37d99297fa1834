"""Stored: the scores of heads and neurons as expressions over stored activations and covectors. Pure: no model, no torch.

Everything is float64 in blocks of rows, whole prompts each, so that memory is bounded by a block (or by the longest prompt); the
blocks depend on the rows alone, so a store and memory give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace.attribution import summed
from emotrace.attribution.chunked import Reader, about, aligned, counted, has, require, require_norm, shared_layers
from emotrace.attribution.files import save_scores
from emotrace.files import to_folder
from emotrace.labels import EmotraceError, unknown
from emotrace.store import Activations

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
    """`head_contributions` of stored activations, which says what it is.

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
    for i, (layer, norm) in enumerate(zip(chosen, norms, strict=True)):
        vectors = _Vectors.of(covectors, layer, names)
        reads = Reader(acts, "z", norm.variables, layer, norm.residual)
        for part, read in reads.blocks(rows):
            z = read["z"].reshape(len(read["z"]), n_heads, -1)
            q = np.matmul(z.transpose(1, 0, 2), vectors.u)
            importance, s = _importance(q, vectors, norm, read)
            code, own = rows.code[part], rows.own[:, part]
            first[:, :, i] += np.matmul(own, importance).transpose(1, 2, 0)
            mine = importance[:, np.arange(len(code)), code] * rows.weight[part]
            starts = rows.starts[(rows.starts >= part.start) & (rows.starts < part.stop)] - part.start
            means = np.add.reduceat(mine, starts, axis=1)
            for label in range(n_labels):
                second[label, i] += np.square(means[:, code[starts] == label]).sum(1)
            if s is not None:
                baseline[:, i] += own @ s[np.arange(len(code)), code]
    sums = {"first": first, "second": second}
    if all(norm.whole for norm in norms):
        sums["baseline"] = baseline
    attrs = {
        "method": "head contribution: projection minus projection without the head, same layer, mean over a prompt's rows",
        **about(acts, covectors, rows),
        "readout_site": covectors.attrs["readout_site"], "direction_sublayer": covectors.attrs["head_sublayer"],
        "readout": covectors.attrs["readout"], "post_norm": int(any(norm.after for norm in norms)),
    }  # fmt: skip
    result = summed.heads(sums, rows.n, covectors.attrs["label"], values, chosen, attrs, names)
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
    """`neuron_contributions` of stored activations, which says what it is."""
    place = "neuron_contributions"
    if out is not None:
        to_folder(out)
    if variable not in ("neuron", "neuron_pre"):
        raise unknown("variable", variable, ("neuron", "neuron_pre"), place)
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
        for part, read in Reader(acts, "neuron", wanted, layer, None).blocks(rows):
            x, own = read["neuron"], rows.own[:, part]
            if "raw" in sums:
                sums["raw"][:, i] += own @ x
            if normed[i]:
                ratio = 1 / read["neuron_norm"]
                shrink[:, sum(normed[:i])] += own @ ratio[:, 0]
                x = x * ratio
            high = np.maximum(x, 0)
            sums["positive"][:, i] += own @ high
            sums["negative"][:, i] += own @ np.subtract(x, high, out=high)  # min(x, 0), exactly
            if others:
                sums["activation"][:, i] += own @ read[variable]
    part = covectors.sel(layer=chosen, unit=names)
    order = (covectors.attrs["label"], "layer", "unit")
    weights = {
        "beta": part["neuron"].transpose(*order).values,
        "bias": part["neuron_bias"].transpose(*order[:2]).values,
        "added": part["neuron_added"].transpose(*order[:2]).values,
    }
    attrs = {
        "method": "neuron contribution: activation × ⟨what one unit of it writes, direction⟩, mean over a prompt's rows",
        **about(acts, covectors, rows), "direction_sublayer": "resid_post", "readout_site": "mlp_out",
        "post_norm": int(any(normed)), "variable": variable,
    }  # fmt: skip
    result = summed.neurons({**sums, "shrink": shrink}, rows.n, weights, normed, order[0], values, chosen, attrs, names)
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
        if there and "dim" in acts.cut("residual"):
            raise EmotraceError(f"{place}: the residual is narrowed along 'dim'; it is read whole.")
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
    read: np.ndarray
    read_bias: np.ndarray

    @classmethod
    def of(cls, covectors: xr.Dataset, layer: int, names: np.ndarray) -> _Vectors:
        """Of these heads."""
        u = covectors["z"].sel(layer=layer, head=names).transpose("head", "head_dim", ...).values
        read = covectors["read"].sel(layer=layer).transpose("dim", ...).values
        bias, added, read_bias = (covectors[n].sel(layer=layer).values for n in ("z_bias", "z_added", "read_bias"))
        return cls(np.ascontiguousarray(u), bias, added, np.ascontiguousarray(read), read_bias)


def _importance(q: np.ndarray, vectors: _Vectors, norm: Norms, read: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
    """Importance ``[head, row, label]`` and s(r) ``[row, label]`` of a block; None for an s(r) that is not known."""
    total = None
    if norm.after or norm.residual == "resid_pre" or norm.residual is None:
        total = q.sum(0) + vectors.bias
    if norm.after:
        size, without = read["z_norm"], read["z_norm_without"]
        q = total / size - (total - q) / without.T[:, :, None]
        total = total / size + vectors.added
    along = total
    if norm.residual is not None:
        along = read[norm.residual] @ vectors.read
        along = along if norm.residual == "resid_mid" else along + total
    if norm.reads:
        assert along is not None
        size, without = read["mid_norm"], read["mid_norm_without"]
        q = along / size - (along - q) / without.T[:, :, None]
        along = along / size + vectors.read_bias
    return q, along if norm.whole else None
