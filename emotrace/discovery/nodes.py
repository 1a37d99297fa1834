"""Nodes: the components that write, where they do, and how they are named.

=========  ============  =======================================  =======
kind       site          a node is                                name
=========  ============  =======================================  =======
head       ``z``         one query head                           a3.h5
neuron     ``neuron``    one column of the down projection        n3.120
attn       ``attn_out``  the attention sublayer                   attn3
mlp        ``mlp_out``   the MLP sublayer                         m3
resid      ``resid_post``  the residual stream after a layer      r3
=========  ============  =======================================  =======

``sublayer`` stands for attn and mlp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from emotrace.discovery.names import kinds_of, node_coords, nodes_at
from emotrace.forwards.entering import HERE, backend
from emotrace.forwards.metrics import Metric
from emotrace.labels import COMPONENTS, EmotraceError
from emotrace.sites import Address, LanguageModel
from emotrace.traced.places import Place
from emotrace.traced.steps import Node, Read, ordered


@dataclass(frozen=True)
class NodeSite:
    """One place where nodes write.

    Attributes:
        kind: of the nodes; ``input`` for what the first layer is given.
        layer: 0-based.
        order: of execution.
        place: lowered.
        width: of its values.
        n: nodes, each of width / n neighbouring columns.
    """

    kind: str
    layer: int
    order: float
    place: Place
    width: int
    n: int

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        """``[row, token, width]`` summed over each node's columns: ``[row, token, node]``."""
        return value.unflatten(-1, (self.n, -1)).sum(-1)

    def spread(self, nodes: torch.Tensor) -> torch.Tensor:
        """``[row, node]`` for every column: ``[row, 1, width]``."""
        return nodes.repeat_interleave(self.width // self.n, dim=-1)[:, None]


@dataclass(frozen=True)
class Seen:
    """What a method needs of a model: the input, the places of the nodes, and where the metric reads.

    Attributes:
        places: in order of execution; the first is the input of the first layer.
        reads: those of the metric.
    """

    places: tuple[NodeSite, ...]
    reads: tuple[Read, ...]

    @property
    def steps(self) -> list[Node | Read]:
        """For `emotrace.traced.circuits.forward`."""
        return ordered([*(Node(p.order, p.place, i) for i, p in enumerate(self.places)), *self.reads])

    @property
    def nodes(self) -> tuple[NodeSite, ...]:
        """Without the input."""
        return self.places[1:]

    def coords(self) -> dict[str, tuple[str, Any]]:
        """Coordinates of the dim ``node``: name, kind, layer, index."""
        return node_coords(node for p in self.nodes for node in nodes_at(p.kind, p.layer, range(p.n)))

    def split(self, nodes: torch.Tensor) -> list[torch.Tensor]:
        """``[row, node]`` as one ``[row, 1, width]`` per place after the input."""
        parts = nodes.split([p.n for p in self.nodes], dim=-1)
        return [p.spread(part) for p, part in zip(self.nodes, parts, strict=True)]


def seen(model: LanguageModel, metric: Metric, kinds: Iterable[str], up_to: int | None = None) -> Seen:
    """Where nodes of some kinds write, up to where the metric reads.

    Args:
        model: from `emotrace.load`.
        metric: what is measured.
        kinds: head, mlp, neuron, attn, resid, or sublayer for attn and mlp.
        up_to: only layers below it; None for all.

    Raises:
        EmotraceError: for an unknown kind, a model without its site, a metric without the members of `Metric`, or no node
            before it.
    """
    if not isinstance(metric, Metric):
        raise EmotraceError(f"{type(metric).__name__} is no metric: it needs name, reads(model) and lower(…).")
    sites = model.sites
    wanted = kinds_of(kinds, "scores(nodes=…)")
    addresses = [read_at(model, site, layer) for site, layer in metric.reads(model)]
    reads = tuple(a.read(model, i) for i, a in enumerate(addresses))
    last = max(a.order for a in addresses)
    found = []
    for kind in wanted:
        component = COMPONENTS[kind]
        for layer in sites.layers(component.site):
            a = sites.address(component.site, layer)
            if a.order < last and (up_to is None or layer < up_to):
                n = component.per_layer(sites.size(component.site, layer))
                found.append(NodeSite(kind, layer, a.order, sites.place(a.site, layer), a.width, n))
    if not found:
        raise EmotraceError(f"no {' or '.join(wanted)} runs before the metric reads ({metric.name}).")
    first = sites.address("resid_pre", min(sites.layers("resid_pre")))
    begin = NodeSite("input", -1, first.order, sites.place("resid_pre", first.layer), first.width, 1)
    return Seen((begin, *sorted(found, key=lambda p: p.order)), reads)


def read_at(model: LanguageModel, site: str, layer: int | None) -> Address:
    """Where a site is read: ``resid_mid`` of a sequential layer at the input of the norm that reads it."""
    return model.sites.address(site, layer).seen


def refuse_remote(model: LanguageModel, method: str) -> None:
    """Refuse slopes of edges of a model that runs elsewhere.

    Raises:
        EmotraceError: for a model loaded with ``remote=``.
    """
    if backend(model) is not HERE:
        raise EmotraceError(
            f"scores(level='edge', method={method!r}) takes slopes back through the weights: load the model here, without "
            "remote=, or patch its edges (path_patching, acdc), or score nodes (level='node')."
        )
