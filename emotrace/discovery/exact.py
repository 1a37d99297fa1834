"""Exact: scores by running the model without each component; as many forwards as there are components.

* ``patching`` (nodes): metric(clean) − metric(clean run in which the node holds what stands for it), at all tokens;
* ``path_patching`` (edges): metric(clean) − metric(run in which one reader does not get what one writer writes, but what
  stands for it; everything after that reader is recomputed);
* ``acdc`` (edges): readers from the last to the first, writers likewise: an edge is taken away for good where the metric
  moves by less than a threshold. Its score is what the metric lost when its turn came. Source: Conmy et al. 2304.14997
  (there signed, on KL; ``absolute=False``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from emotrace.discovery.batches import PairBatch, run
from emotrace.discovery.edges import EdgeGraph, rewired
from emotrace.discovery.nodes import Seen
from emotrace.sites import LanguageModel
from emotrace.traced.circuits import Blend

EXACT: Final = {"node": ("patching",), "edge": ("path_patching", "acdc")}


def kept_nodes(model: LanguageModel, batch: PairBatch, seen: Seen, keep: torch.Tensor, rows: int) -> torch.Tensor:
    """The metric where only some nodes keep their value: ``[set, row]``.

    Args:
        model: from `emotrace.load`.
        batch: ready.
        seen: places of the nodes.
        keep: ``[set, node]``, 1 keeps.
        rows: most rows of a forward (at least one whole batch).
    """
    found = []
    for some in keep.float().split(max(1, rows // len(batch))):
        inputs, at, metric = batch.repeated(len(some))
        masks = seen.split(some.repeat_interleave(len(batch), 0))
        blends = {
            i: Blend(batch.others[i].repeat(len(some), 1, 1), mask)
            for i, mask in enumerate(masks, 1)
            if not bool((mask == 1).all())
        }
        found.append(run(model, inputs, seen, at, metric, blends=blends)["metric"].unflatten(0, (len(some), -1)))
    return torch.cat(found)


def kept_edges(model: LanguageModel, batch: PairBatch, g: EdgeGraph, keep: torch.Tensor, rows: int) -> torch.Tensor:
    """The metric where only some edges are left: ``[set, row]``.

    Args:
        model: from `emotrace.load`.
        batch: ready.
        g: the graph of the edges.
        keep: ``[set, edge]``, 1 keeps.
        rows: most rows of a forward (at least one whole batch).
    """
    sets = keep.split(max(1, rows // len(batch)))
    cuts = (g.cut((1 - some).repeat_interleave(len(batch), 0)) for some in sets)
    return torch.cat([one.metric.unflatten(0, (-1, len(batch))) for one in rewired(model, g, batch, cuts)])


def without_each(kept: Callable[[torch.Tensor], torch.Tensor], clean: torch.Tensor, n: int) -> torch.Tensor:
    """``[row, component]``: what the metric loses without each; ``kept(keep)`` runs sets of components that stay."""
    return (clean - kept(1 - torch.eye(n))).T


def acdc(
    model: LanguageModel, batches: list[PairBatch], g: EdgeGraph, threshold: float, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``[row, edge]`` when each edge's turn came, and which edges were kept ``[edge]``.

    Args:
        model: from `emotrace.load`.
        batches: all of them: one decision holds for every pair.
        g: its graph.
        threshold: of the mean over the pairs.
        absolute: whether a component that lowers the metric is kept too.
    """
    n = len(g.pairs)
    gone = torch.zeros(1, n)
    now = [b.clean for b in batches]
    losses = torch.zeros(sum(map(len, batches)), n)
    order = sorted(range(n), key=lambda e: tuple(g.pairs[e].tolist()), reverse=True)
    for edge in order:
        gone[0, edge] = 1
        tried = [next(rewired(model, g, b, [g.cut(gone.expand(len(b), -1))])).metric for b in batches]
        for batch, metric in zip(batches, tried, strict=True):
            batch.refuse_lost(model, metric, "the metric")
        loss = torch.cat(now) - torch.cat(tried)
        losses[:, edge] = loss
        mean = float(loss.mean())
        if (abs(mean) if absolute else mean) < threshold:
            now = tried
        else:
            gone[0, edge] = 0
    return losses, gone[0] == 0
