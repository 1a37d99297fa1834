"""Edges: from what writes into the residual stream to what reads it, with queries, keys and values apart.

Writers: ``embed`` (what the first layer is given), heads ``a3.h5``, MLPs ``m3``. Readers: queries ``a3.h5.q`` of each query
head, keys and values ``a3.g1.k``, ``a3.g1.v`` of each key-value head, MLPs ``m3``, and ``out``, the stream that the
metric sees.

Gradients of readers are exact: the gradient at a projection's output, taken back through the columns of one head and
through the norm, is the derivative of the metric along that reader's own stream with all other readers held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from emotrace.discovery import approximate
from emotrace.discovery.batches import PairBatch
from emotrace.discovery.nodes import NodeSite, Seen, read_at, seen
from emotrace.discovery.wiring import LayerWiring, lowered, wiring
from emotrace.forwards.entering import backend, enter
from emotrace.forwards.metrics import Metric
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel, Site
from emotrace.traced import rewiring

STREAMS = {"resid_mid": "resid_mid", "resid_post": "resid_post", "final_norm": "resid_post", "logits": "resid_post"}
"""Site that a metric reads → the stream that ``out`` is."""


@dataclass(frozen=True)
class EdgeGraph:
    """Every edge of a model up to the stream that the metric sees.

    Attributes:
        layers: wiring.
        lowered: the same for a trace.
        whole: whether the last layer's MLP writes before the metric reads.
        writers: names, in order of execution.
        readers: names, in order of execution.
        allowed: ``[reader, writer]``, whether the writer runs before the reader.
        seen: every place that writes or reads.
        after: whether the metric reads something computed from the last stream (else that stream itself).
    """

    layers: tuple[LayerWiring, ...]
    lowered: list[rewiring.Layer]
    whole: bool
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    allowed: torch.Tensor
    seen: Seen
    after: bool

    @property
    def pairs(self) -> torch.Tensor:
        """``[edge, 2]``: reader and writer of every edge, in order."""
        return self.allowed.nonzero()

    @property
    def writes(self) -> list[int]:
        """Numbers of the places that write, in order."""
        return [i for i, p in enumerate(self.seen.places) if p.kind in ("input", "head", "mlp")]

    def coords(self) -> dict[str, tuple[str, Any]]:
        """Coordinates of the dim ``edge``: name, source, target, and the target's input (q, k, v, mlp, out)."""
        ends = self.pairs.tolist()
        source = [self.writers[s] for _, s in ends]
        target = [self.readers[r] for r, _ in ends]
        part = [t.rsplit(".", 1)[-1] if "." in t else ("out" if t == "out" else "mlp") for t in target]
        names = [f"{s}->{t}" for s, t in zip(source, target, strict=True)]
        columns = {"edge": names, "source": source, "target": target, "input": part}
        return {name: ("edge", np.array(values)) for name, values in columns.items()}

    def cut(self, gone: torch.Tensor) -> torch.Tensor:
        """Edges that are taken away, ``[row, edge]``, as ``[row, reader, writer]``."""
        found = torch.zeros(len(gone), *self.allowed.shape, dtype=torch.bool)
        found[:, self.allowed] = gone.to(found.dtype)
        return found


class Rewired(NamedTuple):
    """Of one forward.

    Attributes:
        metric: ``[row]``.
        gradient: of its sum with respect to the cut, ``[row, reader, writer]``; None where it was not asked for.
    """

    metric: torch.Tensor
    gradient: torch.Tensor | None


def graph(model: LanguageModel, metric: Metric) -> EdgeGraph:
    """The edges of a model for a metric.

    Raises:
        EmotraceError: for a metric that does not read one stream, or a model that cannot be rewired, with the reason.
    """
    places = seen(model, metric, ("head", "mlp"))
    sites, reads = model.sites, metric.reads(model)
    ends = {(STREAMS.get(s), k if s.startswith("resid") else sites.n_layers - 1) for s, k in reads}
    if len(ends) != 1 or None in {stream for stream, _ in ends}:
        raise EmotraceError(
            f"edges end in one residual stream; {metric.name!r} reads {', '.join(s for s, _ in reads)}. Let it read one of "
            f"{', '.join(STREAMS)}."
        )
    ((stream, last),) = ends
    assert stream is not None
    assert last is not None
    whole = stream == "resid_post"
    layers = wiring(model, last + 1)
    writers, readers, before = ["embed"], [], []
    watched = list(places.places)
    for i, layer in enumerate(layers):
        watched.append(
            NodeSite("attention reads", i, layer.norm_orders[0], sites.place(Site(layer.norms[0], "input")), -1, 1)
        )
        for path, order in sorted(set(zip(layer.projections, layer.orders, strict=True))):
            watched.append(NodeSite(path, i, order, sites.place(Site(path)), -1, 1))
        for part, columns in zip("qkv", layer.columns, strict=True):
            names = [f"a{i}.{'h' if part == 'q' else 'g'}{j}.{part}" for j in range(len(columns))]
            readers += names
            before += [len(writers)] * len(names)
        writers += [f"a{i}.h{h}" for h in range(sites.heads(i))]
        if whole or i < last:
            watched.append(
                NodeSite("mlp reads", i, layer.norm_orders[1], read_at(model, "resid_mid", i).lower(model), -1, 1)
            )
            readers.append(f"m{i}")
            before.append(len(writers))
            writers.append(f"m{i}")
    readers.append("out")
    before.append(len(writers))
    end = read_at(model, stream, last)
    watched.append(NodeSite("out", last, end.order, end.lower(model), end.width, 1))
    table = torch.arange(len(writers))[None] < torch.tensor(before)[:, None]
    after = any(site != stream for site, _ in reads)
    found = Seen(tuple(sorted(watched, key=lambda p: p.order)), places.reads)
    return EdgeGraph(
        tuple(layers), lowered(model, layers, whole), whole, tuple(writers), tuple(readers), table, found, after
    )


