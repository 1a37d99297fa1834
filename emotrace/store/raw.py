"""Raw: the bytes of a chunk's file, checked where that is still due, in arrays of the caller's."""

from __future__ import annotations

import mmap
import os

import numpy as np

from emotrace.store import checks
from emotrace.store.layout import checksum, extend, shown

BLOCK = 1 << 19
"""Bytes read at once while a checksum is made: what stays in a core's cache."""


def confirm(size: int, crc: str, wanted: checks.Committed) -> None:
    """Refuse a chunk that is not what was committed."""
    if (found := checks.difference(size, crc, wanted)) is not None:
        raise ValueError(found)


def mapped(fd: int, size: int, wanted: checks.Committed | None) -> mmap.mmap:
    """All of a file, unmapped with the last array over it."""
    data = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    if wanted is not None:
        confirm(size, checksum(data, like=wanted.checksum), wanted)
    return data


class Opened:
    """A chunk's file, which is open as long as this is.

    Args:
        fd: its descriptor, closed with this.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def fill(self, out: np.ndarray, begin: int) -> None:
        """Fill a contiguous array with the bytes from ``begin`` on."""
        _fill(out, begin, self._fd)


def opened(fd: int, size: int, wanted: checks.Committed | None) -> Opened:
    """The file of a descriptor, which may be closed then."""
    if wanted is not None:
        mapped(fd, size, wanted)
    return Opened(os.dup(fd))


def rows(out: np.ndarray, begin: int, fd: int, size: int, wanted: checks.Committed | None) -> None:
    """Fill a contiguous array with the bytes of a chunk from ``begin`` on."""
    if wanted is not None:
        confirm(size, _read_all(fd, size, out, begin, wanted.checksum), wanted)
    else:
        _fill(out, begin, fd)


def _fill(out: np.ndarray, begin: int, fd: int) -> None:
    view = out.data.cast("B")
    while len(view):
        got = os.preadv(fd, [view], begin)
        if not got:
            raise ValueError("the file ends too early")
        view, begin = view[got:], begin + got


def _read_all(fd: int, size: int, out: np.ndarray, begin: int, like: str) -> str:
    """Fill a contiguous array with the bytes from ``begin`` on; returns the checksum of the whole file."""
    view = out.data.cast("B")
    spare = memoryview(bytearray(min(BLOCK, size)))
    crc = at = 0
    while at < size:
        inside = begin <= at < begin + len(view)
        stop = begin + len(view) if inside else begin if at < begin else size
        step = min(BLOCK, stop - at)
        part = view[at - begin : at - begin + step] if inside else spare[:step]
        got = os.preadv(fd, [part], at)
        if not got:
            raise ValueError("the file ends too early")
        crc, at = extend(crc, part[:got], like), at + got
    return shown(crc, like)
