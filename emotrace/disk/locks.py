"""Locks: one writer at a time; a lock goes with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from emotrace.disk.whole import writing
from emotrace.labels import EmotraceError


class Busy(EmotraceError):
    """Another process is at work there."""


def lock(
    path: str | os.PathLike[str], shown: str | os.PathLike[str] | None = None, flags: int = 0, shared: bool = False
) -> int:
    """Open a file, which is made where it does not exist, and lock it.

    Args:
        path: the file.
        shown: what a message calls it; None: ``path``.
        flags: of ``os.open``, beside reading and writing.
        shared: with others that say so too, and nobody else.

    Returns:
        A descriptor; the lock is held until it is closed or the process ends.

    Raises:
        Busy: if another process holds the lock.
        EmotraceError: if the file cannot be opened.
    """
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Busy(f"another process is writing to {shown or path}; wait for it, or choose another path.") from None
    return fd


def share(fd: int) -> None:
    """Share the lock of a descriptor from now on."""
    fcntl.flock(fd, fcntl.LOCK_SH)
