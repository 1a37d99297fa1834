"""Cell: one layer and sublayer of a variable, of which rows are put into arrays of the caller's, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from emotrace.store.chunks import Puts, Rows, as_slice, taken
from emotrace.store.variable import Variable

WIDE = 256
"""Rows of fewer bytes are put one by one in less time than they are read there."""


class ChunkRows(NamedTuple):
    """Rows that lie in one chunk.

    Attributes:
        to: the row of a room that each becomes.
        views: of all rows of a room, these.
        group: the row group.
        local: rows of the chunk.
    """

    to: np.ndarray
    views: Callable[[Sequence[memoryview]], tuple[memoryview, ...]]
    group: int
    local: Rows

    @classmethod
    def of(cls, to: np.ndarray, group: int, local: Rows) -> ChunkRows:
        """With what picks the views."""
        first, *others = to.tolist()
        return cls(to, itemgetter(first, *others) if others else lambda views: (views[first],), group, local)


class Room:
    """Rows that are read into again and again.

    Args:
        length: number of rows.
        width: numbers of a row.
        dtype: of them.
    """

    def __init__(self, length: int, width: int, dtype: np.dtype) -> None:
        self.rows = np.empty((length, width), dtype)
        size, data = width * dtype.itemsize, self.rows.view(np.uint8).reshape(-1).data
        self.views = [data[at : at + size] for at in range(0, length * size, size)]


class Cell:
    """One layer (and sublayer) of a variable of activations.

    Args:
        chunk: gives a row group's rows and numbers.
        opened: gives what puts rows of a row group, from one on, where views are; None where nothing does.
        variable: as stored.
        rest: which indices are taken of its dims behind ``token``.
    """

    def __init__(
        self, chunk: Callable[[int], np.ndarray], opened: Callable[[int], Puts | None] | None,
        variable: Variable, rest: list[np.ndarray],
    ) -> None:  # fmt: skip
        self._chunk = chunk
        self._rest = [as_slice(index) for index in rest]
        self._whole = tuple(len(index) for index in rest) == variable.rest_shape
        self._kept: tuple[int, np.ndarray] | None = None
        self._file: tuple[int, Puts | None] | None = None
        self.width = math.prod(len(index) for index in rest)
        self.dtype = variable.dtype.newbyteorder("=")
        self._opened = opened if self._whole and self.width * self.dtype.itemsize >= WIDE else None

    def read(self, places: list[ChunkRows], room: Room) -> np.ndarray:
        """Rows of the activations, ``[row, number]`` of this dtype, in the room until the next are read.

        Args:
            places: of `Activations.places`; they fill the first rows of the room.
            room: of this width and dtype.
        """
        n = 0
        for place in places:
            n += len(place.to)
            puts = self._puts(place.group) if isinstance(place.local, slice) else None
            if isinstance(place.local, slice) and puts is not None:
                puts(place.local.start, place.views(room.views))
            else:
                room.rows[place.to] = taken(self._held(place.group), place.local, self._rest).reshape(len(place.to), -1)
        return room.rows[:n]

    def _puts(self, group: int) -> Puts | None:
        if self._opened is None:
            return None
        if self._file is None or self._file[0] != group:
            self._file = None  # one at a time
            self._file = group, self._opened(group)
        return self._file[1]

    def _held(self, group: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != group:
            self._kept = None  # one at a time
            self._kept = group, self._chunk(group)
        return self._kept[1]
