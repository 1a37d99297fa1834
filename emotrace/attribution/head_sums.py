"""Head sums: what the importance of the heads of one layer adds up to over prompts, of stored activations and covectors. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from emotrace.attribution.chunked import (
    CountedRows,
    Reader,
    RowRun,
    has,
    require_norm,
    require_whole,
)
from emotrace.attribution.totals import Total, weighed
from emotrace.labels import EmotraceError
from emotrace.store import Activations

READOUTS = ("residual", "normed")
Z_NORM = ("z_norm", "z_norm_without")
MID_NORM = ("mid_norm", "mid_norm_without")


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


class Vectors(NamedTuple):
    """The covectors of one layer's heads: ``u [head, head_dim, label]``, ``read [dim, label]``, the others ``[label]``."""

    u: np.ndarray
    bias: np.ndarray
    added: np.ndarray
    read_bias: np.ndarray
    read: np.ndarray

    def products(self, z: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
        """Scalar products of rows ``[row, head · head_dim]`` with the covectors: ``[head, row, label]``."""
        return np.matmul(z.reshape(len(z), len(self.u), -1).transpose(1, 0, 2), self.u.astype(dtype))

    @classmethod
    def of(cls, covectors: xr.Dataset, layers: list[int], names: np.ndarray) -> list[Vectors]:
        """Of these heads, layer by layer."""
        part = covectors.sel(layer=layers, head=names)
        u = part["z"].transpose("layer", "head", "head_dim", ...).values
        read = part["read"].transpose("layer", "dim", ...).values
        biases = (part[name].transpose("layer", ...).values for name in ("z_bias", "z_added", "read_bias"))
        columns = (u, *biases, read)
        return [cls(*(np.ascontiguousarray(column[i]) for column in columns)) for i in range(len(layers))]


class LayerSums(NamedTuple):
    """Over the prompts of a layer: Σ importance ``[label of prompt, label of direction, head]``, Σ importance² on the own label
    ``[label, head]``, Σ s(r) on it ``[label]``."""

    first: np.ndarray
    second: np.ndarray
    baseline: np.ndarray


def layer_sums(reads: Reader, rows: CountedRows, vectors: Vectors, norm: Norms) -> LayerSums:
    """Run by run; without norms s(r) is linear, and that of sums."""
    n_labels, n_heads = len(rows.n), len(vectors.u)
    first, second = np.zeros((n_labels, n_labels, n_heads)), np.zeros((n_labels, n_heads))
    baseline, residual = np.zeros(n_labels), Total(n_labels, len(vectors.read))
    for run, read in reads.runs(rows):
        each = np.arange(len(run.code))
        if norm.variables:
            importance, along = _behind_norms(read, vectors, norm)
            baseline += (run.shares * along.T).sum(1)
        else:
            importance = vectors.products(read["z"], np.float32)
            if norm.residual is not None:
                residual.add(run, weighed(run, read[norm.residual]))
        first += np.matmul(run.shares, importance.astype(np.float64, copy=False)).transpose(1, 2, 0)
        second += _squares(run, importance[:, each, run.code])
    if not norm.variables:
        baseline = (residual.sums * vectors.read.T).sum(1)
        if norm.residual != "resid_mid":
            baseline += np.einsum("eeh->e", first) + vectors.bias * rows.n
    return LayerSums(first, second, baseline)


def _squares(run: RowRun, own: np.ndarray) -> np.ndarray:
    """Σ over the prompts of each label of the square of the mean of their rows ``[head, row]``: ``[label, head]``."""
    own = own.astype(np.float64, copy=False)
    if run.weight is None:
        return np.matmul(run.shares, (own * own).T)
    mean = np.add.reduceat(own * run.weight, run.starts, axis=1)
    return np.matmul(run.shares[:, run.starts] > 0, (mean * mean).T)


def _behind_norms(values: dict[str, np.ndarray], vectors: Vectors, norm: Norms) -> tuple[np.ndarray, np.ndarray]:
    """Importance ``[head, row, label]`` and s(r) ``[row, label]``: float64, since large numbers are taken from each other."""
    values = {name: x.astype(np.float64) for name, x in values.items()}
    q = vectors.products(values["z"], np.float64)
    total = q.sum(0) + vectors.bias
    if norm.after:
        size, without = (values[name] for name in Z_NORM)
        q = total / size - (total - q) / without.T[:, :, None]
        total = total / size + vectors.added
    along = np.zeros_like(total) if norm.residual == "resid_mid" else total
    if norm.residual is not None:
        along = along + values[norm.residual] @ vectors.read
    if norm.reads:
        size, without = (values[name] for name in MID_NORM)
        q = along / size - (along - q) / without.T[:, :, None]
        along = along / size + vectors.read_bias
    return q, along
