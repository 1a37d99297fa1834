"""Vectors: one interface over the ways to make a vector of an emotion from labelled activations.

All of them return an axis at the length that moves the mean of the neutral rows onto that of the emotion's along it, so
that strength 1 means the same for every method.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
import scipy
import xarray as xr

from emotrace.directions.axes import pca
from emotrace.directions.contrast import sides_of, stream
from emotrace.directions.estimate import labelled
from emotrace.directions.groups import accepted_attrs, counting
from emotrace.directions.selectors import without
from emotrace.directions.source import ActivationsLike, Source, source
from emotrace.labels import NEUTRAL, EmotraceError, Positions, unknown
from emotrace.signatures import typed

Method = Literal["difference", "pca", "lat", "probe"]
METHODS: Final = ("difference", "pca", "lat", "probe")


@typed
def vectors(
    acts: ActivationsLike,
    method: Method = "difference",
    *,
    label: str = "emotion",
    against: str = NEUTRAL,
    values: Sequence[str] | None = None,
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    within: str | None = None,
    remove_neutral: int = 0,
    penalty: float = 1.0,
    seed: int = 0,
    variable: str = "residual",
) -> xr.DataArray:
    """A vector for each value of a label against one other.

    With Δ = mean of the value − mean of ``against`` at one layer, v = ⟨Δ, a⟩ a for a unit axis a::

        difference   a = Δ / ‖Δ‖, so v = Δ
        pca          first principal component of both sides around the midpoint of their means, each side with equal weight
        lat          first principal component (not centred) of the differences of pairs (linear artificial tomography,
                     arXiv 2310.01405): pairs share ``within``, or are drawn at random
        probe        normal of a logistic regression on standardised coordinates, taken back to those of the model

    Args:
        acts: labelled array or open activations; one row per text.
        method: ``difference``, ``pca``, ``lat`` or ``probe``.
        label: what the vectors are of.
        against: the value on the negative side.
        values: those on the positive side; None for all others.
        accepted: keys of the rows to fit on; None for all.
        position: policy or span.
        within: for ``lat``: the label that the two rows of a pair share.
        remove_neutral: project out so many first principal components of the rows of ``against``; 0 for none.
        penalty: for ``probe``: C of scikit-learn's regression, the inverse of the L2 penalty.
        seed: of the random pairs.
        variable: which array of open activations.

    Returns:
        ``vector[label, layer, (sublayer), dim]`` float32 with the coordinates ``norm`` and ``n``. Positive: more of the value.

    Raises:
        EmotraceError: for unknown labels, values or methods, fewer than two rows on a side, no pair, or rows without
            variance.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS, "vectors")
    if within is not None and method != "lat":
        raise EmotraceError(f"vectors(method={method!r}, within={within!r}): only 'lat' takes pairs.")
    rows = source(acts, variable, position)
    keep = counting(rows.table, accepted)
    sides = sides_of(rows, label, against, values, keep)
    names = tuple(name for name in sides if name != against)
    rng = np.random.default_rng(seed)
    pairs = {name: _pairs(rows, sides[name], sides[against], within, rng) for name in names} if method == "lat" else {}
    n_layers, n_sub, width = rows.shape
    out, scale = np.zeros((len(names), n_layers, n_sub, width)), np.zeros((n_layers, n_sub))
    for layer in range(n_layers):
        moments = {name: stream(rows, layer, used) for name, used in sides.items()}
        scale[layer] = np.sqrt(np.mean([(m.mean**2).sum(-1) for m in moments.values()], axis=0))
        neutral = None if method == "difference" else _whole(rows, layer, sides[against])
        for e, name in enumerate(names):
            delta = moments[name].mean - moments[against].mean
            if neutral is None:
                out[e, layer] = delta
                continue
            mine = _whole(rows, layer, sides[name])
            for sub in range(n_sub):
                if method == "pca":
                    axis = _pooled_axis(mine[sub], neutral[sub])
                elif method == "lat":
                    a, b = pairs[name]
                    axis = _axis(mine[sub][a] - neutral[sub][b], rows.place(layer, sub))
                else:
                    axis = _probe(mine[sub], neutral[sub], penalty, rows.place(layer, sub))
                out[e, layer, sub] = (delta[sub] @ axis) * axis
    found = labelled(
        rows,
        out,
        scale,
        outer=(label, names),
        unit=False,
        attrs={
            "method": method,
            "sign": f"positive = more of this {label} than {against}",
            "label": label,
            "against": against,
            "variable": variable,
            "n_against": len(sides[against]),
            **accepted_attrs(rows.table, keep),
            **({"penalty": penalty} if method == "probe" else {}),
            **({"within": within or "random pairs", "seed": seed} if method == "lat" else {}),
        },
        position=position,
    ).assign_coords(n=(label, [len(sides[name]) for name in names]))
    if not remove_neutral:
        return found
    own = rows.table["key"].iloc[sides[against]].tolist() if "key" in rows.table else None
    if own is None:
        raise EmotraceError("vectors(remove_neutral=…) needs rows with a 'key'.")
    return without(found, pca(acts, None, own, position, k=remove_neutral, variable=variable))


