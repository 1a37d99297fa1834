"""Chunks: lazy reading of a variable that touches only the chunk files it needs."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from xarray.backends import BackendArray

from emotrace.disk import Located, There
from emotrace.labels import EmotraceError
from emotrace.store import checks, raw, shards
from emotrace.store.layout import checksum, commit_record, damaged, encoder
from emotrace.store.laziness import Key, selection
from emotrace.store.raw import confirm
from emotrace.store.variable import Variable

Rows = slice | np.ndarray
Fill = Callable[[np.ndarray, int], None]
T = TypeVar("T")


class ChunkArray(BackendArray):
    """A variable of a store as xarray's lazy array: every read opens the chunk files of its cells and row groups only.

    Whole runs of rows are read from the file straight into the result; scattered rows through a memory map, or, where chunks
    are compressed or lie in a bucket, out of the inner chunks that hold them. A chunk that is read for the first time is
    compared with the checksum of its commit record; an inner chunk that is fetched, with its own.
    """

    def __init__(
        self, root: Located, variable: Variable, n_rows: int, row_group: int, inner_rows: int | None = None
    ) -> None:
        self.root = root
        self.variable = variable
        self.row_group = row_group
        self.shape = variable.shape(n_rows)
        self.dtype = variable.dtype.newbyteorder("=")
        self._codec = encoder(variable)
        self._inner = inner_rows
        self._row_bytes = variable.dtype.itemsize * math.prod(variable.rest_shape)
        self._records: dict[int, dict[str, checks.Committed]] = {}
        self._inner_records: dict[int, dict[str, list[str]]] = {}

    def __getitem__(self, key: Key) -> Any:
        return selection(key, self.shape, self.read)

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        """The selection ``key``: one int, slice or 1-D integer array per dim, applied to each dim by itself."""
        n_cell = len(self.variable.cell_dims)
        index = [_indices(k, size) for k, size in zip(key, self.shape, strict=True)]
        cells, rows, rest = index[:n_cell], index[n_cell], index[n_cell + 1 :]
        rest_key = [as_slice(k) for k in rest]
        whole = all(len(k) == size for k, size in zip(rest, self.variable.rest_shape, strict=True)) and all(
            isinstance(k, slice) for k in rest_key
        )
        order = None
        if len(rows) > 1 and (np.diff(rows) < 0).any():
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
        out = np.empty([len(k) for k in index], dtype=self.variable.dtype)
        places = itertools.product(*(range(len(c)) for c in cells))
        mapped = self._codec is None and isinstance(self.root, Path)
        for at, cell in zip(places, itertools.product(*(c.tolist() for c in cells)), strict=True):
            self.check(cell)
            for where, group, local in runs(rows, self.row_group):
                part = out[at][where]
                if mapped and whole and isinstance(local, slice):
                    self._use(cell, group, partial(raw.rows, part, local.start * self._row_bytes))
                elif mapped or self._inner is None:
                    part[...] = taken(self.chunk(cell, group), local, rest_key)
                else:
                    part[...] = taken(*self._some(cell, group, local), rest_key)
        if order is not None:
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            out = out.take(back, axis=n_cell)
        squeezed = [len(i) for k, i in zip(key, index, strict=True) if not isinstance(k, (int, np.integer))]
        return out.reshape(squeezed).astype(self.dtype, copy=False)

    def chunk(self, cell: tuple[int, ...], group: int) -> np.ndarray:
        """All rows of one cell and row group ``[row, …]``, not to be written to: a memory map, or what was decoded."""
        if isinstance(self.root, Path):
            return self._use(cell, group, self._all)
        return self._told(cell, group, lambda name: self._decoded(self._fetched(name, group)))

    def opened(self, cell: tuple[int, ...], group: int) -> Fill | None:
        """What fills an array with the rows from one on; None where no file holds them as they are."""
        if self._codec is not None or not isinstance(self.root, Path) or not self.variable.dtype.isnative:
            return None
        file = self._use(cell, group, raw.opened)

        def fill(out: np.ndarray, start: int) -> None:
            try:
                file.fill(out, start * self._row_bytes)
            except (OSError, ValueError) as error:
                raise self._unreadable(cell, group, error) from error

        return fill

    def check(self, cell: tuple[int, ...]) -> None:
        """Refuse a cell that does not exist."""
        labels = self.variable.labels(cell)
        if labels in self.variable.absent:
            place = ", ".join(f"{d}={c!r}" for d, c in zip(self.variable.cell_dims, labels, strict=True))
            raise EmotraceError(
                f"{self.variable.name} has no {place}: the model has no such site. {existing(self.variable)}"
            )

    def _some(self, cell: tuple[int, ...], group: int, local: Rows) -> tuple[np.ndarray, Rows]:
        """Rows of the inner chunks that hold those asked for, and where these lie among them."""
        assert self._inner is not None
        rows = np.arange(local.start, local.stop) if isinstance(local, slice) else local
        numbers, back = np.unique(rows // self._inner, return_inverse=True)
        if isinstance(self.root, Path):
            parts = self._use(cell, group, lambda fd, size, wanted: self._inner_here(fd, size, wanted, numbers))
        else:
            parts = self._told(cell, group, lambda name: self._inner_there(name, group, numbers))
        return np.concatenate(parts), back * self._inner + rows % self._inner

    def _inner_here(self, fd: int, size: int, wanted: checks.Committed | None, numbers: np.ndarray) -> list[np.ndarray]:
        data = raw.mapped(fd, size, wanted)
        index = shards.index_of(data[size - shards.index_size(self._n_inner) :])
        return [self._plain(data[start:stop], self._inner) for start, stop in index[numbers].tolist()]

    def _inner_there(self, name: str, group: int, numbers: np.ndarray) -> list[np.ndarray]:
        assert isinstance(self.root, There)
        at, size = self.root / name, self._wanted(name, group).size
        if self._codec is None:
            step = self._row_bytes * (self._inner or self.row_group)
            index = np.arange(self._n_inner)[:, None] * step + [0, step]
        else:
            index = shards.index_of(at.bucket.read_part(at.inside, size - shards.index_size(self._n_inner), size))
        if group not in self._inner_records:
            self._inner_records[group] = checks.inner_checksums(self.root, group)
        told, out = self._inner_records[group][name], []
        for first, last in shards.neighbours(numbers):
            data = memoryview(at.bucket.read_part(at.inside, int(index[first, 0]), int(index[last, 1])))
            for number in range(first, last + 1):
                start, stop = (index[number] - index[first, 0]).tolist()
                if checksum(data[start:stop], like=told[number]) != told[number]:
                    raise ValueError(f"inner chunk {number}: changed: the checksum differs")
                out.append(self._plain(data[start:stop], self._inner))
        return out

    def _fetched(self, name: str, group: int) -> memoryview:
        """The bytes of a chunk in a bucket, compared with its checksum."""
        data, wanted = (self.root / name).read_bytes(), self._wanted(name, group)
        confirm(len(data), checksum(data, like=wanted.checksum), wanted)
        return memoryview(data)

    @property
    def _n_inner(self) -> int:
        return self.row_group // (self._inner or self.row_group)

    def _decoded(self, data: Any) -> np.ndarray:
        """All rows of a chunk or shard."""
        if self._inner is None or self._codec is None:
            return self._plain(data, self.row_group)
        index = shards.index_of(data[len(data) - shards.index_size(self._n_inner) :])
        return np.concatenate([self._plain(data[start:stop], self._inner) for start, stop in index.tolist()])

    def _plain(self, data: Any, rows: int | None) -> np.ndarray:
        """The rows of a chunk, or of an inner one."""
        data = data if self._codec is None else self._codec.decode(data)
        shape = (rows, *self.variable.rest_shape)
        return np.frombuffer(data, self.variable.dtype, math.prod(map(int, shape))).reshape(shape)  # type: ignore[arg-type]

    def _told(self, cell: tuple[int, ...], group: int, read: Callable[[str], T]) -> T:
        """What ``read`` makes of a chunk's name; whatever is wrong names the place."""
        name = self.variable.chunk(cell, group)
        try:
            return read(name)
        except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
            raise self._unreadable(cell, group, error) from error

    def _unreadable(self, cell: tuple[int, ...], group: int, error: Exception) -> EmotraceError:
        labels = zip(self.variable.cell_dims, self.variable.labels(cell), strict=True)
        place = ", ".join([self.variable.name, *(f"{d} {c}" for d, c in labels), f"row group {group}"])
        return damaged(self.root, f"cannot read {place} ({self.variable.chunk(cell, group)}): {error}")

    def _use(self, cell: tuple[int, ...], group: int, use: Callable[[int, int, Any], T]) -> T:
        """What ``use`` makes of a chunk's file: its descriptor, size, and what it must confirm (None once it has been)."""

        def read(name: str) -> T:
            path = os.path.join(str(self.root), name)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                at, size = checks.state(status), status.st_size
                wanted = None if checks.sound(path, at) else self._wanted(name, group)
                index = 0 if self._inner is None else shards.index_size(self._n_inner)
                expected = size if self._codec is not None else self._row_bytes * self.row_group + index
                if size != expected:
                    raise ValueError(f"it has {size} bytes instead of {expected}")
                found = use(fd, size, wanted)
                if wanted is not None:
                    checks.note(path, at)
                return found
            finally:
                os.close(fd)

        return self._told(cell, group, read)

    def _all(self, fd: int, size: int, wanted: checks.Committed | None) -> np.ndarray:
        return self._decoded(raw.mapped(fd, size, wanted))

    def _wanted(self, name: str, group: int) -> checks.Committed:
        """Size and checksum of a chunk in its commit record."""
        if group not in self._records:
            self._records[group] = checks.read_record(self.root, commit_record(group), "chunks")
        wanted = self._records[group].get(name)
        if wanted is None:
            raise ValueError("its commit record does not name it")
        return wanted


