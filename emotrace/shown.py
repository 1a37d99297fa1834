"""Shown: progress bars, and what terminals and notebooks print of our own things: sizes, never vectors or whole sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import fields
from html import escape
from typing import Any, Final

from tqdm.auto import tqdm

LONGEST: Final = 32
"""Characters of a label that are printed: a name, not a sentence."""


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    desc: str = "",
    unit: str = "it",
    enabled: bool = True,
    leave: bool = True,
) -> tqdm[Any]:
    """A bar with rate and time left, on stderr or in a notebook; iterate over it, or call its ``update(n)`` and ``close()``.

    Where there is nothing to do, there is no bar.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return tqdm(
        iterable, total=total, desc=desc, unit=unit, disable=not enabled or total == 0, leave=leave, dynamic_ncols=True
    )


def array(value: Any) -> str:
    """``[emotion 6, dim 64] float32``: dims with their sizes, and the type, of an array; of anything else its type."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    names = getattr(value, "dims", None) or [""] * len(shape)
    sizes = ", ".join(f"{name} {n}".strip() for name, n in zip(names, shape, strict=True))
    return f"[{sizes}] {str(getattr(value, 'dtype', '')).removeprefix('torch.')}".rstrip()


def called(name: str, *given: object, **named: object) -> str:
    """``Name('given', named=2)``, as it was called; what is None is left out, and what is an array is its sizes."""
    parts = [short(value) for value in given]
    parts += [f"{key}={short(value)}" for key, value in named.items() if value is not None]
    return f"{name}({', '.join(parts)})"


def brief(self: Any) -> str:
    """A ``__repr__`` for dataclasses and named tuples that hold arrays, tables or long mappings: their sizes."""
    names = getattr(self, "_fields", None) or [f.name for f in fields(self) if f.repr]
    return f"{type(self).__name__}({', '.join(f'{name}={_brief(getattr(self, name))}' for name in names)})"


def _brief(value: object) -> str:
    if hasattr(value, "shape") and getattr(value, "shape", ()) != ():
        return array(value)
    if isinstance(value, str):
        return repr(clipped(value))
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(clipped, list(value)[:4]))}{f', … {len(value)} in all' if len(value) > 4 else ''}}}"
    if isinstance(value, (list, tuple)):
        said = ", ".join(_brief(v) for v in value[:4])
        return f"({said}, … {len(value):,} in all)" if len(value) > 4 else f"({said})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return repr(value)


def html(title: str, rows: Mapping[str, object]) -> str:
    """A title and names with their values, for notebooks; everything is escaped."""
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(str(name))}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div><p>{escape(title)}</p><table>{body}</table></div>"


def short(value: object) -> str:
    """A value in a line: of an array its sizes, of a long list its ends."""
    if hasattr(value, "shape") and getattr(value, "shape", ()) != ():
        return array(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return span(value)
    return repr(value)


def span(values: Sequence[Any]) -> str:
    """``[0…5]`` for a run of whole numbers, else the first three and how many there are."""
    if all(isinstance(v, int) for v in values) and list(values) == list(range(values[0], values[0] + len(values))):
        return f"[{values[0]}…{values[-1]}]"
    return f"[{', '.join(map(repr, values[:3]))}, … {len(values)} in all]"


def few(values: Sequence[Any]) -> str:
    """The first six, sentences cut, and how many there are."""
    said = ", ".join(clipped(value) for value in values[:6])
    return said if len(values) <= 6 else f"{said}, … ({len(values):,} different)"


def clipped(value: object) -> str:
    """A value as it is; in quotes where its blanks would not be seen, cut where it is long."""
    text = value if isinstance(value, str) else str(value)
    text = repr(text) if isinstance(value, str) and (text != text.strip() or not text) else " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
