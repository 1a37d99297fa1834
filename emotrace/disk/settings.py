"""Settings: what a file, a folder or a row was made with, against what is wanted now."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from emotrace.disk.whole import clear_leftovers, write_json
from emotrace.files import read_bytes
from emotrace.labels import EmotraceError
from emotrace.texts import from_json

Made = Mapping[str, Any]
"""Name → JSON value (or digest) of everything that a thing depends on."""
SHOWN: Final = 160
"""Characters of a value that a message shows."""
NOTHING: Final = "(nothing)"
EARLIER: Final = "Earlier versions did not record all of this: where one of them began it, only another path helps."
"""Said where a record lacks an entry: the same settings, given again, would be refused again."""
MAY_DIFFER: Final = ("command", "versions")
"""Entries of a record that may differ when a run is continued."""


def differences(was: Made, now: Made, may_differ: Collection[str] = ()) -> list[str]:
    """``name: old there, new now`` of everything in which two records differ, by name; inside records by ``outer.inner``.

    Args:
        was: of the file.
        now: wanted.
        may_differ: names that are not compared.
    """
    out: list[str] = []
    for name in sorted({*was, *now} - set(may_differ)):
        a, b = was.get(name, NOTHING), now.get(name, NOTHING)
        if _text(a) == _text(b):
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += [f"{name}.{inner}" for inner in differences(a, b)]
        else:
            out.append(f"{name}: {_short(a)} there, {_short(b)} now")
    return out


def settle(
    path: str | os.PathLike[str], was: Made | None, now: Made, may_differ: Collection[str] = (), what: str = ""
) -> None:
    """Refuse to continue what was made with other settings.

    Args:
        path: file or folder, for the message.
        was: what it was made with; None where that is not recorded.
        now: what is wanted.
        may_differ: names that are not compared.
        what: which part of it, e.g. ``row 'a' (steer)``.

    Raises:
        EmotraceError: naming the path and every difference.
    """
    where = f"{path}: {what}" if what else str(path)
    if was is None:
        raise EmotraceError(
            f"{where} was written by an earlier version: there is no record of its prompt and settings. Give another file."
        )
    found = differences(was, now, may_differ)
    if found:
        raise EmotraceError(
            f"{where} was made with other settings ({'; '.join(found)}). "
            "It is left as it is: give another path, or the settings it was begun with."
            + (f" {EARLIER}" if _lacks(was, {k: v for k, v in now.items() if k not in may_differ}) else "")
        )


def settle_file(path: str | os.PathLike[str], now: Made, may_differ: Collection[str] = (), note: bool = True) -> bool:
    """Settle the settings that a JSON file notes, or note them where there is none.

    Args:
        path: of the file; what it speaks of is its folder.
        now: what is wanted.
        may_differ: names that are not compared.
        note: write the file where it does not exist.

    Returns:
        Whether the file was there.

    Raises:
        EmotraceError: for other settings, or a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        if note:
            clear_leftovers(path.parent, path.name)
            write_json(path, now)
        return False
    text = read_bytes(path)
    try:
        was = dict(from_json(text))
    except (ValueError, TypeError) as error:
        raise EmotraceError(f"{path} is damaged ({error}). Give another folder, or delete it to start over.") from None
    settle(path.parent, was, json.loads(json.dumps(now)), may_differ)
    return True


def same_row(path: str | os.PathLike[str], row: Mapping[str, Any], now: Made, name: str) -> None:
    """Refuse a row of a file that something else made than what is wanted now.

    What made a row is under ``meta.made``, and beside it in ``meta`` where a field of ``now`` has its place there.

    Args:
        path: of the file.
        row: found in it.
        now: what would make it now.
        name: of the row, for the message.

    Raises:
        EmotraceError: naming the row and every difference, or an earlier version that kept no record.
    """
    meta = row.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    made = meta.get("made")
    known = isinstance(made, Mapping)
    settle(path, {k: v for k, v in {**meta, **made}.items() if k in now} if known else None, now, what=name)


def plain(value: object) -> Any:
    """A value as JSON holds it: arrays as lists, numpy numbers as Python's, tuples as lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple, range)) else value


def _lacks(was: Made, now: Made) -> bool:
    """Whether a record, or a record inside it, has no entry for something that is recorded now."""
    return any(
        name not in was or (isinstance(value, Mapping) and isinstance(was[name], Mapping) and _lacks(was[name], value))
        for name, value in now.items()
    )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
