"""Shift: how the activations of an answer move when the same query is answered with an emotion (arXiv 2502.04075)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
import xarray as xr

from emotrace.directions.estimate import labelled, weighted_sums
from emotrace.directions.groups import group
from emotrace.directions.source import ActivationsLike, source
from emotrace.labels import NEUTRAL, EmotraceError, Positions, unknown
from emotrace.signatures import typed

Over = Literal["last", "mean_generated", "mean_all"]
OVER: Final[dict[str, Positions]] = {"last": "last", "mean_generated": "steer", "mean_all": "all"}
"""What an answer's activation is the mean of → the positions to capture."""
EMOTIONAL: Final = "emotional"


@typed
def paired_shift(
    acts: ActivationsLike,
    label: str = "emotion",
    *,
    condition: str = "condition",
    pair: str = "query_id",
    over: Over = "mean_generated",
    positive: str = EMOTIONAL,
    negative: str = NEUTRAL,
    accepted: Iterable[str] | None = None,
    variable: str = "o_proj_out",
) -> xr.DataArray:
    """Mean over queries of (emotional answer − neutral answer to the same query), for each emotion.

    With a(q, s) the mean activation over the positions of the answer to query q in condition s, at one layer::

        v_e = 1/|Q_e| Σ_{q ∈ Q_e} ( a(q, positive) − a(q, negative) )

    Every query counts the same, however long its answers. Positive along v_e: more like an answer in emotion e.

    Args:
        acts: labelled array or open activations, of prompts with their answers (teacher forcing).
        label: what the vectors are of; of a pair, both answers carry it.
        condition: the label that tells the two answers apart.
        pair: the label that the two answers share.
        over: ``mean_generated``: every position from which a token of the answer is predicted, that is the last prompt
            token and the answer's (the position policy ``steer``); ``last``: the last prompt token alone; ``mean_all``:
            prompt and answer.
        positive: value of ``condition`` on the positive side.
        negative: on the negative side.
        accepted: keys of the accepted answers; a pair needs both. None for all.
        variable: which array of open activations.

    Returns:
        ``vector[label, layer, (sublayer), dim]`` float32, not normalised, with the coordinates ``norm`` and ``n`` (pairs of
        each label).

    Raises:
        EmotraceError: for unknown labels or values, no pair, or activations that are not finite.
    """
    if over not in OVER:
        raise unknown("mean", over, OVER, "paired_shift(over=…)")
    rows = source(acts, variable, OVER[over])
    for name in (label, condition, pair):
        if name not in rows.table:
            raise unknown("label", name, rows.table.columns, "paired_shift")
    values = set(rows.table[condition].tolist())
    for side in (positive, negative):
        if side not in values:
            raise unknown(condition, side, sorted(values, key=str), "paired_shift")
    both = rows.table[condition].isin([positive, negative]).to_numpy()
    used = np.flatnonzero(both)
    groups = group(rows.table.iloc[used].reset_index(drop=True), condition, (label, pair), accepted)
    names = [name for name, _ in groups.names]
    emotions = tuple(dict.fromkeys(rows.table.loc[both, label].tolist()))
    lost = [e for e in emotions if e not in names]
    if lost:
        raise EmotraceError(f"paired_shift: no query of {label} {lost[0]!r} has both answers.")
    n_pairs = np.array([names.count(e) for e in emotions])
    of_group = np.array([emotions.index(e) for e in names])
    mine, cell = of_group[groups.group], groups.counts[groups.group, groups.code]
    sign = np.where(groups.code == groups.labels.index(positive), 1.0, -1.0)
    weights = np.zeros((len(emotions), len(groups.rows)))
    weights[mine, np.arange(len(mine))] = sign / cell / n_pairs[mine]
    sums, scale = weighted_sums(rows, used[groups.rows], weights)
    out = labelled(
        rows,
        sums,
        scale,
        outer=(label, emotions),
        unit=False,
        attrs={
            "method": "paired_shift",
            "sign": f"positive = more like the {positive} answer than the {negative} one to the same query",
            "label": label,
            "over": over,
            "variable": variable,
            **groups.attrs(),
        },
        position=OVER[over],
    )
    return out.assign_coords(n=(label, n_pairs))


@typed
def base_vector(vectors: xr.DataArray, how: Literal["mean", "sum"] = "mean", label: str = "emotion") -> xr.DataArray:
    """What the vectors of all emotions share: their unweighted mean (or sum) ``[layer, (sublayer), dim]``, in float64 → float32.

    Args:
        vectors: ``[label, layer, (sublayer), dim]``.
        how: ``mean`` or ``sum``.
        label: dim that is summed over.

    Raises:
        EmotraceError: for another ``how``, or vectors without the label.
    """
    if how not in ("mean", "sum"):
        raise unknown("base", how, ("mean", "sum"), "base_vector(how=…)")
    if label not in vectors.dims:
        raise unknown("dim", label, vectors.dims, "base_vector(label=…)")
    whole = vectors.drop_vars([str(c) for c in vectors.coords if c not in vectors.dims]).astype(np.float64)
    base = whole.mean(label) if how == "mean" else whole.sum(label)
    norm = np.sqrt((base * base).sum("dim")).astype(np.float32)
    base = base.astype(np.float32).assign_coords(norm=norm).rename("vector")
    return base.assign_attrs({**vectors.attrs, "method": f"{how} of {vectors.attrs.get('method', 'vectors')}"})
