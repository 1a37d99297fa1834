"""Writer: row groups go to disk as whole chunks, then one commit record; what is committed is never written again."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from emotrace import disk
from emotrace.disk import Located
from emotrace.labels import EmotraceError
from emotrace.ranks import Leases, Shares, name_of
from emotrace.store import layout
from emotrace.store.encoding import ChunkSums, parts_of, recorded
from emotrace.store.journal import Journal, Pace
from emotrace.store.plan import Plan, RowGroup
from emotrace.store.variable import Variable

RING = 2
"""Sets of buffers kept: one is written while the next is filled."""


class Writer:
    """Writes the row groups of one plan; use it as a context manager, or close it.

    ``commit`` writes in the calling thread. ``submit`` hands the group to one background thread, so that writing
    overlaps the next forward; its errors are raised by the next ``submit``, ``buffers`` or ``close``.

    Attributes:
        path: of the store.
        plan: what it shall hold.
        made: fingerprint of the store, over everything that its values depend on.
    """

    def __init__(self, path: Located, plan: Plan, lock: int | None, made: str, leases: Leases | None = None) -> None:
        self.path = path
        self.plan = plan
        self.made = made
        self._lock, self._open = lock, True
        self._codecs = {v.name: layout.encoder(v) for v in plan.variables}
        self._committed = set(layout.committed_groups(path))
        self._free: list[dict[str, np.ndarray]] = []
        self._lent: dict[int, dict[str, np.ndarray]] = {}
        self._in_flight = 0
        self._state = threading.Condition()
        self._queue: queue.Queue[tuple[RowGroup, Mapping[str, np.ndarray]] | None] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._pace, self._journals = Pace(), dict[int, Journal]()
        self._leases = leases
        self._shares = leases and Shares(leases, plan.n_groups, self._is_committed)
        self._forget()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(Exception):
                self.close()

    def pending(self) -> list[RowGroup]:
        """The groups that are not committed, in order."""
        return [g for g in self.plan.groups if g.index not in self._committed]

    def claimed(self) -> Iterator[RowGroup]:
        """The groups that are to be filled now: all that are pending, or, of a rank, those that no other rank works on."""
        if self._shares is None:
            yield from self.pending()
        else:
            yield from map(self.plan.groups.__getitem__, self._shares.free())

    def more(self) -> bool:
        """Whether groups are left that this writer has to fill after all, since the rank that began them is gone.

        Waits for what was submitted, and for the other ranks.
        """
        with self._state:
            self._state.wait_for(lambda: self._error or not self._in_flight)
            self._raise()
        return self._shares is not None and self._shares.wait()

    def look_again(self) -> None:
        """Read what is committed: something was taken back."""
        self._committed = set(layout.committed_groups(self.path))

    def begun(self, group: RowGroup) -> bool:
        """Whether an earlier run left a journal of a group."""
        return (self.path / layout.journal(group.index)).exists()

    def buffers(self, group: RowGroup) -> dict[str, np.ndarray]:
        """Arrays to fill for a group, in the order on disk: ``{name: [layer, sublayer, rows of the group, …]}``.

        They are reused once the group is committed: at most two sets exist while groups are submitted. Their contents
        are arbitrary until filled; cells listed as absent need not be.
        """
        with self._state:
            self._state.wait_for(lambda: self._free or self._error or len(self._lent) < RING or not self._in_flight)
            self._raise()
            full = self._free.pop() if self._free else None
        if full is None:
            full = {v.name: _fresh(v.shape(self.plan.row_group), v.dtype) for v in self.plan.variables}
        self._lent[group.index] = full
        axes = {v.name: (slice(None),) * len(v.cell_dims) for v in self.plan.variables}
        return {name: array[(*axes[name], slice(0, len(group)))] for name, array in full.items()}

    def journal(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> Journal | None:
        """The journal of a group whose `buffers` are being filled, where there is one; it goes when the group is committed."""
        reserve = RING * self.plan.group_bytes
        found = Journal(Path(str(self.path)), self.made, group, self.plan.variables, arrays, self._pace, reserve)
        self._journals[group.index] = found
        return found

    def commit(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a group: all chunks under temporary names, synced, renamed, then one synced commit record.

        Args:
            group: a group of the plan.
            arrays: every variable, ``[layer, sublayer, rows of the group, …]`` in the dtype of `buffers`.

        Raises:
            EmotraceError: for a missing variable, a wrong shape or dtype, or a full disk (the store can be continued).
        """
        self._check(group, arrays)
        self._write(group, arrays)
        self._release(group)

    def submit(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> None:
        """`commit` in the background; the arrays must not be changed until then (take new ones from `buffers`)."""
        self._check(group, arrays)
        with self._state:
            self._raise()
            self._in_flight += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="emotrace-writer", daemon=True)
            self._thread.start()
        self._queue.put((group, arrays))

    def close(self) -> None:
        """Wait for the background thread, keep in journals what is not committed, and raise what went wrong."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        try:
            with contextlib.ExitStack() as journals:
                for journal in self._journals.values():
                    journals.callback(journal.close)
        finally:
            if self._leases is not None:
                self._leases.close()
            if self._open:
                self._forget()
            self._open = False
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            self._journals.clear()
            self._free.clear()
            self._lent.clear()
            self._raise()

    def _is_committed(self, group: int) -> bool:
        return group in self._committed or (self.path / layout.commit_record(group)).exists()

    def _forget(self) -> None:
        """Take away what killed writers left of groups that are committed: journals, and leases."""
        for group in layout.journaled(self.path):
            if self._is_committed(group):
                (self.path / layout.journal(group)).unlink(missing_ok=True)
        if self._shares is not None:
            self._shares.forget()
            if isinstance(self.path, Path):
                disk.clear_leftovers(self.path / layout.COMMITS)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        failed = False
        while (item := self._queue.get()) is not None:
            group, arrays = item
            try:
                if not failed:
                    self._write(group, arrays)
            except BaseException as error:
                failed = True
                with self._state:
                    self._error = error
            del item, arrays
            with self._state:
                self._in_flight -= 1
            self._release(group)

    def _release(self, group: RowGroup) -> None:
        with self._state:
            lent = self._lent.pop(group.index, None)
            if lent is not None and len(self._free) < RING:
                self._free.append(lent)
            self._state.notify_all()

    def _check(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> None:
        if not self._open:
            raise EmotraceError(f"the writer of {self.path} is closed.")
        names = [v.name for v in self.plan.variables]
        if set(arrays) != set(names):
            raise EmotraceError(f"row group {group.index} needs the variables {names}, it was given {sorted(arrays)}.")
        for v in self.plan.variables:
            array, shape = arrays[v.name], v.shape(len(group))
            if array.shape != shape or array.dtype != v.dtype:
                raise EmotraceError(
                    f"row group {group.index}: {v.name!r} is {array.dtype}{list(array.shape)}, the plan says "
                    f"{v.dtype}{list(shape)} = {list(v.full_dims)}."
                )

    def _write(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> None:
        if group.index in self._committed:
            raise EmotraceError(f"row group {group.index} of {self.path} is committed already.")
        if not self._write_group(group, arrays):
            return
        self._committed.add(group.index)
        if self._shares is not None:
            self._shares.finished(group.index)
        journal = self._journals.pop(group.index, None)
        if journal is not None:
            journal.discard()
        elif self.begun(group):
            (self.path / layout.journal(group.index)).unlink(missing_ok=True)

    def _write_group(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> bool:
        """Write and commit a group; not where another rank took it over meanwhile."""
        root, chunks = Path(str(self.path)), dict[str, ChunkSums]()
        try:
            with disk.writing(root):
                for variable in self.plan.variables:
                    for cell in variable.cells():
                        name = variable.chunk(cell, group.index)
                        chunks[name] = ChunkSums(0, "", [])
                        chunks[name] = self._chunk(name, variable, arrays[variable.name][cell])
                for name in chunks:
                    disk.sync_file(root / (name + disk.PARTIAL))
                if not self._still_ours(group):
                    return False
                self._refuse_other(group, recorded(group, chunks))
                for name in chunks:
                    os.rename(root / (name + disk.PARTIAL), root / name)
                for variable in self.plan.variables:
                    disk.sync_folder(root / variable.name / variable.name)
                self._commit(group, recorded(group, chunks))
        except EmotraceError:
            if not self._still_ours(group):  # another rank took it over, and writes under the same names
                return False
            for name in chunks:  # give the room back
                (root / (name + disk.PARTIAL)).unlink(missing_ok=True)
            raise
        return True

    def _still_ours(self, group: RowGroup) -> bool:
        """Whether no other rank took the group over, since this one's lease lapsed, or works on one that was not claimed."""
        name = name_of(group.index)
        return self._leases is None or self._leases.holds(name) or self._leases.take(name)

    def _commit(self, group: RowGroup, record: bytes) -> None:
        """Write the commit record, unless another rank has: then of the same bytes.

        Raises:
            EmotraceError: for other bytes.
        """
        if not disk.objects(self.path).put_new(layout.commit_record(group.index), record):
            self._refuse_other(group, record)

    def _refuse_other(self, group: RowGroup, record: bytes) -> None:
        """Refuse a group that another rank committed with other numbers."""
        try:
            there = (self.path / layout.commit_record(group.index)).read_bytes()
        except FileNotFoundError:
            return
        if there != record:
            raise EmotraceError(
                f"row group {group.index} of {self.path} was committed with other numbers by another rank: ranks need the same "
                "model, versions, device and threads."
            )

    def _chunk(self, name: str, variable: Variable, rows: np.ndarray) -> ChunkSums:
        """Write one chunk, and return its size and checksums."""
        parts, inner = parts_of(rows, variable, self.plan, self._codecs[variable.name])
        fd = os.open(
            Path(str(self.path)) / (name + disk.PARTIAL), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
        )
        try:
            for view in parts:
                done = 0
                while done < len(view):
                    done += os.write(fd, view[done:])
        finally:
            os.close(fd)
        return ChunkSums(sum(map(len, parts)), layout.checksum(*parts), inner)


def _fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Unset memory in small pages; ``np.empty`` asks for huge ones, which stall where memory is fragmented."""
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, count * dtype.itemsize)), dtype, count).reshape(shape)
