"""Files: what users' files hold, read by one strict reader, and whether a destination can be written, asked before any work.

JSON is read as its standard has it: a key once in an object, no NaN, no infinity, no half of a surrogate pair, and not nested
deeper than `DEPTH`; whatever else a file holds is an error that names file and line.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from emotrace import shipped
from emotrace.labels import EmotraceError
from emotrace.signatures import typed

DEPTH: Final = 64
"""Lists and objects inside each other; data has a handful, and readers of any language fail somewhere above."""


def read_text(path: str | Path) -> str:
    """A UTF-8 file, its line ends as they are, without its byte order mark.

    Raises:
        EmotraceError: for a missing file, a folder, one that may not be read, or bytes that are not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EmotraceError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from None


def read_bytes(path: str | Path) -> bytes:
    """What a file holds; one of emotrace's example data (``data/NAME``) wherever the work is done.

    Raises:
        EmotraceError: for a missing file, a folder, or one that may not be read.
    """
    try:
        return shipped.find(path).read_bytes()
    except FileNotFoundError:
        raise EmotraceError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise EmotraceError(f"{path} is a directory, not a file.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise EmotraceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        EmotraceError: as `read_text` and `parsed`.
    """
    return parsed(read_text(path), str(path))


@typed
def read_jsonl(path: str | Path, *, halves: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON-lines file, each with ``file:line`` for error messages.

    Args:
        path: the file.
        halves: take halves of surrogate pairs, which what a model or an endpoint said may hold.

    Raises:
        EmotraceError: as `read_text` and `parsed`, or for a line that is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):  # JSON strings may hold U+2028 and its like
        if line.strip():
            where = f"{path}:{number}"
            row = parsed(line, where, one_line=True, halves=halves)
            if not isinstance(row, dict):
                raise EmotraceError(f"{where}: a row is a JSON object, not {type(row).__name__}.")
            yield where, row


def parsed(text: str, place: str, *, one_line: bool = False, halves: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.
        place: of the text, e.g. ``file:line``.
        one_line: the place names the line already.
        halves: take halves of surrogate pairs, which what a model or an endpoint said may hold.

    Raises:
        EmotraceError: naming the place, for what is no JSON, a key that occurs twice in one object, a number that is not
            finite or too long, half of a surrogate pair, or values nested deeper than `DEPTH`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if text.count("[") + text.count("{") > DEPTH:
            _check_depth(value)
        if "\\u" in text and not halves:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = "" if one_line else f":{error.lineno}"
        raise EmotraceError(f"{place}{line}: not JSON ({error.msg} at column {error.colno}).") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise EmotraceError(f"{place}: {half} is half of a surrogate pair, no text.") from None
    except RecursionError:
        raise EmotraceError(f"{place}: JSON nested deeper than {DEPTH} levels.") from None
    except ValueError as error:  # ours, of the hooks, and Python's of a number with thousands of digits
        raise EmotraceError(f"{place}: {str(error).split(';')[0].rstrip('.')}.") from None
    return value


def to_file(out: object, name: str = "out") -> Path:
    """A path that a file can be written to, now; nothing is left there.

    Args:
        out: where to; parents need not exist.
        name: of the argument or flag, for messages.

    Raises:
        EmotraceError: for what is no path, a folder, a parent that is a file, or a place where nothing may be written.
    """
    path = _path(out, name)
    if path.is_dir():
        raise EmotraceError(f"{name} {path} is a folder; give a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise EmotraceError(f"{name} {path} may not be written.")
    _room(path.parent, path, name, "file")
    return path


def to_folder(out: object, name: str = "out", *, store: bool = False) -> Path:
    """A path that a folder can be made at or written into, now; nothing is left there.

    Args:
        out: where to; parents need not exist.
        name: of the argument or flag, for messages.
        store: whether a zarr store may lie there, which is continued.

    Raises:
        EmotraceError: for what is no path, a file, a zarr store (but see ``store``), a parent that is a file, or a place where
            nothing may be written.
    """
    path = _path(out, name)
    if path.exists() and not path.is_dir():
        raise EmotraceError(f"{name} {path} is a file; give a folder.")
    if not store and (path / "zarr.json").exists():
        raise EmotraceError(f"{name} {path} is a zarr store; what is made of it goes beside it, into another folder.")
    _room(path, path, name, "folder")
    return path


def _path(out: object, name: str) -> Path:
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip() or "\0" in str(out):
        raise EmotraceError(f"{name}={out!r} is no path.")
    try:
        Path(out).exists()
    except OSError as error:
        raise EmotraceError(f"{name} {out} cannot be written: {error.strerror}.") from None
    return Path(out)


def _room(folder: Path, path: Path, name: str, kind: str) -> None:
    """Write a nameless file into the nearest folder that there is."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise EmotraceError(f"{name} {path}: {there} is a file, so no {kind} can be made below it.")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise EmotraceError(f"{name} {path} cannot be written: {there}: {error.strerror or error}.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
        if not level:
            return
    raise RecursionError
