"""Scores: what every node or edge of a model does for a metric, by any method, under one interface.

Sign: positive means that the component raises the metric; removing it lowers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
import xarray as xr

from emotrace import arguments, provenance
from emotrace.arguments import BatchSize
from emotrace.discovery import approximate, exact
from emotrace.discovery.aligned import SPANS, Pair, Pairs
from emotrace.discovery.batches import PairBatch, ready, rows_of, span_means
from emotrace.discovery.edges import EdgeGraph, edge_magnitudes, edge_scores, graph
from emotrace.discovery.names import SIGN, pair_coords
from emotrace.discovery.nodes import Seen, refuse_remote, seen
from emotrace.forwards.metrics import Metric, differentiable
from emotrace.labels import EmotraceError, unknown
from emotrace.planned import DryScores, Steps, planned
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

BASELINES: Final = ("magnitude", "random")
"""What a method must beat: how much a component changes, whatever that does; and a draw from a normal distribution."""
METHODS: Final = {level: (*approximate.APPROXIMATE, *exact.EXACT[level], *BASELINES) for level in ("node", "edge")}
"""Level → methods."""
Level = Literal["node", "edge"]


@planned
@typed
def scores(
    model: LanguageModel,
    pairs: Pairs | Sequence[Pair],
    metric: Metric,
    *,
    method: str = "eap_ig_activations",
    level: Level = "node",
    nodes: Iterable[str] | str = ("head", "mlp"),
    ablation: str = "counterfactual",
    steps: int = 8,
    batch_size: BatchSize = 16,
    threshold: float | None = None,
    absolute: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Steps[DryScores, xr.Dataset]:
    """Scores of every node or edge, for every pair.

    ``scores.plan(…)`` says what would be done: prompts, components, runs forward and back (`emotrace.planned.DryScores`).

    Args:
        model: from `emotrace.load`; for slopes of edges here, not ``remote=``.
        pairs: of `emotrace.discovery.pairing`.
        metric: of `emotrace.discovery.metrics`, or of your own.
        method: for both levels ``eap``, ``eap_ig_inputs``, ``ceap``, ``eap_ig_activations`` (see `approximate`); for nodes
            ``patching``; for edges ``path_patching`` and ``acdc``, which run the model once per edge (see `exact`).
            ``magnitude`` (the norm of the component's change) and ``random`` are baselines.
        level: ``node`` or ``edge``.
        nodes: kinds of node: head, mlp, neuron, attn, resid, or sublayer for attn and mlp. Edges have heads and MLPs.
        ablation: what stands for a component that is gone: its value in the ``counterfactual``, its ``mean`` or ``zero``.
        steps: intervals of the integrated methods.
        batch_size: pairs at a time, and most rows of a forward of the exact methods; ``auto`` for what fits. Memory grows with
            it, scores do not depend on it.
        threshold: of ``acdc``, in units of the metric.
        absolute: of ``acdc``: keep components that lower the metric by the threshold, too.
        seed: of ``random``.
        progress: show a bar.

    Returns:
        ``score[pair, node]`` or ``score[pair, edge]`` float32; ``clean[pair]`` and ``counterfactual[pair]``, the metric of
        both prompts; of nodes by an approximate method also ``by_span[pair, span, node]``; of ``acdc`` ``kept[edge]``.
        Coordinates name and place each component, and carry the pairs' labels; attrs say how it was made.

    Raises:
        EmotraceError: before anything runs, for unknown choices, a metric that does not fit the model, a model that cannot
            be rewired, a metric whose slope vanishes where the method looks.
    """
    _check(metric, method, level, steps, threshold)
    if level == "node" and method in approximate.APPROXIMATE and not differentiable(model):
        raise EmotraceError(
            f"scores(method={method!r}) needs slopes, and the server keeps no graph of the model: use method='patching', which "
            "runs it once for every node."
        )
    if level == "edge" and method in approximate.APPROXIMATE:
        refuse_remote(model, method)
    pairs = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
    g = graph(model, metric) if level == "edge" else None
    places = g.seen if g is not None else seen(model, metric, nodes)
    size = rows_of(model, batch_size, pairs, places)
    n = len((places.coords() if g is None else g.coords())[level][1])
    yield lambda: _dry(pairs, method, ablation, n, len(places.nodes if g is None else g.writes), steps)
    means = span_means(model, pairs, places, size) if ablation == "mean" else None
    found: dict[str, list[np.ndarray]] = {"score": [], "clean": [], "counterfactual": [], "by_span": []}
    kept_edges: torch.Tensor | None = None
    batches = ready(model, pairs, metric, places, ablation, size, means)
    drawn = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    if method == "acdc":
        assert g is not None
        assert threshold is not None
        every = list(batches)
        losses, kept_edges = exact.acdc(model, every, g, threshold, absolute)
        found["score"].append(losses.numpy())
        found["clean"] += [b.clean.numpy() for b in every]
        found["counterfactual"] += [b.counterfactual.numpy() for b in every]
    else:
        with progress_bar(total=len(pairs), desc=f"{method} of {level}s", unit="pair", enabled=progress) as bar:
            for batch in batches:
                if method == "random":
                    score = drawn.expand(len(batch), -1)
                elif method == "magnitude":
                    score = (
                        approximate.node_magnitudes(batch, places) if g is None else edge_magnitudes(model, batch, g)
                    )
                elif method in approximate.APPROXIMATE and g is None:
                    by_span = approximate.node_scores(model, batch, places, method, steps)
                    found["by_span"].append(by_span.numpy())
                    score = by_span.sum(1)
                elif method in approximate.APPROXIMATE:
                    assert g is not None
                    score = edge_scores(model, batch, g, method, steps)
                else:
                    kept_only = partial(_kept, model, batch, places if g is None else g, size)
                    score = exact.without_each(kept_only, batch.clean, n)
                batch.refuse_lost(model, score, f"a score ({method})")
                found["score"].append(score.numpy())
                found["clean"].append(batch.clean.numpy())
                found["counterfactual"].append(batch.counterfactual.numpy())
                bar.update(len(batch))
    if not any(np.any(values) for name in ("clean", "counterfactual") for values in found[name]):
        raise EmotraceError(
            f"scores(metric={metric.name}): it is 0 for every prompt and every counterfactual, so nothing can be found for it."
        )
    data: dict[str, Any] = {
        "score": (("pair", level), np.concatenate(found["score"]).astype(np.float32)),
        "clean": ("pair", np.concatenate(found["clean"])),
        "counterfactual": ("pair", np.concatenate(found["counterfactual"])),
    }
    if found["by_span"]:
        data["by_span"] = (("pair", "span", level), np.concatenate(found["by_span"]).astype(np.float32))
    if kept_edges is not None:
        data["kept"] = ("edge", kept_edges.numpy())
    coords = {**(places.coords() if g is None else g.coords()), **pair_coords(pairs)}
    if "by_span" in data:
        coords["span"] = ("span", list(SPANS))
    attrs = {
        "method": method, "level": level, "ablation": ablation, "metric": metric.name, "sign": SIGN, "n_pairs": len(pairs),
        "model": model.sites.identity.get("model_id", model.sites.model_class),
        **provenance.of(model.sites.identity), **_counts(model, g),
    }  # fmt: skip
    if method in approximate.APPROXIMATE[1:]:
        attrs["steps"] = steps
    if method == "random":
        attrs["seed"] = seed
    if threshold is not None and method == "acdc":
        attrs |= {"threshold": threshold, "absolute": absolute}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _dry(pairs: Pairs, method: str, ablation: str, n: int, writes: int, steps: int) -> DryScores:
    """What the scores of so many components at so many places take of every pair: runs with its values, then the method's."""
    held = 4 if ablation == "mean" else 2
    back = approximate.passes(method, steps, writes) if method in approximate.APPROXIMATE else 0
    each = n if method in (*exact.EXACT["node"], *exact.EXACT["edge"]) else back
    return DryScores(2 * len(pairs), n, len(pairs) * (held + each), len(pairs) * back)


def _counts(model: LanguageModel, g: EdgeGraph | None) -> dict[str, int]:
    """Query and key-value heads: those of the layers of a graph, which have as many of both in the same proportion."""
    if g is None:
        return {"n_heads": model.sites.n_heads, "n_kv_heads": model.sites.n_kv_heads}
    queries, keys, _ = g.layers[0].columns
    return {"n_heads": len(queries), "n_kv_heads": len(keys)}


def _kept(
    model: LanguageModel, batch: PairBatch, where: Seen | EdgeGraph, rows: int, keep: torch.Tensor
) -> torch.Tensor:
    if isinstance(where, EdgeGraph):
        return exact.kept_edges(model, batch, where, keep, rows)
    return exact.kept_nodes(model, batch, where, keep, rows)


def _check(metric: Metric, method: str, level: str, steps: int, threshold: float | None) -> None:
    if level not in METHODS:
        raise unknown("level", level, METHODS, "scores(level=…)")
    if method not in METHODS[level]:
        other = "edge" if level == "node" else "node"
        hint = f" ({method!r} is for level={other!r}.)" if method in METHODS[other] else ""
        raise EmotraceError(f"{unknown('method', method, METHODS[level], f'scores(level={level!r})')}{hint}")
    arguments.whole("scores(steps)", steps, 1)
    if method == "acdc" and (threshold is None or not threshold > 0):
        raise EmotraceError(f"scores(method='acdc', threshold={threshold}): a positive number, in units of the metric.")
    if getattr(metric, "flat_at_clean", False) and method == "eap":
        raise EmotraceError(
            f"scores(method='eap'): the slope of {metric.name!r} at the clean run is zero, so every score would be. Choose an "
            "integrated method (ceap, eap_ig_inputs, eap_ig_activations) or an exact one."
        )


@typed
def mean(found: xr.Dataset) -> xr.DataArray:
    """Mean score of every component over the pairs."""
    score = found["score"].mean("pair", keep_attrs=True)
    return score.assign_attrs(found.attrs)
