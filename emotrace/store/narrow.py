"""Narrow: which part of every variable a view of activations keeps, and how a selection is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from emotrace import disk
from emotrace.labels import EmotraceError
from emotrace.store.select import MANY, index_of
from emotrace.store.variable import Variable

Narrowing = Mapping[str, list[int]]
"""Dim → sorted indices that are kept of it; a dim that is not named is kept whole."""


def kept_of(
    variables: Mapping[str, Variable], labels_of: Callable[[Variable, str], Sequence[Any]], wanted: Mapping[str, Any]
) -> dict[str, dict[str, list[int]]]:
    """What every variable keeps; one that has a dim, but none of the wanted values, is left out.

    Args:
        variables: name → variable.
        labels_of: variable, dim → its labels, in order.
        wanted: array dim → one value, several, or a slice of numbers that includes its stop.

    Returns:
        Variable → dim → sorted indices.

    Raises:
        EmotraceError: for a value that no variable has.
    """
    kept: dict[str, dict[str, list[int]]] = {name: {} for name in variables}
    for dim, value in wanted.items():
        having = {name: list(labels_of(v, dim)) for name, v in variables.items() if dim in v.dims}
        union = list(dict.fromkeys(label for labels in having.values() for label in labels))
        index = index_of(dim, union, value)
        chosen = {union[i] for i in ([index] if isinstance(index, int) else index)}
        for name, labels in having.items():
            at = [i for i, label in enumerate(labels) if label in chosen]
            if not at:
                kept.pop(name, None)
            elif name in kept:
                kept[name][dim] = at
    if not kept:
        raise EmotraceError(f"the selection is empty: no variable has {shown(wanted)}.")
    return kept


def narrowed(variable: Variable, kept: Narrowing) -> Variable:
    """The variable with what is kept of its dims."""
    coords = {d: [c[i] for i in kept[d]] if d in kept else list(c) for d, c in variable.coords.items()}
    sizes = {d: len(kept[d]) if d in kept else n for d, n in variable.sizes.items()}
    cells = [c for c in variable.absent if all(x in coords[d] for d, x in zip(variable.cell_dims, c, strict=True))]
    return replace(variable, coords=coords, sizes=sizes, absent=tuple(cells))


def within(kept: Narrowing, further: Narrowing) -> dict[str, list[int]]:
    """What is left of the whole where ``further`` counts along what was kept before."""
    return {**kept, **{d: [kept[d][i] for i in at] if d in kept else at for d, at in further.items()}}


def chained(before: str, wanted: Mapping[str, Any]) -> str:
    """Selections in order, as JSON: those before, and one more where it names a label.

    A slice is ``{"slice": [first, last]}``, a span of positions ``{"span": [start, stop]}``, and more than `MANY` values stand as
    their number and digest.
    """
    chain = json.loads(before)
    return json.dumps([*chain, {name: _plain(value) for name, value in wanted.items()}] if wanted else chain)


def shown(wanted: Mapping[str, Any]) -> str:
    """A selection in words, for errors."""
    return ", ".join(f"{name}={value!r}" for name, value in wanted.items())


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [_plain(value.start), _plain(value.stop)]}
    if isinstance(value, tuple):
        return {"span": [_plain(v) for v in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    values = [_plain(v) for v in value]
    return values if len(values) <= MANY else {"values": len(values), "digest": disk.digest(values)}
