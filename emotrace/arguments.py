"""Arguments: what a caller gives, checked by one small set of rules, so that nothing is taken that cannot be meant.

Python is generous: ``int("²")`` and ``int(1.9)``, a text as a list of letters, True as 1, NaN as a number. Here a whole number is
what `operator.index` takes (numpy's and torch's too) and no bool; a list is no text and holds each thing once.
"""

from __future__ import annotations

import math
import numbers as kinds
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol, SupportsIndex, TypeVar

import numpy as np

from emotrace.labels import EmotraceError, unknown

SEEDS: Final = 2**63 - 1
"""The largest seed that every generator takes."""
DRAWS: Final = 10**7
"""The most draws or permutations; what takes longer, or more memory, than anybody has, is a slip of the hand."""


BatchSize = Annotated[int | Literal["auto"], "check"]
"""Rows of a batch; ``auto`` for what fits into a part of the free memory."""


class HasDims(Protocol):
    """What has named dims, as xarray's arrays do."""

    @property
    def dims(self) -> Iterable[Hashable]:
        """Their names."""
        ...


L = TypeVar("L", bound=HasDims)
C = TypeVar("C")


def whole(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """A whole number.

    Args:
        name: of the argument, e.g. ``batch_size`` or ``capture(batch_size)``.
        value: what was given.
        least: smallest that is right; None for any.
        most: largest.

    Raises:
        EmotraceError: for a bool, a float (2.0 too), a text, or a number out of bounds.
    """
    try:
        is_flag = isinstance(value, (bool, np.bool_))
        found = operator.index(value) if isinstance(value, SupportsIndex) and not is_flag else None
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None:
        raise EmotraceError(f"{said(name, value)}: a whole number is due.")
    if (least is not None and found < least) or (most is not None and found > most):
        raise EmotraceError(f"{said(name, value)}: {_bounds(least, most)}.")
    return found


def batch(name: str, value: object) -> None:
    """Refuse what is neither a number of rows nor ``auto``.

    Raises:
        EmotraceError: naming it.
    """
    if not isinstance(value, str):
        whole(name, value, 1)
    elif value != "auto":
        raise EmotraceError(f"{name}={value!r}: a whole number of rows, or 'auto'.")


def seed(name: str, value: object) -> int:
    """A seed: a whole number from 0 to `SEEDS`."""
    return whole(name, value, 0, SEEDS)


def resampling(function: str, seed_: object, **counts: object) -> None:
    """Refuse a seed or a count of draws that is no whole number; how many are too few is the function's to say."""
    seed(f"{function}(seed)", seed_)
    for name, value in counts.items():
        whole(f"{function}({name})", value, most=DRAWS)


def number(
    name: str, value: object, *, least: float | None = None, most: float | None = None, above: float | None = None
) -> float:
    """A finite number: no bool, no text, no NaN.

    Args:
        name: of the argument.
        value: what was given.
        least: smallest that is right.
        most: largest.
        above: all that is right is larger than this.

    Raises:
        EmotraceError: for anything else.
    """
    found = _real(value)
    if found is None:
        raise EmotraceError(f"{said(name, value)} is not a finite number.")
    if (least is not None and found < least) or (most is not None and found > most):
        raise EmotraceError(f"{said(name, value)}: {_bounds(least, most)}.")
    if above is not None and found <= above:
        raise EmotraceError(f"{said(name, value)}: above {above:g}.")
    return found


def share(name: str, value: object) -> float:
    """A number between 0 and 1, neither of them.

    Raises:
        EmotraceError: for anything else.
    """
    found = _real(value)
    if found is None or not 0 < found < 1:
        raise EmotraceError(f"{said(name, value)}: a number that lies between 0 and 1 is due.")
    return found


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that Python would read as one of them.

    Raises:
        EmotraceError: for anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise EmotraceError(f"{said(name, value)}: True or False is due.")
    return bool(value)


def choice(name: str, value: object, choices: Iterable[C], place: str = "") -> C:
    """One of the choices.

    Raises:
        EmotraceError: naming them, the closest first.
    """
    known = list(choices)
    for one in known if isinstance(value, (str, int, type(None))) and not isinstance(value, bool) else ():
        if one == value:
            return one
    raise unknown(name, value, known, place)


def wholes(
    name: str, value: object, least: int | None = None, most: int | None = None, *, empty: bool = False
) -> tuple[int, ...]:
    """Whole numbers, each once: of an iterable, or of one alone.

    Args:
        name: of the argument, e.g. ``capture(layers)``.
        value: a whole number, or an iterable of them; no text, slice or mapping.
        least: smallest that is right.
        most: largest.
        empty: whether there may be none.

    Raises:
        EmotraceError: for anything else, or one that occurs twice.
    """
    if isinstance(value, slice):
        raise EmotraceError(f"{said(name, value)}: a slice; give integers, e.g. range({value.start or 0}, …).")
    items = _items(name, value, "whole numbers") if isinstance(value, Iterable) and _listed(value) else [value]
    return _once(name, value, [whole(name, item, least, most) for item in items], empty)


def numbers(name: str, value: object, *, empty: bool = False, **bounds: float) -> tuple[float, ...]:
    """Finite numbers, each once: of an iterable, or of one alone; ``bounds`` as of `number`."""
    items = _items(name, value, "numbers") if isinstance(value, Iterable) and _listed(value) else [value]
    return _once(name, value, [number(name, item, **bounds) for item in items], empty)


def names(
    name: str, value: object, choices: Iterable[str] | None = None, *, empty: bool = False, place: str = ""
) -> tuple[str, ...]:
    """Texts, each once, of an iterable that is no text itself.

    Args:
        name: of the argument.
        value: the texts.
        choices: what they may be; None for anything but blanks.
        empty: whether there may be none.
        place: of the argument, for the message of an unknown one.

    Raises:
        EmotraceError: for one text, anything that is no text, an unknown one, or one that occurs twice.
    """
    if isinstance(value, (str, bytes)):
        raise EmotraceError(f"{said(name, value)}: a list of names is due, e.g. [{value!r}].")
    found = [text(name, item) for item in _items(name, value, "names")]
    if choices is not None:
        found = [choice(name, item, choices, place) for item in found]
    return _once(name, value, found, empty)


def text(name: str, value: object) -> str:
    """A text that is not blank and that every file can hold (no half of a surrogate pair).

    Raises:
        EmotraceError: for anything else.
    """
    if not isinstance(value, str) or not value.strip():
        raise EmotraceError(f"{said(name, value)}: a text that is not blank is due.")
    return encodable(name, value)


def encodable(name: str, value: str) -> str:
    """The text, unless it holds half of a surrogate pair, which is no character: no tokenizer or file takes it.

    Raises:
        EmotraceError: naming the place of the half.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise EmotraceError(f"{name}: character {error.start} is half of a surrogate pair ({half}), no text.") from None
    return value


def real(name: str, value: object) -> np.ndarray:
    """Numbers as an array of floats: no complex ones, no bools, texts or objects, and all of them finite.

    Raises:
        EmotraceError: for anything else.
    """
    found = _array(name, value)
    if found.dtype.kind not in "fiu":
        raise EmotraceError(f"{name} holds {found.dtype}; real numbers are due.")
    if not np.isfinite(found).all():
        raise EmotraceError(f"{name} has NaN or infinite values.")
    return found


def _array(name: str, value: object) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise EmotraceError(f"{name} is no array of numbers ({error}).") from None


def values(name: str, value: object) -> np.ndarray:
    """Real numbers as float64, True and False as 1 and 0; NaN is a value here.

    Raises:
        EmotraceError: for texts, complex numbers, or anything else that is none.
    """
    found = _array(name, value)
    plain = found.dtype.kind in "fiub" or all(isinstance(item, kinds.Real) for item in found.ravel().tolist())
    if not plain:
        raise EmotraceError(f"{name} holds {found.dtype}; real numbers are due.")
    return found.astype(np.float64)


def having(name: str, value: L, *dims: str) -> L:
    """A labelled array with these dims, and maybe others.

    Raises:
        EmotraceError: naming the one that it lacks.
    """
    for dim in dims:
        if dim not in value.dims:
            raise unknown("dim", dim, map(str, value.dims), name)
    return value


def said(name: str, value: object) -> str:
    """An argument with its value, for a message: ``capture(batch_size=0)`` for the name ``capture(batch_size)``."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    if name.endswith(")"):
        return f"{name[:-1]}={shown})"
    return f"{name} is {shown}" if " " in name else f"{name}={shown}"


def _real(value: object) -> float | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (kinds.Real, np.floating, np.integer)):
        return None
    try:
        found = float(value)
    except (OverflowError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _bounds(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return f"at least {least}" if most is None else f"at most {most}"
    return f"{least} to {most}"


def _listed(value: object) -> bool:
    """Whether an iterable is several things rather than one (an array without dims is one)."""
    return getattr(value, "ndim", 1) != 0


def _items(name: str, value: object, what: str) -> Sequence[Any]:
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise EmotraceError(f"{said(name, value)}: a list of {what} is due.")
    return list(value)


def _once(name: str, value: object, found: list[Any], empty: bool) -> tuple[Any, ...]:
    if not found and not empty:
        raise EmotraceError(f"{said(name, value)} is empty: at least one is due.")
    seen: set[Any] = set()
    for item in found:
        if item in seen:
            raise EmotraceError(f"{said(name, value)}: {item!r} occurs twice.")
        seen.add(item)
    return tuple(found)
