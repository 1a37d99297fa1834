"""Locks: one writer at a time; a lock goes with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from emotrace.disk.whole import writing
from emotrace.labels import EmotraceError


def lock(path: str | os.PathLike[str], shown: str | os.PathLike[str] | None = None, flags: int = 0) -> int:
    """Open a file, which is made where it does not exist, and lock it.

    Args:
        path: the file.
        shown: what a message calls it; None: ``path``.
        flags: of ``os.open``, beside reading and writing.

    Returns:
        A descriptor; the lock is held until it is closed or the process ends.

    Raises:
        EmotraceError: if another process holds the lock, or the file cannot be opened.
    """
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise EmotraceError(
            f"another process is writing to {shown or path}; wait for it, or choose another path."
        ) from None
    return fd
