"""Entries: what a journal is made of, and how it is read.

One entry is one batch of a row group::

    head     magic, fingerprint of the store, group, numbers of spans and of edits, bytes of the values;
             spans (first row, one past the last), how often each edit fired; CRC-32C of all that
    values   of each variable and cell the rows of the spans, as they stand in the buffers
    end      CRC-32C of head and values

An entry that is cut off, damaged or made by another plan is none: its rows are computed again.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from emotrace import disk
from emotrace.disk import Located
from emotrace.labels import EmotraceError
from emotrace.store import layout
from emotrace.store.variable import Variable

BLOCK = 1 << 20
"""Bytes gathered before they are written."""
MAGIC = b"emojrnl1"
HEAD = struct.Struct("<8s16sqqqq")
CRC = struct.Struct("<I")


class Entry(NamedTuple):
    """One batch in a journal.

    Attributes:
        start: its first byte.
        stop: one past its last.
        rows: of the row group, in the order of its values.
        fired: how often each edit fired.
        problem: why it is not used; None where it is whole.
    """

    start: int
    stop: int
    rows: np.ndarray
    fired: tuple[int, ...]
    problem: str | None = None


class Journaled(NamedTuple):
    """What a journal holds.

    Attributes:
        rows: of the group.
        entries: that can be told apart, damaged ones included.
        stop: one past the last of them; what follows was cut off, or cannot be read.
        problem: of what follows, where it is more than an entry cut off.
    """

    rows: int
    entries: list[Entry]
    stop: int = 0
    problem: str | None = None

    @property
    def done(self) -> np.ndarray:
        """Which rows of the group are there."""
        mask = np.zeros(self.rows, dtype=bool)
        for entry in self.entries:
            mask[entry.rows] = entry.problem is None
        return mask

    @property
    def problems(self) -> list[str]:
        """All that is damaged, in words."""
        odd = [f"entry at byte {entry.start}: {entry.problem}" for entry in self.entries if entry.problem]
        return [*odd, *([f"from byte {self.stop} on: {self.problem}"] if self.problem else [])]


def head(made: str, group: int, spans: np.ndarray, fired: np.ndarray, row_bytes: int) -> bytes:
    """The head of an entry, but for its checksum."""
    sizes = group, len(spans), len(fired), row_bytes * int(np.diff(spans).sum())
    return HEAD.pack(MAGIC, made.encode(), *sizes) + spans.tobytes() + fired.tobytes()


def blocks(variables: Sequence[Variable], rows: np.ndarray) -> Iterator[tuple[Variable, tuple[int, ...], np.ndarray]]:
    """The values of an entry in their order, a block at a time: variable, cell, rows."""
    for variable in variables:
        step = max(1, BLOCK // (variable.dtype.itemsize * math.prod(variable.rest_shape)))
        for cell in variable.cells():
            for at in range(0, len(rows), step):
                yield variable, cell, rows[at : at + step]


def rows_in(spans: np.ndarray) -> np.ndarray:
    """The rows of spans ``[span, (first, one past the last)]``."""
    return np.concatenate([np.arange(a, b) for a, b in spans.tolist()]) if len(spans) else np.empty(0, np.int64)


def read(
    path: Path, made: str, group: int, rows: int, variables: Sequence[Variable],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Journaled:  # fmt: skip
    """The entries of a journal, compared with their checksums.

    Args:
        path: of the journal; it need not exist.
        made: fingerprint of the store.
        group: that it must be of.
        rows: of the group.
        variables: of the store.
        arrays: where to put the rows of whole entries; those of damaged ones hold anything afterwards.
    """
    entries: list[Entry] = []
    at, problem = 0, None
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while at < size:
                try:
                    found = _head(file, size - at, made, group, rows, sum(v.row_bytes for v in variables))
                except ValueError as error:
                    problem = str(error)
                    break
                if found is None or found.stop > size - at:
                    break  # cut off
                crc = _values(file, found.crc, found.rows, variables, arrays)
                wrong = None if CRC.pack(crc) == file.read(CRC.size) else "the checksum differs"
                entries.append(Entry(at, at + found.stop, found.rows, found.fired, wrong))
                at += found.stop
    except FileNotFoundError:
        pass
    except OSError as error:
        raise EmotraceError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Journaled(rows, entries, at, problem)


def kept_in(root: Located, attrs: Mapping[str, Any]) -> dict[int, Journaled]:
    """What the journals of a store hold, by row group; those of committed groups are of no account."""
    store = attrs["emotrace_store"]
    variables = [Variable.from_json(v) for v in store["variables"]]
    out = {}
    journaled = layout.journaled(root)
    for group in set(journaled) - set(layout.committed_groups(root) if journaled else ()):
        rows = min(store["row_group"], store["rows"] - group * store["row_group"])
        if rows < 1:
            out[group] = Journaled(0, [], 0, "no such row group")
        else:
            out[group] = read(
                Path(str(root)) / layout.journal(group), layout.fingerprint(attrs), group, rows, variables
            )
    return dict(sorted(out.items()))


def mend(path: Path, kept: Journaled) -> None:
    """Write a journal again without what is damaged."""

    def whole() -> Iterator[bytes]:
        for entry in kept.entries:
            if entry.problem is None:
                old.seek(entry.start)
                for at in range(entry.start, entry.stop, BLOCK):
                    yield old.read(min(BLOCK, entry.stop - at))

    with disk.writing(path), open(path, "rb") as old:
        disk.replace_file(path, whole())


class _Head(NamedTuple):
    """The head of an entry: bytes of the whole entry, its rows, counts of edits, checksum so far."""

    stop: int
    rows: np.ndarray
    fired: tuple[int, ...]
    crc: int


def _head(file: BinaryIO, left: int, made: str, group: int, rows: int, row_bytes: int) -> _Head | None:
    """The head that stands here; None where it is cut off.

    Raises:
        ValueError: for one that is damaged, or another store's.
    """
    fixed = file.read(HEAD.size)
    if len(fixed) < HEAD.size:
        return None
    magic, name, of, n_spans, n_fired, values = HEAD.unpack(fixed)
    if magic != MAGIC or min(n_spans, n_fired, values) < 0:
        raise ValueError("no entry of a journal")
    more = 8 * (2 * n_spans + n_fired)
    if HEAD.size + more + CRC.size > left:
        return None
    body = file.read(more)
    crc = layout.extend(layout.extend(0, fixed, layout.CASTAGNOLI), body, layout.CASTAGNOLI)
    if CRC.pack(crc) != file.read(CRC.size):
        raise ValueError("the checksum of an entry's head differs")
    if name != made.encode() or of != group:
        raise ValueError("an entry of another plan or row group")
    numbers = np.frombuffer(body, "<i8")
    spans = numbers[: 2 * n_spans].reshape(-1, 2)
    if (spans[:, 0] < 0).any() or (spans[:, 1] > rows).any() or values != row_bytes * int(np.diff(spans).sum()):
        raise ValueError("an entry of other rows")
    return _Head(HEAD.size + more + values + 2 * CRC.size, rows_in(spans), tuple(numbers[2 * n_spans :].tolist()), crc)


def _values(
    file: BinaryIO, crc: int, rows: np.ndarray, variables: Sequence[Variable], arrays: Mapping[str, np.ndarray] | None
) -> int:
    """Read the values of an entry, into arrays if given; their checksum."""
    for variable, cell, part in blocks(variables, rows):
        values = np.empty((len(part), *variable.rest_shape), variable.dtype)
        file.readinto(values.data.cast("B"))  # type: ignore[attr-defined]
        crc = layout.extend(crc, values.data.cast("B"), layout.CASTAGNOLI)
        if arrays is not None:
            arrays[variable.name][cell][part] = values
    return crc
