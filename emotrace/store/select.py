"""Select: labels → one sorted integer selection, per dim and over the token table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emotrace.labels import EmotraceError, check_positions, rows_at, unknown

MANY = 40
"""More choices than this are not listed in an error."""


def said(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels as they are looked at more than once: several values as a list, but for a span of positions; one as itself."""
    out: dict[str, Any] = {}
    for name, wanted in labels.items():
        value = wanted.item() if isinstance(wanted, np.ndarray) and not wanted.ndim else wanted
        several = None if name == "position" and isinstance(value, tuple) else _several(value)
        out[name] = value if several is None else several
    return out


def index_of(dim: str, values: Sequence[Any], wanted: object) -> int | list[int]:
    """Index or indices of coordinate values along an array dim.

    Args:
        dim: the dim, for the error.
        values: its coordinates, in order.
        wanted: one value (gives an int: the dim is dropped), several, or a slice of numbers, which includes its stop.

    Raises:
        EmotraceError: for a value that is not a coordinate, or an empty selection.
    """
    if isinstance(wanted, slice):
        mask = _between(dim, np.asarray(values), wanted)
        return _some(dim, wanted, np.flatnonzero(mask).tolist())
    place = {v: i for i, v in enumerate(values)}
    several = _several(wanted)
    if several is None:
        return _place(dim, place, wanted)
    return _some(dim, wanted, [_place(dim, place, w) for w in several])


def rows_of(
    column: Callable[[str], np.ndarray], names: Sequence[str], n_rows: int, wanted: Mapping[str, Any]
) -> np.ndarray:
    """Sorted rows of the token table whose labels are as wanted, all conditions together.

    Args:
        column: name → its values.
        names: all columns.
        n_rows: rows of the table.
        wanted: column → one value, several, or a slice of numbers that includes its stop; ``position`` also takes a
            policy name (``last``, ``generated``, ``steer``, ``prompt``, ``all``) or a half-open span ``(start, stop)``.

    Raises:
        EmotraceError: for an unknown column or value, or if no row is left.
    """
    mask = np.ones(n_rows, dtype=bool)
    for name, value in wanted.items():
        if name not in names:
            raise unknown("label", name, names, "sel")
        if name == "position" and isinstance(value, (str, tuple)):
            mask &= _positions(column, value)
        else:
            mask &= _matches(name, column(name), value)
    if not mask.any():
        asked = ", ".join(f"{k}={v!r}" for k, v in wanted.items()) or "the committed rows"
        raise EmotraceError(f"the selection is empty: no row has {asked}.")
    return np.flatnonzero(mask)


def _positions(column: Callable[[str], np.ndarray], value: str | tuple[int, int]) -> np.ndarray:
    policy = check_positions(value, "sel(position=…)")
    return rows_at(policy, lambda: column("position"), lambda: column("position_from_end"))


def _matches(name: str, values: np.ndarray, wanted: object) -> np.ndarray:
    if isinstance(wanted, slice):
        return _between(name, values, wanted)
    several = _several(wanted)
    if several is not None and len(several) > MANY:
        lost = set(several) - set(pd.unique(values).tolist())
        if lost:
            raise _unknown(name, min(lost, key=several.index), values)
        return np.asarray(pd.Series(values).isin(several))
    mask = np.zeros(len(values), dtype=bool)
    for value in [wanted] if several is None else several:
        same = _equal(values, value)
        if not same.any():
            raise _unknown(name, value, values)
        mask |= same
    return mask


def _equal(values: np.ndarray, value: object) -> np.ndarray:
    text, flag = values.dtype == object, isinstance(value, (bool, np.bool_)) and values.dtype.kind != "b"
    if text != isinstance(value, str) or flag or not np.isscalar(value):  # True is no 1
        return np.zeros(len(values), dtype=bool)
    return np.asarray(values == value, dtype=bool)


def _between(name: str, values: np.ndarray, wanted: slice) -> np.ndarray:
    bounds = [b for b in (wanted.start, wanted.stop) if b is not None]
    if values.dtype.kind not in "iufb":
        raise EmotraceError(
            f"{name}={wanted!r}: {name} holds names, which have no order; give a name or a list of names."
        )
    if wanted.step not in (None, 1) or any(isinstance(b, str) or not np.isscalar(b) for b in bounds):
        raise EmotraceError(
            f"{name}={wanted!r}: a slice is slice(first, last) of numbers, both included, without a step."
        )
    mask = np.ones(len(values), dtype=bool)
    if wanted.start is not None:
        mask &= values >= wanted.start
    if wanted.stop is not None:
        mask &= values <= wanted.stop
    return mask


def _several(wanted: object) -> list[Any] | None:
    if isinstance(wanted, np.ndarray) and wanted.ndim:
        return [w.item() if isinstance(w, np.generic) else w for w in wanted.ravel()]
    if isinstance(wanted, (str, bytes)) or not isinstance(wanted, Iterable):
        return None
    return [w.item() if isinstance(w, np.generic) else w for w in wanted]


def _place(dim: str, place: Mapping[Any, int], value: object) -> int:
    try:
        found = place.get(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise _unknown(dim, value, np.asarray([*place], dtype=object))
    return found


def _some(dim: str, wanted: object, index: list[int]) -> list[int]:
    if not index:
        raise EmotraceError(f"the selection is empty: no {dim} is in {wanted!r}.")
    return index


def _unknown(name: str, value: object, values: np.ndarray) -> EmotraceError:
    choices = pd.unique(values).tolist()
    if len(choices) <= MANY:
        return unknown(name, value, choices, "sel")
    numbers = not isinstance(choices[0], str)
    if numbers:
        return EmotraceError(
            f"unknown {name} {value!r} in sel. There are {len(choices):,}, from {min(choices)} to {max(choices)}."
        )
    close = difflib.get_close_matches(str(value), [str(c) for c in choices[:20_000]], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return EmotraceError(f"unknown {name} {value!r} in sel.{hint} There are {len(choices):,}, such as {choices[0]!r}.")