def rewired(
    model: LanguageModel, g: EdgeGraph, batch: PairBatch, cuts: Iterable[torch.Tensor], live: bool = False
) -> Iterator[Rewired]:
    """The metric where edges are cut, in a forward for each of ``cuts``; on a server as many in a job as it takes.

    Args:
        model: from `emotrace.load`.
        g: its graph.
        batch: ready at the places of the graph.
        cuts: ``[row, reader, writer]``: 1 takes an edge away; as many whole batches, one after the other, as each has rows for.
        live: also the slope with respect to ``cut``.
    """
    wired = rewiring.Wired(g.lowered, g.seen.places[-1].place, list(g.seen.reads) if g.after else [])
    others, limit = [batch.others[i] for i in g.writes], backend(model).limit or 0
    asked: list[rewiring.Cut] = []
    tokens = 0

    def ran() -> Iterator[Rewired]:
        for one in enter(model, rewiring.rewired, wired, others, asked, live) if asked else ():
            yield Rewired(one["metric"], one.get("gradient"))

    for cut in cuts:
        more = len(cut) * batch.index.shape[1]
        if tokens + more > limit:
            yield from ran()
            asked, tokens = [], 0
        asked.append(rewiring.Cut(*batch.repeated(len(cut) // len(batch)), cut))
        tokens += more
    yield from ran()


def edge_scores(model: LanguageModel, batch: PairBatch, g: EdgeGraph, method: str, steps: int) -> torch.Tensor:
    """``[row, edge]`` of the methods of `approximate`."""
    total = torch.zeros(len(batch), *g.allowed.shape)
    for term in approximate.terms(model, batch, g.seen, method, steps, g.writes):
        reader = 0
        for slopes in _slopes(model, g, term):
            n = len(slopes)
            total[:, reader : reader + n] += _met(model, g, term, slopes, int(g.allowed[reader].sum()))
            reader += n
    return total[:, g.allowed]


def edge_magnitudes(model: LanguageModel, batch: PairBatch, g: EdgeGraph) -> torch.Tensor:
    """``[row, edge]``: the norm of what the writer's contribution changes by, summed over tokens; the same for all readers."""
    change = batch.change
    z = [change[i] for i in g.writes if g.seen.places[i].kind == "head"]
    heads = iter(enter(model, rewiring.sizes, [x.out for x in g.layers], [x.heads for x in g.layers], z))
    found = []
    for i in g.writes:
        p = g.seen.places[i]
        size = next(heads) if p.kind == "head" else change[i][:, :, None].norm(dim=-1).sum(1)
        found.append(size * (g.layers[p.layer].scale if p.kind == "mlp" else 1.0))
    return torch.cat(found, -1)[:, g.pairs[:, 1]]


def _slopes(model: LanguageModel, g: EdgeGraph, term: approximate.Term) -> Iterator[torch.Tensor]:
    """``[reader, row, token, d]`` of the readers in order, a layer's attention or MLP at a time."""
    at = {(p.kind, p.layer): i for i, p in enumerate(g.seen.places)}
    for i, layer in enumerate(g.layers):
        parts = []
        for path, columns in zip(layer.projections, layer.columns, strict=True):
            matrix = rewiring.rows_of(model._module.get_submodule(path))[0].detach().float().cpu()
            slope = term.gradients[at[path, i]]
            parts.append(torch.einsum("btrk,rkd->rbtd", slope[..., columns], matrix[columns]))
        norm = model._module.get_submodule(layer.norms[0])
        yield rewiring.into(norm, term.values[at["attention reads", i]], torch.cat(parts))
        if ("mlp reads", i) in at:
            yield term.gradients[at["mlp reads", i]][None]
    yield term.gradients[at["out", g.seen.places[-1].layer]][None]


def _met(
    model: LanguageModel, g: EdgeGraph, term: approximate.Term, slopes: torch.Tensor, n_writers: int
) -> torch.Tensor:
    """``[row, reader, writer]``: what every writer before these readers changes, along their slopes."""
    along = slopes.transpose(0, 1).flatten(2)
    found = torch.zeros(*along.shape[:2], len(g.writers))
    writer = 0
    for i in g.writes:
        p, change = g.seen.places[i], term.change[i]
        if writer >= n_writers:
            break
        if change is not None:
            if p.kind == "head":
                # what heads write, not what each reader would have of z: a layer has many readers and one output projection
                matrix = rewiring.matrix(model, g.layers[p.layer].out, p.n).float().cpu()
                written = torch.einsum("bthk,hkd->bhtd", change.unflatten(-1, (p.n, -1)), matrix)
            else:
                written = change[:, None] * (g.layers[p.layer].scale if p.kind == "mlp" else 1.0)
            found[:, :, writer : writer + p.n] = along @ written.flatten(2).mT
        writer += p.n
    return found
