"""Agnosticism: does a direction found in some contexts hold in the others?

Leave one theme (or valence, or any label) out, fit on the rest, compare with what the one left out gives by itself, and classify
what was left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from emotrace.directions.groups import Groups, Within, group, ordered
from emotrace.directions.halves import cosines, halved, other_contexts
from emotrace.directions.source import ActivationsLike, Source, source
from emotrace.labels import EmotraceError, Positions, unknown
from emotrace.signatures import typed
from emotrace.stats import bootstrap_ci, cluster_weights

BOUND = ("lo", "hi")


@typed
def context_agnosticism(
    acts: ActivationsLike,
    label: str = "emotion",
    *,
    within: Within = ("skeleton_id", "valence"),
    leave_out: Sequence[str] = ("theme", "valence"),
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    cluster: str = "skeleton_id",
    n_bootstrap: int = 200,
    n_null: int = 20,
    level: float = 0.95,
    seed: int = 0,
    variable: str = "residual",
) -> xr.Dataset:
    """Leave-one-context-out accuracy and cosine of centred-mean directions, with intervals and nulls beside.

    For each level t of each factor in ``leave_out``, v_{−t} is the centred mean of the complete groups outside t, v_t that of
    those inside. *Accuracy*: for each cell (group, label) inside t, the answer argmax_e ⟨d, v_{−t,e}⟩, where d is the cell's mean
    minus its group's mean (``accuracy``; knows which rows belong together) or minus the mean of the *training* cells
    (``accuracy_raw``; knows nothing of the held-out context). Chance is 1 / number of labels.
    *Cosine*: ⟨v_{−t,e}, v_{t,e}⟩ of two directions that have no row in common. Both are noisy, v_t the more the fewer groups it
    has, so it is below 1 even where context does not matter: ``cosine_random_context`` is what random contexts give that have as
    many groups as the true ones (clusters shuffled over the levels; where a cluster has several levels, levels shuffled within
    each). A cosine below that says that context matters.

    Intervals: cosines by re-fitting on bootstrap draws of the clusters, as atanh(cosine) ± z·s with s the standard deviation
    of the draws (a percentile interval of a cosine near one lies below it); accuracies by the cluster bootstrap of
    the held-out answers, the directions kept (`stats.bootstrap_ci`, Wilson where nothing varies).
    Null: labels permuted within every group, then everything again.

    Args:
        acts: labelled array or open activations.
        label: what the directions are of.
        within: the labels that make a group; only complete groups are used.
        leave_out: labels whose levels are left out, one at a time; each constant within a group.
        accepted: keys of the accepted replies; None for all.
        position: policy or span.
        cluster: the label that the bootstrap draws.
        n_bootstrap: draws.
        n_null: permutations, and random contexts; at least 20 for a fair maximum.
        level: coverage of the intervals.
        seed: of draws and permutations.
        variable: which array of open activations.

    Returns:
        Dataset: ``cosine[held_out, emotion, layer, sublayer]``, ``accuracy_by_level`` and ``accuracy_raw_by_level``
        ``[held_out, layer, sublayer]``, ``accuracy`` and ``accuracy_raw`` ``[factor, layer, sublayer]``, each with
        ``…_ci[…, bound]``; ``null_mean`` and ``null_max`` (and ``…_raw``) ``[factor, layer, sublayer]``; in the shape of
        ``cosine``, ``cosine_random_context`` and, of shuffled labels, ``cosine_null_mean`` and ``cosine_null_max``;
        ``n_groups[held_out]``.
        ``held_out`` reads ``theme=Work/Job`` and has the coordinates ``held_out_factor`` and ``held_out_level``.

    Raises:
        EmotraceError: for unknown labels, a factor with fewer than two levels or not constant within groups, or a
            direction of norm zero.
    """
    rows = source(acts, variable, position)
    groups = group(rows.table, label, within, accepted)
    factors = [leave_out] if isinstance(leave_out, str) else list(leave_out)
    if n_null < 1 or not factors:
        raise EmotraceError(f"context_agnosticism(leave_out={factors}, n_null={n_null}): both need at least one.")
    levels, codes = zip(*(_factor(rows.table, groups, f, least=2) for f in factors), strict=True)
    _, clusters = _factor(rows.table, groups, cluster)
    weights = cluster_weights(int(clusters.max()) + 1, n_bootstrap, seed)
    rng = np.random.default_rng(seed)
    n_groups, n_labels = len(groups.names), len(groups.labels)
    shuffles = rng.permuted(np.broadcast_to(np.arange(n_labels), (n_null, n_groups, n_labels)), axis=2)
    n_layers, n_sub, _ = rows.shape
    total = sum(map(len, levels))
    others = [other_contexts(code, clusters, n_null, rng) for code in codes]
    cosine, spread, shuffled_mean, shuffled_max, elsewhere = np.empty((5, total, n_labels, n_layers, n_sub))
    hits = np.empty((2, len(factors), n_groups, n_layers, n_sub))
    null = np.empty((2, n_null, len(factors), n_layers, n_sub))
    for layer, sub, cells in cell_means(rows, groups):
        mean = cells.mean(1)
        inner = cells - mean[:, None]
        full = inner.sum(0)
        if (np.linalg.norm(full, axis=-1) <= 1e-12 * np.sqrt((cells**2).sum(-1)).sum()).any():
            raise EmotraceError(f"a direction at {rows.place(layer, sub)} has norm zero. Leave that place out.")
        start = 0
        for f, code in enumerate(codes):
            stop = start + len(levels[f])
            here = (slice(start, stop), slice(None), layer, sub)
            cosine[here], spread[here] = cosines(inner, code, clusters, weights)
            elsewhere[here] = np.mean([halved(inner, other) for other in others[f]], axis=0)
            by_chance = np.empty((n_null, stop - start, n_labels))
            hits[:, f, :, layer, sub] = _held_out(inner, mean, code)
            for i, order in enumerate(shuffles):
                shuffled = np.take_along_axis(inner, order[:, :, None], axis=1)
                null[:, i, f, layer, sub] = _held_out(shuffled, mean, code).mean(-1)
                by_chance[i] = halved(shuffled, code)
            shuffled_mean[here], shuffled_max[here] = by_chance.mean(0), by_chance.max(0)
            start = stop
    z = float(scipy.special.ndtri((1 + level) / 2)) * spread
    bounds = np.tanh(np.arctanh(np.clip(cosine, -1 + 1e-15, 1 - 1e-15)) + np.stack([-z, z]))
    held = [f"{f}={v}" for f, vs in zip(factors, levels, strict=True) for v in vs]
    lead = rows.lead
    sizes = [int(rows.array.sizes[d]) for d in lead]
    out = xr.Dataset(
        coords={
            "held_out": held,
            "held_out_factor": ("held_out", [f for f, vs in zip(factors, levels, strict=True) for _ in vs]),
            "held_out_level": ("held_out", [str(v) for vs in levels for v in vs]),
            label: np.array(groups.labels),
            "factor": factors,
            "bound": list(BOUND),
            **{d: rows.array[d].values for d in lead if d in rows.array.coords},
            **{d: rows.array[d].values for d in ("layer", "sublayer") if d not in lead and d in rows.array.coords},
        }
    )
    for name, values in (
        ("cosine", cosine), ("cosine_random_context", elsewhere), ("cosine_null_mean", shuffled_mean),
        ("cosine_null_max", shuffled_max),
    ):  # fmt: skip
        out[name] = (("held_out", label, *lead), values.reshape(total, n_labels, *sizes))
    both = np.moveaxis(bounds, 0, -1).reshape(total, n_labels, *sizes, 2)
    out["cosine_ci"] = (("held_out", label, *lead, "bound"), both)
    for i, name in enumerate(("accuracy", "accuracy_raw")):
        dims = ("factor", *lead)
        out[name] = (dims, hits[i].mean(1).reshape(len(factors), *sizes))
        of_groups = np.moveaxis(hits[i], 1, 0)
        ci = np.stack(bootstrap_ci(of_groups, clusters, n_bootstrap, seed, level, shares=True), -1)
        out[f"{name}_ci"] = ((*dims, "bound"), ci.reshape(len(factors), *sizes, 2))
        parts = [(f, code == t) for f, code in enumerate(codes) for t in range(len(levels[f]))]
        by = np.stack([hits[i, f, mine].mean(0) for f, mine in parts])
        out[f"{name}_by_level"] = (("held_out", *lead), by.reshape(total, *sizes))
        ci = np.stack(
            [
                np.stack(bootstrap_ci(hits[i, f, mine], clusters[mine], n_bootstrap, seed, level, shares=True), -1)
                for f, mine in parts
            ]
        )
        out[f"{name}_by_level_ci"] = (("held_out", *lead, "bound"), ci.reshape(total, *sizes, 2))
        tail = name.removeprefix("accuracy")
        out[f"null_mean{tail}"] = (dims, null[i].mean(0).reshape(len(factors), *sizes))
        out[f"null_max{tail}"] = (dims, null[i].max(0).reshape(len(factors), *sizes))
    out["n_groups"] = (
        "held_out",
        [int((c == t).sum()) for c, v in zip(codes, levels, strict=True) for t in range(len(v))],
    )
    return out.assign_attrs(
        method="leave-one-context-out centered_mean",
        label=label,
        chance=1.0 / n_labels,
        cluster=cluster,
        n_clusters=int(clusters.max()) + 1,
        n_bootstrap=n_bootstrap,
        n_null=n_null,
        level=level,
        seed=seed,
        space="residual",
        **groups.attrs(),
        **rows.provenance(),
    )


def cell_means(rows: Source, groups: Groups) -> Iterator[tuple[int, int, np.ndarray]]:
    """Mean activation of every cell: (layer index, sublayer index, float64 ``[group, label, features]``), one at a time."""
    n_layers, n_sub, width = rows.shape
    counts = groups.counts
    cell = groups.group * len(groups.labels) + groups.code
    share = 1.0 / counts.ravel()[cell]
    average = scipy.sparse.csc_array((share, (cell, np.arange(len(cell)))), shape=(counts.size, len(cell)))
    for layer in range(n_layers):
        means = np.zeros((n_sub, counts.size, width))
        for part, x in rows.blocks(layer, groups.rows):
            for sub in range(n_sub):
                means[sub] += average[:, part] @ x[sub]
        for sub in range(n_sub):
            yield layer, sub, means[sub].reshape(*counts.shape, width)


def _factor(table: pd.DataFrame, groups: Groups, name: str, least: int = 1) -> tuple[tuple[Any, ...], np.ndarray]:
    """Levels of a label, and the level of each group."""
    if name not in table:
        raise unknown("label", name, table.columns, "context_agnosticism")
    values = table[name].iloc[groups.rows].tolist()
    levels = ordered(values)
    at = {v: i for i, v in enumerate(levels)}
    codes = np.array([at[v] for v in values])
    of_group = np.empty(len(groups.names), dtype=np.int64)
    of_group[groups.group] = codes
    if (of_group[groups.group] != codes).any():
        raise EmotraceError(f"{name!r} is not constant within the groups, so it cannot be left out or drawn.")
    if len(levels) < least:
        raise EmotraceError(f"{name!r} has one level here ({levels[0]!r}); leaving it out leaves nothing.")
    return levels, of_group


def _held_out(inner: np.ndarray, mean: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Share of right answers of each group when its level is left out: ``[centred | raw, group]``."""
    n_labels = inner.shape[1]
    total, centre = inner.sum(0), mean.sum(0)
    out = np.empty((2, len(inner)))
    for t in range(int(code.max()) + 1):
        mine = np.flatnonzero(code == t)
        fitted = total - inner[mine].sum(0)
        fitted = fitted / np.maximum(np.linalg.norm(fitted, axis=-1, keepdims=True), 1e-300)
        train = (centre - mean[mine].sum(0)) / (len(inner) - len(mine))
        scores = inner[mine] @ fitted.T
        shift = (mean[mine] - train) @ fitted.T
        for i, s in enumerate((scores, scores + shift[:, None])):
            out[i, mine] = (s.argmax(-1) == np.arange(n_labels)).mean(-1)
    return out
