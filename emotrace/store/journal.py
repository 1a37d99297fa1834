"""Journal: rows of a row group that is not whole yet, so that a killed run does not compute them again.

The batches of a group are appended to ``row_groups/commit/NNNNNN.journal`` as they are computed, each an entry
(`emotrace.store.entries`), and the file goes when the group is committed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path

import numpy as np

from emotrace import disk
from emotrace.store import entries, layout
from emotrace.store.entries import BLOCK, CRC, Journaled, blocks, rows_in
from emotrace.store.plan import RowGroup
from emotrace.store.variable import Variable

SHARE = 0.02
"""Of the time that passes, the share that the journal may take …"""
LATEST = 60.0
"""… unless so many seconds have passed since it was last written."""
SYNC = 30.0
"""Seconds between two waits for the disk. A killed process loses nothing that was written, a power cut what came since."""
RATE = 3e8
"""Bytes a second that a disk is taken to write until it is known."""


class Pace:
    """When a journal is written: seldom enough to cost little, often enough to lose little."""

    def __init__(self) -> None:
        self.begun = self.written = self.synced = time.monotonic()
        self.spent, self.rate = 0.0, RATE

    def due(self, size: int) -> bool:
        """Whether so many bytes are to be written now."""
        now = time.monotonic()
        return now - self.written >= LATEST or self.spent + size / self.rate <= SHARE * (now - self.begun)

    def wrote(self, path: Path, size: int, began: float, sync: bool) -> None:
        """So many bytes were written; wait for the disk where that was long ago, or is asked for."""
        written = time.monotonic()
        if size >= BLOCK:
            self.rate = size / max(written - began, 1e-9)
        if sync or written - self.synced >= SYNC:
            disk.sync_file(path)
            disk.sync_folder(path.parent)
            self.synced = time.monotonic()
        self.written = time.monotonic()
        self.spent += self.written - began


class Journal:
    """Of one row group, written while it is filled.

    Args:
        root: of the store.
        made: fingerprint of the store (`layout.fingerprint`).
        group: of the plan.
        variables: of the plan.
        arrays: of the group, as `Writer.buffers` gives them.
        pace: shared by the journals of a run.
        reserve: bytes that stay free on the disk for the groups themselves.
    """

    def __init__(
        self, root: Path, made: str, group: RowGroup, variables: Sequence[Variable], arrays: Mapping[str, np.ndarray],
        pace: Pace, reserve: int,
    ) -> None:  # fmt: skip
        self.path = root / layout.journal(group.index)
        self.made, self.group, self.variables, self.arrays = made, group, tuple(variables), arrays
        self._pace, self._reserve = pace, reserve
        self._row_bytes = sum(v.row_bytes for v in variables)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._file: FileIO | None = None
        self._stop = 0

    def restore(self) -> Journaled:
        """Fill the arrays with what an earlier run left; a warning says what of it is damaged."""
        kept = entries.read(self.path, self.made, self.group.index, len(self.group), self.variables, self.arrays)
        self._stop = kept.stop
        if kept.problems:
            warnings.warn(f"{self.path} was damaged ({'; '.join(kept.problems)}): computed again.", stacklevel=2)
        return kept

    def add(self, spans: Sequence[tuple[int, int]], fired: Sequence[int]) -> None:
        """The rows of these spans of the group are in the arrays."""
        self._waiting.append((np.asarray(spans, "<i8").reshape(-1, 2), np.asarray(fired, "<i8")))

    def keep(self) -> None:
        """Write what was added, if it is time to, and the disk has room for it beside the groups themselves.

        Raises:
            EmotraceError: for a full disk.
        """
        size = self._size()
        if size and self._pace.due(size) and disk.free_bytes(self.path) >= size + self._reserve:
            self.flush()

    def flush(self, sync: bool = False) -> None:
        """Write what was added.

        Raises:
            EmotraceError: for a full disk; what was there before stays.
        """
        if not self._waiting:
            return
        began, size = time.monotonic(), self._size()
        with disk.writing(self.path):
            file = self._open()
            try:
                for spans, fired in self._waiting:
                    self._write(file, spans, fired)
                self._pace.wrote(self.path, size, began, sync)
            except OSError:
                file.truncate(self._stop)
                raise
            self._stop = file.tell()
        self._waiting.clear()

    def close(self) -> None:
        """Write what was added, and let go of the file."""
        try:
            self.flush(sync=True)
        finally:
            self._let_go()

    def discard(self) -> None:
        """The group is committed, or not worth keeping: the journal goes."""
        self._waiting.clear()
        self._let_go()
        self.path.unlink(missing_ok=True)
        self._stop = 0

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _size(self) -> int:
        return self._row_bytes * sum(int((spans[:, 1] - spans[:, 0]).sum()) for spans, _ in self._waiting)

    def _open(self) -> FileIO:
        """The file, at the end of its last entry."""
        if self._file is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._file = FileIO(fd, "r+b")
        self._file.truncate(self._stop)
        self._file.seek(self._stop)
        return self._file

    def _write(self, file: FileIO, spans: np.ndarray, fired: np.ndarray) -> None:
        head = entries.head(self.made, self.group.index, spans, fired, self._row_bytes)
        crc = layout.extend(0, head, layout.CASTAGNOLI)
        waiting = bytearray(head + CRC.pack(crc))
        counted = len(waiting)  # bytes of it that the checksum has seen, or does not cover
        for variable, cell, part in blocks(self.variables, rows_in(spans)):
            waiting += self.arrays[variable.name][cell][part].data.cast("B")
            if len(waiting) >= BLOCK:
                crc = layout.extend(crc, memoryview(waiting)[counted:], layout.CASTAGNOLI)
                _write_all(file, waiting)
                waiting, counted = bytearray(), 0
        crc = layout.extend(crc, memoryview(waiting)[counted:], layout.CASTAGNOLI)
        _write_all(file, waiting + CRC.pack(crc))


def _write_all(file: FileIO, data: bytearray) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
