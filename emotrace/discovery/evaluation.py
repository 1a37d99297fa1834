"""Evaluation: how much of the metric a circuit carries on its own.

With m(C) the mean metric where everything outside C holds what stands for it, M all components and ∅ none:

* faithfulness f(C) = (m(C) − m(∅)) / (m(M) − m(∅)): 1 is all of it, and it may be larger;
* completeness f(M ∖ C): what is left without the circuit; 0 is a complete one (Marks et al. 2403.19647);
* minimality of v ∈ C: f(C) − f(C ∖ v): what the circuit loses without it (Wang et al. 2211.00593);
* CPR = ∫ f(C_x) dx and CMD = ∫ |1 − f(C_x)| dx over circuits of growing share x of the components (Mueller et al.
  2504.13151). Two axes are published: ``fixed``, x is the share asked for; ``realised``, x is the share of edges that lie
  on a path from input to metric. Two orders are, too: by signed score (CPR there) and by magnitude (CMD there). All four
  are given; CMD + CPR ≥ 1 holds within one order only. The curve begins at f = 0 for x = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
import xarray as xr

from emotrace import provenance
from emotrace.arguments import BatchSize
from emotrace.discovery import exact
from emotrace.discovery.aligned import Pairs
from emotrace.discovery.batches import ready, rows_of, span_means
from emotrace.discovery.edges import graph
from emotrace.discovery.nodes import seen
from emotrace.discovery.selection import Rule, component, live, select, values_of
from emotrace.forwards.metrics import Metric
from emotrace.labels import EmotraceError
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

POINTS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the components at which the leaderboard of MIB reads the curve."""
AXES: Final = ("fixed", "realised")
ORDERS: Final = ("signed", "absolute")


@typed
def run_circuits(
    model: LanguageModel,
    pairs: Pairs,
    metric: Metric,
    masks: xr.DataArray | Sequence[xr.DataArray],
    *,
    ablation: str = "counterfactual",
    batch_size: BatchSize = 16,
    progress: bool = True,
) -> xr.Dataset:
    """The metric of every pair under circuits, under none, and in the whole model.

    Args:
        model: from `emotrace.load`.
        pairs: to run on; not those that the circuits were found on, if it can be helped.
        metric: of `emotrace.discovery.metrics`, or of your own.
        masks: of the circuits, boolean ``[node]`` or ``[edge]``, over the same components.
        ablation: what stands for what is outside: ``counterfactual``, ``mean`` or ``zero``.
        batch_size: pairs at a time, and most rows of a forward; ``auto`` for what fits.
        progress: show a bar.

    Returns:
        ``metric[circuit, pair]``, ``empty[pair]``, ``full[pair]``.

    Raises:
        EmotraceError: for circuits of other components than the model has.
    """
    several = [masks] if isinstance(masks, xr.DataArray) else list(masks)
    if not several:
        raise EmotraceError("run_circuits: there are no circuits.")
    dim = component(several[0])
    g = graph(model, metric) if dim == "edge" else None
    places = g.seen if g is not None else seen(model, metric, list(dict.fromkeys(several[0]["kind"].values.tolist())))
    names = (places.coords() if g is None else g.coords())[dim][1]
    for mask in several:
        if not np.array_equal(mask[dim].values, names):
            raise EmotraceError(f"run_circuits: the circuit has other {dim}s than this model has for {metric.name!r}.")
        provenance.check(mask, model.sites, "run_circuits(masks=…)")
    keep = torch.tensor(np.stack([np.zeros(len(names)), *(np.asarray(c.values, dtype=float) for c in several)]))
    size = rows_of(model, batch_size, pairs, places)
    means = span_means(model, pairs, places, size) if ablation == "mean" else None
    found, full = [], []
    with progress_bar(total=len(pairs), desc=f"{len(several)} circuits", unit="pair", enabled=progress) as bar:
        for batch in ready(model, pairs, metric, places, ablation, size, means):
            if g is None:
                found.append(exact.kept_nodes(model, batch, places, keep, size))
            else:
                found.append(exact.kept_edges(model, batch, g, keep, size))
            batch.refuse_lost(model, found[-1].T, "the metric of a circuit")
            full.append(batch.clean)
            bar.update(len(batch))
    table = torch.cat(found, 1).numpy()
    return xr.Dataset(
        {
            "metric": (("circuit", "pair"), table[1:]),
            "empty": ("pair", table[0]),
            "full": ("pair", torch.cat(full).numpy()),
        },
        coords={"pair": [p.key for p in pairs]},
        attrs={"ablation": ablation, "metric": metric.name, "n_pairs": len(pairs), "level": dim},
    )


@typed
def faithfulness(ran: xr.Dataset) -> xr.DataArray:
    """f of every circuit, ``[circuit]``: means over the pairs first, then the ratio.

    Raises:
        EmotraceError: where the whole model and the empty circuit do not differ.
    """
    empty, full = float(ran["empty"].mean()), float(ran["full"].mean())
    if abs(full - empty) <= 1e-9 * max(1.0, abs(full)):
        raise EmotraceError(
            f"faithfulness: the metric is {full:.4g} with and without every component, so there is nothing to share."
        )
    return ((ran["metric"].mean("pair") - empty) / (full - empty)).rename("faithfulness")


