"""Estimate: directions out of labelled activations, as weighted sums of rows.

Each estimator is linear in the rows before its last step, so it is one matrix of weights times the activations of one
layer at a time, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from emotrace.directions.groups import Groups, Within, accepted_attrs, check_within, counting, group
from emotrace.directions.source import ActivationsLike, Source, source
from emotrace.labels import EmotraceError, Positions, unknown
from emotrace.signatures import typed


@typed
def centered_mean(
    acts: ActivationsLike,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    complete: bool = True,
    position: Positions = "last",
    *,
    variable: str = "residual",
    unit: bool = True,
) -> xr.DataArray:
    """Directions of a label after everything that a group shares has been taken away.

    With h_{g,e} the mean activation of the rows of group g and label e, at one layer and sublayer::

        d_{g,e} = h_{g,e} − mean_{e'} h_{g,e'}      over the labels of the group
        c_e     = mean_g d_{g,e}                    each group with equal weight
        c_e    ← c_e − mean_{e'} c_{e'}
        v_e     = c_e / ‖c_e‖₂

    Positive along v_e: more of e than its alternatives in the same context. Without groups (``within=None``) c_e is the mean of
    the rows of e less the mean of these means. The last layer is taken as it is
    captured, in the un-normed residual space.

    Args:
        acts: labelled array or open activations.
        label: what the directions are of.
        within: the labels that make a group; None for one group of all rows.
        accepted: keys of the accepted replies (`accepted`); None for all.
        complete: only groups that hold every label; False takes all with at least two.
        position: policy or span of the rows; several rows of a cell are averaged.
        variable: which array of open activations (``residual``, ``z``, ``neuron`` …).
        unit: unit vectors; False keeps c_e itself (difference vectors).

    Returns:
        ``direction[label, layer, sublayer, dim]`` float32 with the coordinate ``norm`` = ‖c_e‖; attrs say method, sign,
        n and source, and list the incomplete groups as JSON.

    Raises:
        EmotraceError: for unknown labels, no group, activations that are not finite, or a direction of norm zero.

    Source: arXiv 2510.11328.
    """
    rows = source(acts, variable, position)
    groups = group(rows.table, label, within, accepted, complete)
    sums, scale = weighted_sums(rows, groups.rows, centering_weights(groups))
    return labelled(
        rows,
        sums,
        scale,
        outer=(label, groups.labels),
        unit=unit,
        attrs={
            "method": "centered_mean",
            "sign": f"positive = more of this {label} than the mean of all" + (" in the same group" if within else ""),
            "label": label,
            "within": list(groups.within),
            "complete": int(complete),
            **groups.attrs(),
        },
        position=position,
    )


def centering_weights(groups: Groups) -> np.ndarray:
    """w with c_e = Σ_r w_{e,r} x_r: the centred mean as one linear map ``[label, row]`` (rows of w sum to zero)."""
    counts = groups.counts
    present = counts > 0
    per_group, per_label = present.sum(1), np.maximum(present.sum(0), 1)
    g, c = groups.group, groups.code
    own = np.arange(len(groups.labels))[:, None] == c[None, :]
    weights = present[g].T * (own - 1.0 / per_group[g]) / counts[g, c] / per_label[:, None]
    return weights - weights.mean(0)


@typed
def mean_difference(
    acts: ActivationsLike,
    label: str,
    positive: Any,
    negative: Any,
    *,
    within: Within = None,
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    variable: str = "residual",
    unit: bool = True,
) -> xr.DataArray:
    """Mean of the positive rows minus mean of the negative rows, as a unit vector with its norm.

    With ``within``, the mean over the groups that hold both of (mean of positive − mean of negative): the paired form.

    Args:
        acts: labelled array or open activations.
        label: the label that tells the two sides apart.
        positive: its value(s) on the positive side.
        negative: its value(s) on the negative side.
        within: labels that make a pair's group; None for none.
        accepted: keys of the accepted replies; None for all.
        position: policy or span.
        variable: which array of open activations.
        unit: unit vector, or the difference itself.

    Returns:
        ``direction[layer, sublayer, dim]`` float32 with the coordinate ``norm``. Positive: more like ``positive``.

    Raises:
        EmotraceError: for unknown labels or values, sides that overlap, no pair, or a norm of zero.
    """
    rows = source(acts, variable, position)
    table = rows.table
    if label not in table:
        raise unknown("label", label, table.columns, "mean_difference")
    keep = counting(table, accepted)
    values = table[label].tolist()
    sides = []
    for side, wanted in (("positive", positive), ("negative", negative)):
        wanted = list(wanted) if isinstance(wanted, (list, tuple, set, frozenset)) else np.ravel(wanted).tolist()
        for value in wanted:
            if value not in values:
                raise unknown(label, value, dict.fromkeys(values), f"mean_difference({side}=…)")
        sides.append(np.array([v in wanted for v in values]) & keep)
    plus, minus = sides
    if (plus & minus).any():
        raise EmotraceError(f"mean_difference: {positive!r} and {negative!r} overlap.")
    if not (plus.any() and minus.any()):
        raise EmotraceError("mean_difference: one side has no accepted row.")
    used = np.flatnonzero(plus | minus)
    if within is None:
        weights = plus / plus.sum() - minus / minus.sum()
        n_groups = 1
    else:
        within = check_within(table, label, within)
        side_table = table.loc[used, list(within)].assign(side=np.where(plus[used], 1, 0))
        pairs = group(side_table.reset_index(drop=True), "side", within)
        counts, n_groups = pairs.counts, len(pairs.names)
        weights = np.zeros(len(table))
        share = np.where(pairs.code == 1, 1.0, -1.0) / counts[pairs.group, pairs.code] / n_groups
        weights[used[pairs.rows]] = share
        used = used[pairs.rows]
    sums, scale = weighted_sums(rows, used, weights[used][None])
    return labelled(
        rows,
        sums,
        scale,
        outer=None,
        unit=unit,
        attrs={
            "method": "mean_difference",
            "sign": f"positive = more like {label} {positive!r} than {negative!r}",
            "label": label,
            "within": list(within or ()),
            "n_groups": n_groups,
            "n_rows": len(used),
            **accepted_attrs(table, keep),
        },
        position=position,
    )


@typed
def mean_rms(
    acts: ActivationsLike,
    label: str | None = None,
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    position: Positions = "last",
    *,
    variable: str = "residual",
) -> xr.DataArray:
    """σ = mean over rows of √(mean_d h²), for each layer and sublayer; with ``label``, over complete groups only.

    Args:
        acts: stored activations, or a DataArray with labelled rows.
        label: whose values a complete group has all of; None takes every row.
        within: labels of a group.
        accepted: keys that count; None for all.
        position: of the rows that are taken.
        variable: of stored activations.
    """
    rows = source(acts, variable, position)
    if label is None:
        keep = counting(rows.table, accepted)
        used, said = np.flatnonzero(keep), accepted_attrs(rows.table, keep)
    else:
        groups = group(rows.table, label, within, accepted)
        used, said = groups.rows, groups.accepted
    n_layers, n_sub, _ = rows.shape
    sigma = np.zeros((n_layers, n_sub))
    for layer in range(n_layers):
        for _, x in rows.blocks(layer, used):
            sigma[layer] += np.sqrt((x * x).mean(-1)).sum(-1)
    out, _ = rows.label(sigma / len(used), None, {}, "sigma")
    return out.assign_attrs(method="mean_rms", n_rows=len(used), **said, **rows.provenance())


def weighted_sums(rows: Source, used: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ_r w_{e,r} x_r ``[label, layer, sublayer, features]`` and the RMS length of the rows ``[layer, sublayer]``."""
    n_layers, n_sub, width = rows.shape
    sums = np.zeros((len(weights), n_layers, n_sub, width))
    squares = np.zeros((n_layers, n_sub))
    for layer in range(n_layers):
        for part, x in rows.blocks(layer, used):
            for sub in range(n_sub):
                sums[:, layer, sub] += weights[:, part] @ x[sub]
            squares[layer] += (x * x).sum((1, 2))
    return sums, np.sqrt(squares / max(len(used), 1))


