"""Cache: what was found out once about a thing, and need not be found out again, in a folder of the user's.

``EMOTRACE_CACHE`` names the folder, and keeps nothing where it is empty; without it that is ``emotrace`` in ``XDG_CACHE_HOME``,
or in ``~/.cache``. Any of it may be removed at any time: what is not there, of another thing, or damaged is found out again.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Final

from emotrace.disk.digests import digest
from emotrace.disk.whole import write_json
from emotrace.labels import EmotraceError
from emotrace.texts import from_json

VARIABLE: Final = "EMOTRACE_CACHE"


def folder() -> Path | None:
    """Where it is kept; None where nothing is to be, or the user has no home."""
    named = os.environ.get(VARIABLE)
    try:
        if named is not None:
            return Path(named).expanduser() if named.strip() else None
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emotrace"
    except RuntimeError:  # in containers, a user whom the system does not know
        return None


def known(kind: str, about: Any) -> Any:
    """What was kept of a thing; None for nothing, or what was changed since.

    Args:
        kind: of what was found out.
        about: everything that it depends on, as `digest` takes it.
    """
    path = _path(kind, about)
    if path is None:
        return None
    try:
        found = from_json(path.read_bytes())
    except (OSError, ValueError):  # not there, or half of it
        return None
    whole = isinstance(found, dict) and found.get("about") == digest(about) and "value" in found
    return found["value"] if whole and found.get("digest") == digest(found["value"]) else None


def keep(kind: str, about: Any, value: Any) -> None:
    """Keep what was found out of a thing, whole or not at all; where that cannot be, a warning says so.

    Args:
        kind: of what was found out.
        about: everything that it depends on.
        value: JSON values.
    """
    path = _path(kind, about)
    if path is None:
        return
    try:
        write_json(path, {"about": digest(about), "value": value, "digest": digest(value)})
    except EmotraceError as error:
        warnings.warn(
            f"not kept, and found out again next time: {error} ({VARIABLE} names another folder.)", stacklevel=2
        )


def _path(kind: str, about: Any) -> Path | None:
    where = folder()
    return None if where is None else where / kind / f"{digest(about)}.json"
