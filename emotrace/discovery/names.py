"""Names: how nodes are called, and the labels of the dims ``node`` and ``pair``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from emotrace.discovery.aligned import Pair
from emotrace.labels import COMPONENTS, KINDS, unknown

GROUPS: Final = {"sublayer": ("attn", "mlp")}
SIGN: Final = "positive: the component raises the metric; removing it lowers it"


class NodeName(NamedTuple):
    """One node.

    Attributes:
        name: of kind, layer and number, e.g. ``a3.h1`` (`emotrace.labels.COMPONENTS`).
        kind: of it.
        layer: 0-based.
        number: among those of its kind and layer; −1 where a layer has one.
    """

    name: str
    kind: str
    layer: int
    number: int


def kinds_of(nodes: Iterable[str] | str, place: str) -> list[str]:
    """Kinds, each once, with groups as what they stand for.

    Raises:
        EmotraceError: for an unknown kind.
    """
    wanted: list[str] = []
    for kind in [nodes] if isinstance(nodes, str) else nodes:
        if kind not in COMPONENTS and kind not in GROUPS:
            raise unknown("kind of node", kind, (*COMPONENTS, *GROUPS), place)
        wanted += [k for k in GROUPS.get(kind, (kind,)) if k not in wanted]
    return wanted


def nodes_at(kind: str, layer: int, numbers: Iterable[int]) -> Iterator[NodeName]:
    """Nodes of a kind in a layer, by their numbers."""
    for i in numbers:
        yield NodeName(COMPONENTS[kind].name.format(layer, i), kind, layer, i if kind in KINDS else -1)


def node_coords(nodes: Iterable[NodeName]) -> dict[str, tuple[str, Any]]:
    """Coordinates of the dim ``node``: name, kind, layer, index."""
    names, kinds, layers, index = zip(*nodes, strict=True)
    found = {"node": names, "kind": kinds, "layer": layers, "index": index}
    return {name: ("node", np.array(values)) for name, values in found.items()}


def pair_coords(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Coordinates of the dim ``pair``: key, labels, and labels of the counterfactual as ``against_NAME`` where they differ."""
    found: dict[str, Any] = {"pair": ("pair", np.array([p.key for p in pairs]))}
    taken = {"node", "edge", "kind", "layer", "index", "source", "target", "input", "span", "pair"}
    for name in dict.fromkeys(n for p in pairs for n in p.labels):
        values = [p.labels.get(name) for p in pairs]
        if name not in taken and all(isinstance(v, type(values[0])) and v is not None for v in values):
            found[name] = ("pair", np.array(values))
            other = [p.against.get(name) for p in pairs]
            if other != values and all(isinstance(v, type(values[0])) for v in other):
                found[f"against_{name}"] = ("pair", np.array(other))
    return found