def existing(variable: Variable) -> str:
    """Which cells of a variable with absent cells exist, for an error."""
    has: dict[Any, list[Any]] = {}
    for cell in variable.cells():
        *first, last = variable.labels(cell)
        has.setdefault(last, []).extend(first)
    return f"It has {'; '.join(f'{k} in layers {v}' if v else str(k) for k, v in has.items())}."


def _indices(key: Any, size: int) -> np.ndarray:
    """The key counted from 0; IndexError, as of an array, for what lies outside."""
    return np.arange(size)[key if isinstance(key, slice) else np.atleast_1d(np.asarray(key, dtype=np.int64))]


def as_slice(index: np.ndarray) -> Any:
    """The same indices as a slice where they are consecutive."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (len(index) == 1 or (np.diff(index) == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def runs(rows: np.ndarray, row_group: int) -> Iterator[tuple[slice, int, Rows]]:
    """Sorted rows cut at row groups: (place in the result, group, rows inside the group)."""
    if len(rows) and (first := int(rows[0]) // row_group) == int(rows[-1]) // row_group:
        yield slice(0, len(rows)), first, as_slice(rows - first * row_group)
        return
    groups = rows // row_group
    cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(rows)] if len(rows) else [0]
    for start, stop in itertools.pairwise(cuts):
        group = int(groups[start])
        yield slice(start, stop), group, as_slice(rows[start:stop] - group * row_group)


def taken(chunk: np.ndarray, local: Rows, rest: list[Any]) -> np.ndarray:
    """Rows of a chunk, and of each further dim a slice or indices."""
    picked = chunk[local]
    for axis, key in enumerate(rest, start=1):
        picked = picked[(slice(None),) * axis + (key,)]
    return picked


class ColumnArray(BackendArray):
    """A column of the token table as xarray's lazy array.

    Args:
        take: gives its values at an int, a slice or sorted indices.
        length: number of values.
        dtype: of them.
    """

    def __init__(self, take: Callable[[Any], np.ndarray], length: int, dtype: np.dtype) -> None:
        self.take = take
        self.shape = (length,)
        self.dtype = dtype

    def __getitem__(self, key: Key) -> Any:
        return selection(key, self.shape, lambda k: self.take(k[0]))