def _whole(rows: Source, layer: int, used: np.ndarray) -> np.ndarray:
    """Some rows of one layer ``[sublayer, row, features]``."""
    return np.concatenate([x for _, x in rows.blocks(layer, used)], axis=1)


def _axis(x: np.ndarray, place: str) -> np.ndarray:
    """The unit axis of largest mean square of the rows."""
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    value, vector = scipy.linalg.eigh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1])
    if value[0] <= 1e-12 * max(float(np.trace(gram)), 1e-300) or not np.isfinite(value[0]):
        raise EmotraceError(f"the rows at {place} do not vary, so they have no axis.")
    axis = x.T @ vector[:, 0] if wide else vector[:, 0]
    return axis / np.linalg.norm(axis)


def _pooled_axis(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    middle = (a.mean(0) + b.mean(0)) / 2
    return _axis(np.concatenate([(a - middle) / np.sqrt(len(a)), (b - middle) / np.sqrt(len(b))]), "this layer")


def _probe(a: np.ndarray, b: np.ndarray, penalty: float, place: str) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([a, b])
    spread = x.std(0)
    varies = spread > 1e-12 * np.abs(x).max()
    if not varies.any():
        raise EmotraceError(f"the rows at {place} do not vary, so they have no axis.")
    z = np.where(varies, (x - x.mean(0)) / np.where(varies, spread, 1.0), 0.0)
    # balanced: neutral texts are often ten times as many
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(z, np.repeat([1, 0], [len(a), len(b)]))
        except ConvergenceWarning as error:
            raise EmotraceError(f"the probe at {place} did not converge; a smaller penalty= (C) helps.") from error
    normal = np.where(varies, model.coef_[0] / np.where(varies, spread, 1.0), 0.0)
    return normal / np.linalg.norm(normal)


def _pairs(
    rows: Source, mine: np.ndarray, neutral: np.ndarray, within: str | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Places in ``mine`` and in ``neutral`` of the rows that are compared."""
    if within is None:
        n = min(len(mine), len(neutral))
        return rng.permutation(len(mine))[:n], rng.permutation(len(neutral))[:n]
    if within not in rows.table:
        raise unknown("label", within, rows.table.columns, "vectors(within=…)")
    column = rows.table[within].to_numpy()
    at: dict[Any, list[int]] = {}
    for i, row in enumerate(neutral):
        at.setdefault(column[row], []).append(i)
    found = [(i, j) for i, row in enumerate(mine) for j in at.get(column[row], ())]
    if not found:
        raise EmotraceError(f"vectors(within={within!r}): no row shares it with one of the other side.")
    first, second = zip(*found, strict=True)
    return np.array(first), np.array(second)
