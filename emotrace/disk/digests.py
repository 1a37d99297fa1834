"""Digests: one short name for everything that made a thing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from pathlib import PurePath
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from emotrace.labels import EmotraceError

PLAIN: Final = {int, str, float, bool, type(None)}
"""What JSON has as it is."""


def digest(value: object) -> str:
    """16 hexadecimal digits of the SHA-256 of a value as canonical JSON: equal values have equal digests.

    Keys are sorted, tuples are lists, numpy numbers are Python's; an array stands as its shape, type and bytes, a labelled
    one with its dims and labels, never its attrs.

    Raises:
        EmotraceError: for a value that is none of these.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@runtime_checkable
class LabelledArray(Protocol):
    """An array with labels, as xarray's are."""

    dims: tuple[Hashable, ...]
    coords: Mapping[Any, LabelledArray]
    values: np.ndarray


def _plain(value: object) -> object:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return list(value) if set(map(type, value)) <= PLAIN else [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            return ["array", list(value.shape), _plain(value.tolist())]
        numbers = np.ascontiguousarray(value)
        return ["array", list(value.shape), value.dtype.str, hashlib.sha256(numbers.tobytes()).hexdigest()]
    if isinstance(value, LabelledArray):
        named = {str(n): [[str(d) for d in c.dims], _plain(c.values)] for n, c in value.coords.items()}
        return ["labelled", [str(d) for d in value.dims], named, _plain(np.asarray(value.values))]
    raise EmotraceError(f"digest: {type(value).__name__} {value!r} has no canonical form.")
