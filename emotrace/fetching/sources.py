"""Sources: what can be wrong with one, so that another is tried."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from emotrace.disk import free_bytes
from emotrace.labels import EmotraceError

SHOWN: Final = 200
"""Characters of a stranger's message that are shown."""


class SourceFailure(Exception):
    """A source that did not give what was asked.

    Args:
        source: in words.
        reason: in one line.
    """

    def __init__(self, source: str, reason: object) -> None:
        line = " ".join(str(reason).split()).rstrip(".")
        super().__init__(line if len(line) <= SHOWN else f"{line[:SHOWN]}…")
        self.source = source


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_room(folder: Path, needed: int) -> None:
    """Refuse what the disk has no room for.

    Raises:
        EmotraceError: with what is needed and what is free.
    """
    free = free_bytes(folder)
    if free < needed:
        raise EmotraceError(
            f"{folder}: {needed:,} bytes are needed, and {free:,} are free. Make room, or name another folder."
        )
