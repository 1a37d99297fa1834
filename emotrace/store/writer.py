"""Writer: row groups go to disk as whole chunks, then one commit record; what is committed is never written again."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import queue
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from emotrace import disk
from emotrace.labels import EmotraceError
from emotrace.store import layout, mending
from emotrace.store.journal import Journal, Pace
from emotrace.store.plan import Plan, RowGroup
from emotrace.store.variable import Variable

RING = 2
"""Sets of buffers kept: one is written while the next is filled."""


def create_or_resume(path: str | os.PathLike[str], plan: Plan, progress: bool = False) -> Writer:
    """Open a store for writing: a new one, or one that the same plan began.

    What is committed is compared with its checksums first. Damaged row groups are pending again, damaged metadata is written
    again, and a warning says so.

    Args:
        path: of the store.
        plan: what it holds or shall hold.
        progress: show a bar on stderr while committed row groups are checked.

    Raises:
        EmotraceError: if something else is at ``path``, if an attr other than ``command``, ``versions`` and ``batch_size``
            differs (each is named with both values), if another process writes to it, or if the disk is full.
    """
    root = Path(path)
    occupied = root.is_symlink() or root.exists()
    if not occupied or (root.is_dir() and not any(root.iterdir())):
        return Writer(root, plan, layout.create(root, plan), layout.fingerprint(plan.described))
    stored = mending.settings(root)
    found = layout.differences(stored, {**plan.attrs, "plan_digest": plan.digest})
    if found:
        raise EmotraceError(
            f"{root} was written with other settings and cannot be continued; it is left as it is. "
            f"Differing: {'; '.join(found)}. Choose another path, or repeat with the stored settings."
        )
    (root / layout.COMMITS).mkdir(parents=True, exist_ok=True)
    lock = layout.lock(root, root)
    try:
        damage = mending.examine(root, stored, progress)
        if damage:
            mending.take_back(root, damage)
            if any(item.group is None for item in damage):
                mending.rebuild(root, plan, stored)
            warnings.warn(mending.told(root, damage), stacklevel=3)
        return Writer(root, plan, lock, layout.fingerprint(stored))
    except BaseException:
        os.close(lock)
        raise


class Writer:
    """Writes the row groups of one plan; use it as a context manager, or close it.

    ``commit`` writes in the calling thread. ``submit`` hands the group to one background thread, so that writing
    overlaps the next forward; its errors are raised by the next ``submit``, ``buffers`` or ``close``.

    Attributes:
        path: of the store.
        plan: what it shall hold.
        made: fingerprint of the store, over everything that its values depend on.
        begun: groups of which an earlier run left a journal.
    """

    def __init__(self, path: Path, plan: Plan, lock: int, made: str) -> None:
        self.path = path
        self.plan = plan
        self.made = made
        self._lock: int | None = lock
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
        self.begun = set(layout.journaled(path))
        for group in self.begun & self._committed:  # killed between its commit and the end of its journal
            (path / layout.journal(group)).unlink()

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

    def journal(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> Journal:
        """The journal of a group whose `buffers` are being filled; it goes when the group is committed."""
        reserve = RING * self.plan.group_bytes
        found = Journal(self.path, self.made, group, self.plan.variables, arrays, self._pace, reserve)
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
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            self._journals.clear()
            self._free.clear()
            self._lent.clear()
            self._raise()

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
        if self._lock is None:
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
        chunks: dict[str, list[Any]] = {}
        try:
            with disk.writing(self.path):
                for variable in self.plan.variables:
                    for cell in variable.cells():
                        name = variable.chunk(cell, group.index)
                        chunks[name] = [0, ""]
                        chunks[name] = self._chunk(name, variable, arrays[variable.name][cell])
                for name in chunks:
                    disk.sync_file(self.path / (name + layout.PARTIAL))
                for name in chunks:
                    os.rename(self.path / (name + layout.PARTIAL), self.path / name)
                for variable in self.plan.variables:
                    disk.sync_folder(self.path / variable.name / variable.name)
                record = {"group": group.index, "rows": [group.start, group.stop], "chunks": chunks}
                disk.replace_file(self.path / layout.commit_record(group.index), layout.dump(record))
        except EmotraceError:
            for name in (*chunks, layout.commit_record(group.index)):  # give the room back
                (self.path / (name + layout.PARTIAL)).unlink(missing_ok=True)
            raise
        self._committed.add(group.index)
        journal = self._journals.pop(group.index, None)
        if journal is not None:
            journal.discard()
        else:
            (self.path / layout.journal(group.index)).unlink(missing_ok=True)

    def _chunk(self, name: str, variable: Variable, rows: np.ndarray) -> list[Any]:
        """Write one chunk, padded to the size of the row group, and return its size and checksum."""
        missing = self.plan.row_group - len(rows)
        codec = self._codecs[variable.name]
        parts: list[Any] = [np.ascontiguousarray(rows)]
        if missing:
            parts.append(np.zeros((missing, *variable.rest_shape), variable.dtype))
        if codec is not None:
            parts = [codec.encode(np.concatenate(parts) if missing else parts[0])]
        views = [memoryview(p).cast("B") for p in parts]
        fd = os.open(self.path / (name + layout.PARTIAL), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for view in views:
                done = 0
                while done < len(view):
                    done += os.write(fd, view[done:])
        finally:
            os.close(fd)
        return [sum(map(len, views)), layout.checksum(*views)]


def _fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Unset memory in small pages; ``np.empty`` asks for huge ones, which stall where memory is fragmented."""
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, count * dtype.itemsize)), dtype, count).reshape(shape)
