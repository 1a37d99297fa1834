"""Cell: one layer and sublayer of a variable, of which rows are put into arrays of the caller's, without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from emotrace.store.chunks import Rows, as_slice, taken
from emotrace.store.variable import Variable


class ChunkRows(NamedTuple):
    """Rows that lie in one chunk.

    Attributes:
        where: their place among the rows asked for.
        group: the row group.
        local: rows of the chunk.
    """

    where: slice
    group: int
    local: Rows


class Cell:
    """One layer (and sublayer) of a variable of activations.

    Args:
        chunk: gives a row group's rows and numbers.
        variable: as stored.
        rest: which indices are taken of its dims behind ``token``.
    """

    def __init__(self, chunk: Callable[[int], np.ndarray], variable: Variable, rest: list[np.ndarray]) -> None:
        self._chunk = chunk
        self._rest = [as_slice(index) for index in rest]
        self._whole = tuple(len(index) for index in rest) == variable.rest_shape
        self._kept: tuple[int, np.ndarray] | None = None
        self.shape = tuple(len(index) for index in rest)
        self.dtype = variable.dtype.newbyteorder("=")

    def read(self, places: list[ChunkRows], out: np.ndarray) -> np.ndarray:
        """Rows of the activations, ``[row, …]`` of this dtype, contiguous, good until the next are read.

        Args:
            places: of `Activations.places`.
            out: of as many rows; the values are put there, but for neighbours of one chunk, which are shown where they lie
                and not to be written to.
        """
        for where, group, local in places:
            if self._kept is None or self._kept[0] != group:
                self._kept = None  # one at a time
                self._kept = group, self._chunk(group)
            part = self._kept[1]
            if not self._whole:
                out[where] = taken(part, local, self._rest)
            elif not isinstance(local, slice):
                np.take(part, local, axis=0, out=out[where], mode="clip")  # other modes copy once more
            elif len(places) == 1:
                return part[local]
            else:
                out[where] = part[local]
        return out
