"""Whole: files that are at any moment the old one or the new one, also after a power cut; full and unwritable disks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from emotrace.disk.machine import machine
from emotrace.labels import EmotraceError
from emotrace.texts import to_json

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL: Final = ".partial"
_LEFT: Final = re.compile(r"\.(?P<name>.+?)(?:\.at-(?P<at>[0-9a-f]{12}))?(?:\.(?P<pid>\d+))?\.part(?:ial)?")
ABANDONED: Final = 600.0
"""Seconds after which what another machine left half written is thought to be left for good."""


def replace_file(path: str | os.PathLike[str], data: bytes | Iterable[bytes]) -> None:
    """Write a file whole: under a name of this process, synced, renamed, and the folder synced.

    Args:
        path: of the file.
        data: what it holds, or its parts in order.

    Raises:
        EmotraceError: if it cannot be written, or the disk is full; the old file stays.
    """
    path = Path(path)
    with synced(partial(path), path, data) as part:
        os.replace(part, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def synced(part: Path, path: Path, data: bytes | Iterable[bytes]) -> Iterator[Path]:
    """What ``path`` is to hold, written and synced under another name beside it, which is gone afterwards."""
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write JSON whole; NaN is refused."""
    replace_file(path, (to_json(obj, indent=2, allow_nan=False) + "\n").encode())


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file as a whole; NaN is refused."""
    text = "".join(to_json(row, allow_nan=False) + "\n" for row in rows)
    replace_file(path, text.encode())


def partial(path: str | os.PathLike[str]) -> Path:
    """Where this process writes what will be renamed to ``path``; `clear_leftovers` finds it after a kill."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def clear_leftovers(folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
    """Remove what killed processes left half written beside their files.

    Args:
        folder: searched, not its folders.
        name: of the one file (or folder) whose leftovers go, with those of ``name.…``; None: of all.

    Returns:
        What was removed. What a living process writes stays, and folders whose name tells no process.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(Path(folder).iterdir()):
            left = _LEFT.fullmatch(entry.name)
            if left is None or not (name is None or f"{left['name']}.".startswith(f"{name}.")):
                continue
            if left["at"] not in (None, machine()):  # of a process that is not seen from here
                kept = time.time() - entry.stat().st_mtime < ABANDONED
            else:
                kept = entry.is_dir() if left["pid"] is None else _alive(int(left["pid"]))
            if kept:
                continue
            with writing(entry):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
            removed.append(entry)
    return removed


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the disk into one that names the file and says how to go on.

    Raises:
        EmotraceError: for a full disk, or a file that cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise EmotraceError(
                f"the disk is full ({error.strerror}; {free_bytes(path):,} bytes free) while writing "
                f"{error.filename or path}. Everything committed is kept: make room and repeat the same command to continue."
            ) from error
        raise EmotraceError(f"{path} cannot be written: {error.strerror or error}.") from error


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Free bytes of the disk on which ``path`` lies or would lie."""
    at = Path(path).absolute()
    while not at.exists():
        at = at.parent
    return shutil.disk_usage(at).free


def sync_file(path: str | os.PathLike[str]) -> None:
    """Wait until what was written to a file is on disk."""
    _sync(path)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make renames inside a folder durable."""
    _sync(path)


def _sync(path: str | os.PathLike[str]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
