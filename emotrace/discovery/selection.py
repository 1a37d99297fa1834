"""Selection: from scores to the mask of a circuit, a boolean array over nodes or edges. Pure."""

from __future__ import annotations

import heapq
import re
from typing import Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats.ties import descending, tied, tolerance

RULES: Final = ("top", "greedy")
Rule = Literal["top", "greedy"]


def component(found: xr.Dataset | xr.DataArray) -> str:
    """The dim that counts components: ``node`` or ``edge``.

    Raises:
        EmotraceError: for an array with neither.
    """
    dims = [d for d in ("node", "edge") if d in found.dims]
    if len(dims) != 1:
        raise EmotraceError(
            f"scores and masks have the dim 'node' or 'edge'; these have {tuple(map(str, found.dims))}."
        )
    return dims[0]


def values_of(found: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """Mean scores ``[node | edge]`` of a Dataset of `scores`, or the array itself.

    Raises:
        EmotraceError: for scores with other dims, or NaN.
    """
    score = found["score"] if isinstance(found, xr.Dataset) else found
    dim = component(score)
    score = score.mean("pair", keep_attrs=True).assign_attrs(found.attrs) if "pair" in score.dims else score
    if score.dims != (dim,) or not np.isfinite(score.values).all():
        raise EmotraceError(f"scores are finite numbers [pair, {dim}] or [{dim}], not {score.dims}.")
    return score


@typed
def select(
    found: xr.Dataset | xr.DataArray,
    n: int | None = None,
    *,
    threshold: float | None = None,
    rule: Rule = "top",
    absolute: bool = True,
) -> xr.DataArray:
    """The components of a circuit.

    ``top`` takes the highest scores; ``greedy`` (edges) starts at ``out`` and takes, again and again, the highest edge into
    a component that is in already, so that everything it takes leads to the metric (Hanna et al. 2403.17806).

    Args:
        found: Dataset of `scores`, or one score per component.
        n: how many; equal scores in the order of the components.
        threshold: or all from this score on (with ``greedy``: that lead to the metric through such edges).
        rule: one of `RULES`.
        absolute: rank by magnitude, so that components that lower the metric are taken too; False ranks by signed score.

    Returns:
        The mask of the circuit, boolean ``[node]`` or ``[edge]``, with the scores' coordinates; its attrs say how it was chosen.

    Raises:
        EmotraceError: unless n or a threshold is given, for an n out of range, an unknown rule, or greedy nodes.
    """
    score = values_of(found)
    dim = component(score)
    if rule not in RULES:
        raise unknown("rule", rule, RULES, "select(rule=…)")
    if (n is None) == (threshold is None):
        raise EmotraceError(f"select(n={n}, threshold={threshold}): give one of them.")
    if n is not None:
        n = arguments.whole("select(n)", n, 0, score.size)
    if threshold is not None:
        threshold = arguments.number("select(threshold)", threshold)
    arguments.flag("select(absolute)", absolute)
    if rule == "greedy" and dim == "node":
        raise EmotraceError(
            "select(rule='greedy'): nodes are not joined to one another; take rule='top', or score edges."
        )
    values = np.asarray(score.values, dtype=np.float64)
    ranked = tied(np.abs(values) if absolute else values)
    least = -np.inf if threshold is None else float(threshold) - float(tolerance(ranked)[0])
    order = descending(ranked) if rule == "top" else _greedy(score, ranked, least)
    chosen = order[:n] if n is not None else order[ranked[order] >= least]
    mask = np.zeros(score.size, dtype=bool)
    mask[chosen] = True
    attrs = {**score.attrs, "rule": rule, "absolute": absolute, "n": int(mask.sum())}
    return score.copy(data=mask).rename("circuit").assign_attrs(attrs)


@typed
def live(mask: xr.DataArray) -> xr.DataArray:
    """The edges of a circuit that lie on a path from ``embed`` to ``out``; the others do nothing under counterfactuals.

    Raises:
        EmotraceError: for a circuit of nodes.
    """
    source, readers = ends(mask)
    inside = np.asarray(mask.values, dtype=bool).copy()
    fed, leading = {"embed"}, {"out"}
    for _ in range(len(inside) + 1):
        before = (len(fed), len(leading))
        for i in np.flatnonzero(inside):
            if source[i] in fed:
                fed |= set(readers[i])
            if leading & set(readers[i]):
                leading.add(source[i])
        if before == (len(fed), len(leading)):
            break
    keep = [bool(m) and source[i] in fed and bool(leading & set(readers[i])) for i, m in enumerate(inside)]
    return mask.copy(data=np.array(keep, dtype=bool))


@typed
def nodes_of(mask: xr.DataArray) -> list[str]:
    """Names of the nodes that write in a circuit: its nodes, or the sources of its edges without ``embed``."""
    dim = component(mask)
    names = mask["node" if dim == "node" else "source"].values[np.asarray(mask.values, dtype=bool)]
    return [n for n in dict.fromkeys(names.tolist()) if n != "embed"]


def ends(mask: xr.DataArray) -> tuple[list[str], list[list[str]]]:
    """Source of every edge, and the nodes that its target is an input of: of a key or value, all heads of the group.

    How many heads share a group is in the attrs of `scores`; without them it is counted in the names.
    """
    if component(mask) != "edge":
        raise EmotraceError("a circuit of nodes has no paths; score edges (level='edge').")
    source, target = mask["source"].values.tolist(), mask["target"].values.tolist()
    each = max(1, _count(mask, "n_heads", "h", source + target) // _count(mask, "n_kv_heads", "g", target))
    return source, [_nodes(name, each) for name in target]


def _count(mask: xr.DataArray, attr: str, kind: str, names: list[str]) -> int:
    if attr in mask.attrs:
        return int(mask.attrs[attr])
    found = [re.fullmatch(rf"a\d+\.{kind}(\d+)(\.[qkv])?", name) for name in names]
    return 1 + max((int(m[1]) for m in found if m), default=0)


def _nodes(target: str, each: int) -> list[str]:
    found = re.fullmatch(r"(a\d+)\.([hg])(\d+)\.[qkv]", target)
    if found is None:
        return [target]
    layer, kind, i = found[1], found[2], int(found[3])
    return [f"{layer}.h{i}"] if kind == "h" else [f"{layer}.h{h}" for h in range(i * each, (i + 1) * each)]


def _greedy(score: xr.DataArray, ranked: np.ndarray, least: float) -> np.ndarray:
    source, readers = ends(score)
    into: dict[str, list[int]] = {}
    for i, names in enumerate(readers):
        for name in names:
            into.setdefault(name, []).append(i)
    inside, taken, heap = {"out"}, [], [(-ranked[i], i) for i in into.get("out", [])]
    heapq.heapify(heap)
    seen: set[int] = {i for _, i in heap}
    while heap:
        _, i = heapq.heappop(heap)
        if ranked[i] < least:  # all that is left to take is lower still
            break
        taken.append(i)
        if source[i] not in inside:
            inside.add(source[i])
            for j in into.get(source[i], []):
                if j not in seen:
                    seen.add(j)
                    heapq.heappush(heap, (-ranked[j], j))
    return np.array(taken, dtype=np.int64)


@typed
def jaccard(a: ArrayLike, b: ArrayLike) -> float:
    """|A ∩ B| / |A ∪ B| of two circuits over the same components; 1 where both are empty.

    Raises:
        EmotraceError: for circuits of different numbers of components.
    """
    one, other = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if one.shape != other.shape:
        raise EmotraceError(f"jaccard: circuits over {one.shape} and {other.shape} components; the same are due.")
    either = int((one | other).sum())
    return float((one & other).sum() / either) if either else 1.0
