"""Cell: one layer and sublayer of a variable, whose rows are read into arrays of the caller's, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from emotrace.store.chunks import Fill, Rows, as_slice, taken
from emotrace.store.variable import Variable


class ChunkRows(NamedTuple):
    """Rows that lie in one chunk.

    Attributes:
        to: which rows of a room they become.
        group: the row group.
        local: rows of the chunk.
    """

    to: slice
    group: int
    local: Rows


class Cell:
    """One layer (and sublayer) of a variable of activations.

    Args:
        chunk: gives a row group's rows and numbers.
        opened: gives what fills an array with rows of a row group, from one on; None where nothing does.
        variable: as stored.
        rest: which indices are taken of its dims behind ``token``.
    """

    def __init__(
        self, chunk: Callable[[int], np.ndarray], opened: Callable[[int], Fill | None] | None,
        variable: Variable, rest: list[np.ndarray],
    ) -> None:  # fmt: skip
        self._chunk = chunk
        self._rest = [as_slice(index) for index in rest]
        self._kept: tuple[int, np.ndarray] | None = None
        self._file: tuple[int, Fill | None] | None = None
        self.width = math.prod(len(index) for index in rest)
        self.dtype = variable.dtype.newbyteorder("=")
        self._opened = opened if tuple(len(index) for index in rest) == variable.rest_shape else None

    def read(self, places: Sequence[ChunkRows], room: np.ndarray) -> np.ndarray:
        """Rows of the activations, ``[row, number]`` of this dtype, in the room until the next are read.

        Args:
            places: of `Activations.places`; they fill the first rows of the room.
            room: contiguous, of this width and dtype.
        """
        n = 0
        for to, group, local in places:
            n = to.stop
            fill = self._fill(group) if isinstance(local, slice) else None
            if isinstance(local, slice) and fill is not None:
                fill(room[to], local.start)
            else:
                room[to] = taken(self._held(group), local, self._rest).reshape(n - to.start, -1)
        return room[:n]

    def _fill(self, group: int) -> Fill | None:
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