def labelled(
    rows: Source,
    sums: np.ndarray,
    scale: np.ndarray,
    outer: tuple[str, tuple[Any, ...]] | None,
    unit: bool,
    attrs: dict[str, Any],
    position: Positions,
) -> xr.DataArray:
    """Sums as labelled float32 vectors with the coordinate ``norm``; what every estimator returns.

    Args:
        rows: where they came from.
        sums: ``[(outer), layer, sublayer, features]``; the first axis always, of length 1 where ``outer`` is None.
        scale: RMS length of the rows ``[layer, sublayer]``: what is 1e-12 of it counts as zero.
        outer: name and values of the first axis, or None.
        unit: divide by the norms.
        attrs: what the estimator says of itself.
        position: of the rows.

    Raises:
        EmotraceError: for a direction of norm zero (``unit``).
    """
    norms = np.linalg.norm(sums, axis=-1)
    if unit:
        zero = np.argwhere(norms <= 1e-12 * scale)
        if len(zero):
            e, layer, sub = (int(i) for i in zero[0])
            of = f" of {outer[0]} {outer[1][e]!r}" if outer else ""
            raise EmotraceError(
                f"the direction{of} at {rows.place(layer, sub)} has norm zero: the activations do not differ there "
                "(before the first attention every last token is the same). Leave that place out."
            )
        sums = sums / norms[..., None]
    name, coords = None, {}
    if outer is None:
        sums, norms = sums[0], norms[0]
    else:
        name, values = outer
        coords = {name: np.array(values)}
    out, _ = rows.label(sums.astype(np.float32), name, coords, "direction" if unit else "vector")
    norm, dims = rows.label(norms, name, {}, "norm")
    out = out.assign_coords(norm=(dims, norm.values.astype(np.float32)))
    at = position if isinstance(position, str) else list(position)
    return out.assign_attrs(**attrs, space="residual", position=at, unit=int(unit), **rows.provenance())
