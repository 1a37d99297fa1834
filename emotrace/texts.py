"""Texts: what comes from outside may hold anything; how it is read, written and shown without loss and without a fall."""

from __future__ import annotations

import json
import re
from typing import Any, Final

REPLACED: Final = "\ufffd"
"""Stands for what no text can hold, where it is shown or sent."""
_LONE = re.compile("[\ud800-\udfff]")
_LONG_INT: Final = 400


def to_json(obj: object, **options: Any) -> str:
    """JSON that every UTF-8 file takes: half of a surrogate pair is written as its escape, and read back as it was.

    Args:
        obj: JSON values.
        options: of `json.dumps`.
    """
    return _LONE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(obj, ensure_ascii=False, **options))


def from_json(text: str | bytes, **options: Any) -> Any:
    """What `json.loads` reads, where whatever cannot be read is a ValueError, and no number is too long.

    Args:
        text: JSON, with or without a byte order mark.
        options: of `json.loads`.

    Raises:
        ValueError: for what is no JSON, or nested too deeply.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        return json.loads(text, parse_int=integer, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_bytes(text: str) -> bytes:
    """UTF-8 of a page or a table; half of a surrogate pair is shown as its escape."""
    return text.encode(errors="backslashreplace")


def whole(text: str) -> str:
    """The text as a tokenizer or an endpoint takes it: halves of surrogate pairs replaced."""
    return _LONE.sub(REPLACED, text)


def one_line(text: str, limit: int) -> str:
    """A text of others, fit to be shown and kept: on one line, printable, not endless."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else REPLACED for c in line[:limit])


def integer(digits: str) -> int | float:
    """The number, as long as Python reads it; infinity beyond what a float holds."""
    return int(digits) if len(digits) < _LONG_INT else float(digits)