@typed
def evaluate(
    model: LanguageModel,
    pairs: Pairs,
    metric: Metric,
    mask: xr.DataArray,
    *,
    minimality: bool = True,
    ablation: str = "counterfactual",
    batch_size: BatchSize = 16,
    progress: bool = True,
) -> xr.Dataset:
    """Faithfulness, completeness and minimality of one circuit.

    Args:
        model: from `emotrace.load`.
        pairs: to run on; not those that the circuits were found on, if it can be helped.
        metric: of `emotrace.discovery.metrics`, or of your own.
        mask: of the circuit, boolean ``[node]`` or ``[edge]``.
        minimality: one more run for each of its components.
        ablation: what stands for what is outside: ``counterfactual``, ``mean`` or ``zero``.
        batch_size: pairs at a time, and most rows of a forward; ``auto`` for what fits.
        progress: show a bar.

    Returns:
        ``faithfulness``, ``completeness`` (of the complement; 0 is complete), ``n``, the mean metrics ``empty, circuit,
        full``, and ``minimality[member]``.
    """
    dim = component(mask)
    members = np.flatnonzero(np.asarray(mask.values, dtype=bool))
    several = [mask, ~mask]
    for i in members if minimality else ():
        less = mask.copy(deep=True)
        less[i] = False
        several.append(less)
    ran = run_circuits(model, pairs, metric, several, ablation=ablation, batch_size=batch_size, progress=progress)
    f = faithfulness(ran).values
    data: dict[str, Any] = {
        "faithfulness": f[0], "completeness": f[1], "n": len(members), "empty": float(ran["empty"].mean()),
        "circuit": float(ran["metric"][0].mean()), "full": float(ran["full"].mean()),
    }  # fmt: skip
    coords: dict[str, Any] = {}
    if minimality:
        data["minimality"] = ("member", f[0] - f[2:])
        coords["member"] = mask[dim].values[members]
    return xr.Dataset(data, coords=coords, attrs=ran.attrs)


@typed
def curve(
    model: LanguageModel,
    pairs: Pairs,
    metric: Metric,
    found: xr.Dataset | xr.DataArray,
    *,
    points: Iterable[float] = POINTS,
    rule: Rule = "top",
    ablation: str = "counterfactual",
    batch_size: BatchSize = 16,
    progress: bool = True,
) -> xr.Dataset:
    """Faithfulness of circuits of growing size, CPR and CMD.

    Args:
        model: from `emotrace.load`.
        pairs: to run on; not those that the circuits were found on, if it can be helped.
        metric: of `emotrace.discovery.metrics`, or of your own.
        found: scores of nodes or edges.
        points: shares of the components, rising, the last 1.
        rule: ``top`` or ``greedy``.
        ablation: what stands for what is outside: ``counterfactual``, ``mean`` or ``zero``.
        batch_size: pairs at a time, and most rows of a forward; ``auto`` for what fits.
        progress: show a bar.

    Returns:
        ``faithfulness[order, point]``, ``n[order, point]``, ``share[order, axis, point]``, ``cpr[order, axis]`` and
        ``cmd[order, axis]``; order ``signed`` or ``absolute``, axis ``fixed`` or ``realised`` (nodes: both the same).
    """
    shares = [float(p) for p in points]
    if not shares or shares != sorted(set(shares)) or shares[0] <= 0 or shares[-1] != 1:
        raise EmotraceError(f"curve(points={shares}): shares of the components, rising, above 0, the last 1.")
    score = values_of(found)
    dim, total = component(score), score.size
    several = [
        select(score, max(1, round(x * total)), rule=rule if x < 1 else "top", absolute=order == "absolute")
        for order in ORDERS
        for x in shares
    ]
    ran = run_circuits(model, pairs, metric, several, ablation=ablation, batch_size=batch_size, progress=progress)
    f = faithfulness(ran).values.reshape(len(ORDERS), -1)
    n = np.array([int(c.sum()) for c in several]).reshape(f.shape)
    used = np.array([int(live(c).sum()) if dim == "edge" else int(c.sum()) for c in several]).reshape(f.shape)
    axes = np.stack([np.broadcast_to(shares, f.shape), used / used[:, -1:]], 1)
    gain = np.stack([[area(x, y) for x in row] for row, y in zip(axes, f, strict=True)])
    loss = np.stack([[area(x, np.abs(1 - y), 1.0) for x in row] for row, y in zip(axes, f, strict=True)])
    return xr.Dataset(
        {
            "faithfulness": (("order", "point"), f), "n": (("order", "point"), n),
            "share": (("order", "axis", "point"), axes), "cpr": (("order", "axis"), gain), "cmd": (("order", "axis"), loss),
        },
        coords={"order": list(ORDERS), "axis": list(AXES), "point": shares},
        attrs={**score.attrs, **ran.attrs, "rule": rule},
    )  # fmt: skip


def area(x: np.ndarray, y: np.ndarray, first: float = 0.0) -> float:
    """∫ y dx from 0 by trapezoids, y being ``first`` at 0."""
    return float(np.trapezoid(np.concatenate([[first], y]), np.concatenate([[0.0], x])))
