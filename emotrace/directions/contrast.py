"""Contrast: texts of an emotion against neutral ones, coordinate by coordinate: difference, test, effect size, AUROC.

The arrays are never held whole: means and variances are streamed (`Moments`), block by block of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import scipy
import xarray as xr

from emotrace import arguments, provenance
from emotrace.directions.groups import accepted_attrs, counting, ordered
from emotrace.directions.moments import Moments
from emotrace.directions.source import ActivationsLike, Source, source
from emotrace.labels import NEUTRAL, EmotraceError, Label, Positions, unknown
from emotrace.signatures import typed
from emotrace.stats import fdr_bh
from emotrace.stats.ties import tied

STATISTICS = ("difference", "t", "df", "p", "q", "d")


@typed
def contrast(
    acts: ActivationsLike,
    label: str = "emotion",
    against: str = NEUTRAL,
    values: Sequence[str] | None = None,
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    *,
    variable: str = "residual",
) -> xr.Dataset:
    """Each value of a label against one other, for every layer and coordinate.

    With m, s², n the mean, unbiased variance and number of rows of the value (1) and of ``against`` (0)::

        difference = m1 − m0
        t  = difference / √(s1²/n1 + s0²/n0)                     Welch, two-sided p with Welch–Satterthwaite df
        d  = difference / √(((n1−1) s1² + (n0−1) s0²) / (n1 + n0 − 2))      Cohen, pooled
        q  = Benjamini–Hochberg over all coordinates of all layers of the value

    Where neither side varies there is no test: ``constant`` is true and t, p, q and d are NaN (not p = 0).

    Args:
        acts: labelled array or open activations; one row per text.
        label: what the rows are told apart by.
        against: the value on the negative side.
        values: those on the positive side; None for all others.
        accepted: keys of the rows to use (the part to fit on); None for all.
        position: policy or span; several rows of a text would count as several texts, so one position is meant.
        variable: which array of open activations.

    Returns:
        Dataset of ``difference, t, df, p, q, d, constant``, each ``[label, layer, (sublayer), dim]``, with the coordinate
        ``n`` (rows of each value) and ``n_against`` in attrs. Positive: more with the value than with ``against``.

    Raises:
        EmotraceError: for unknown labels or values, or fewer than two rows on a side.

    Source: the GoEmotions steering pipeline, which reports raw p alone.
    """
    rows = source(acts, variable, position)
    keep = counting(rows.table, accepted)
    sides = sides_of(rows, label, against, values, keep)
    names = tuple(name for name in sides if name != against)
    n_layers, n_sub, width = rows.shape
    out = {s: np.full((len(names), n_layers, n_sub, width), np.nan) for s in STATISTICS}
    for layer in range(n_layers):
        moments = {name: stream(rows, layer, used) for name, used in sides.items()}
        for i, name in enumerate(names):
            for s, found in _welch(moments[name], moments[against]).items():
                out[s][i, layer] = found
    constant = np.isnan(out["p"])
    for i in range(len(names)):
        if not constant[i].all():
            out["q"][i][~constant[i]] = fdr_bh(out["p"][i][~constant[i]])
    data = {}
    for s, found in (*out.items(), ("constant", constant)):
        data[s], _ = rows.label(found, label, {label: list(names)}, s)
    counts = {name: len(used) for name, used in sides.items()}
    return xr.Dataset(data).assign_coords(n=(label, [counts[name] for name in names])).assign_attrs(
        method="Welch t, Cohen d, Benjamini-Hochberg", sign=f"positive = more of this {label} than {against}",
        label=label, against=against, n_against=counts[against], variable=variable, **accepted_attrs(rows.table, keep),
        **rows.provenance(),
    )  # fmt: skip


@typed
def auroc(
    acts: ActivationsLike,
    vectors: xr.DataArray,
    label: str = "emotion",
    against: str = NEUTRAL,
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    *,
    variable: str = "residual",
) -> xr.DataArray:
    """How well the projection on each vector tells its rows from those of ``against``, at the layer of the vector.

    P(⟨h⁺, v⟩ > ⟨h⁻, v⟩) + ½ P(=), over all pairs of rows: 0.5 is chance, 1 a perfect order. Give rows that the vectors were not
    fitted on.

    Args:
        acts: labelled array or open activations.
        vectors: ``[label, layer, (sublayer), dim]``.
        label: of the vectors and rows.
        against: the value on the negative side.
        accepted: keys of the held-out rows; None for all.
        position: policy or span.
        variable: which array of open activations.

    Returns:
        ``auroc[label, layer, (sublayer)]`` with the coordinate ``n``.

    Raises:
        EmotraceError: for unknown labels, values or layers, or a side without rows.
    """
    rows = source(acts, variable, position)
    provenance.together("auroc", acts=rows.attrs, vectors=vectors)
    arguments.having("auroc(vectors=…)", vectors, label, "layer", "dim")
    names = [str(v) for v in vectors[label].values]
    keep = counting(rows.table, accepted)
    sides = sides_of(rows, label, against, names, keep, least=1)
    n_layers, n_sub, _ = rows.shape
    layers = rows.array["layer"].values.tolist() if "layer" in rows.array.dims else [None]
    subs = rows.array["sublayer"].values.tolist() if "sublayer" in rows.array.dims else [None]
    out = np.full((len(names), n_layers, n_sub), np.nan)
    for i, layer in enumerate(layers):
        if layer is not None and "layer" in vectors.dims and layer not in vectors["layer"].values:
            continue
        directions = np.stack([_vector(vectors, label, names, layer, s, rows.features) for s in subs])
        scores = {}
        for name, used in sides.items():
            scores[name] = np.concatenate(
                [np.einsum("sef,srf->ser", directions, x) for _, x in rows.blocks(i, used)], axis=-1
            )
        for e, name in enumerate(names):
            for s in range(n_sub):
                out[e, i, s] = rank_auroc(scores[name][s, e], scores[against][s, e])
    found, _ = rows.label(out, label, {label: names}, "auroc")
    found = found.assign_coords(n=(label, [len(sides[name]) for name in names]))
    found = found.assign_attrs(
        method="auroc", against=against, n_against=len(sides[against]), chance=0.5, **accepted_attrs(rows.table, keep),
        **rows.provenance(),
    )  # fmt: skip
    return found.sel(layer=vectors["layer"].values) if "layer" in found.dims and "layer" in vectors.dims else found


def rank_auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(x⁺ > x⁻) + ½ P(x⁺ = x⁻) by ranks: (R⁺ − n⁺(n⁺+1)/2) / (n⁺ n⁻), ties at their mean rank."""
    ranks = scipy.stats.rankdata(tied(np.concatenate([positive, negative])))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def stream(rows: Source, layer: int, used: np.ndarray) -> Moments:
    """Moments of some rows at one layer ``[sublayer, features]``, block by block."""
    moments = Moments.empty(*rows.shape[1:])
    for _, x in rows.blocks(layer, used):
        moments.update(x, axis=1)
    return moments


def _welch(a: Moments, b: Moments) -> dict[str, np.ndarray]:
    difference = a.mean - b.mean
    pooled = np.sqrt((a.squares + b.squares) / (a.n + b.n - 2))
    ua, ub = a.variance / a.n, b.variance / b.n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / np.sqrt(ua + ub)
        df = (ua + ub) ** 2 / (ua**2 / (a.n - 1) + ub**2 / (b.n - 1))
        p = 2 * scipy.stats.t.sf(np.abs(t), df)
        d = difference / pooled
    varies = (a.squares > 0) | (b.squares > 0)
    found = {"t": t, "df": df, "p": p, "d": d}
    return {"difference": difference, **{name: np.where(varies, x, np.nan) for name, x in found.items()}}


def sides_of(
    rows: Source, label: str, against: str, values: Sequence[str] | None, keep: np.ndarray, least: int = 2
) -> dict[str, np.ndarray]:
    """Row indices of every value and of ``against``, of the rows that count."""
    if label not in rows.table:
        raise unknown("label", label, rows.table.columns, "contrast")
    column = rows.table[label].to_numpy()
    known = ordered(v for v in column[keep].tolist() if v not in (None, ""))
    if isinstance(values, str):
        raise EmotraceError(f"values={values!r} takes a list of names, e.g. [{values!r}].")
    names = [v for v in known if v != against] if values is None else list(values)
    sides = {}
    for name in (*names, against):
        if name not in known:
            raise unknown(label, name, known, "contrast")
        sides[name] = np.flatnonzero(keep & (column == name))
        if len(sides[name]) < least:
            raise EmotraceError(f"{label} {name!r} has {len(sides[name])} row(s); a contrast needs {least} or more.")
    if against in names or not names:
        raise EmotraceError(f"contrast: nothing but {against!r} against {against!r}.")
    return sides


def _vector(
    vectors: xr.DataArray,
    label: str,
    names: Sequence[str],
    layer: Label | None,
    sublayer: Label | None,
    features: tuple[str, ...],
) -> np.ndarray:
    """``[label, features]`` in float64 at one place."""
    at = {d: v for d, v in (("layer", layer), ("sublayer", sublayer)) if v is not None and d in vectors.dims}
    if "sublayer" in at and sublayer not in vectors["sublayer"].values:
        raise unknown("sublayer", sublayer, vectors["sublayer"].values.tolist(), "auroc")
    picked = vectors.sel({label: list(names), **at}).transpose(label, *features)
    return picked.values.reshape(len(names), -1).astype(np.float64)
