"""Variable: name, dims, coordinates and dtype of one stored site."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emotrace.labels import NAME_BYTES, EmotraceError, unknown

CELL_DIMS = ("layer", "sublayer")
"""Dims with one chunk per value, so that reading one (layer, sublayer) touches only its chunks."""
STORED_AS = {"float32": "float32", "float16": "float16", "bfloat16": "float32"}
CODECS = ("none", "lz4", "zstd")


@dataclass(frozen=True)
class Variable:
    """One stored site: ``[layer?, sublayer?, token, …]``.

    bfloat16 is stored as float32, which holds it exactly, with byte-shuffle and lz4, which drop the zero halves.

    Attributes:
        name: ``"residual"``, ``"z"``, ``"neuron"``, … or a site's own name.
        dims: without ``token``; ``layer`` and ``sublayer`` come first, as in ``("layer", "sublayer", "dim")``.
        coords: values of ``layer`` (ints) and ``sublayer`` (names); other dims are numbered from 0.
        sizes: sizes of the other dims, e.g. ``{"dim": 768}``.
        source_dtype: what the model computed: ``float32``, ``bfloat16`` or ``float16``.
        codec: ``none`` (default, fastest), ``lz4`` or ``zstd``.
        absent: combinations of coordinates that do not exist in the model, e.g. ``((0, "resid_mid"),)``; they are
            neither written nor read.
    """

    name: str
    dims: tuple[str, ...]
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    source_dtype: str = "float32"
    codec: str = "none"
    absent: tuple[tuple[Any, ...], ...] = ()

    def __post_init__(self) -> None:
        if (
            not self.name
            or self.name.startswith((".", "__"))
            or "/" in self.name
            or len(self.name.encode()) > NAME_BYTES
        ):
            raise EmotraceError(f"variable name {self.name!r}: no '/', and neither '.' nor '__' at the start.")
        cells = tuple(d for d in self.dims if d in CELL_DIMS)
        if self.dims[: len(cells)] != cells or "token" in self.dims or len(set(self.dims)) != len(self.dims):
            raise EmotraceError(f"variable {self.name!r}: dims {self.dims} must be [layer, sublayer, …] without token.")
        if self.source_dtype not in STORED_AS:
            raise unknown("source_dtype", self.source_dtype, STORED_AS, f"variable {self.name!r}")
        if self.codec not in CODECS:
            raise unknown("codec", self.codec, CODECS, f"variable {self.name!r}")
        coords = {d: [_plain(c) for c in self.coords.get(d, ())] for d in cells}
        for dim, values in coords.items():
            if not values or len(set(values)) != len(values):
                raise EmotraceError(
                    f"variable {self.name!r}: coords[{dim!r}]={values} must be different values, at least one."
                )
        sizes = {d: int(self.sizes.get(d, 0)) for d in self.dims if d not in cells}
        for dim, size in sizes.items():
            if size < 1:
                raise EmotraceError(f"variable {self.name!r}: sizes[{dim!r}] is missing or not positive.")
        absent = tuple(sorted({tuple(_plain(c) for c in cell) for cell in self.absent}))
        for cell in absent:
            if len(cell) != len(cells) or any(c not in coords[d] for c, d in zip(cell, cells, strict=True)):
                raise EmotraceError(
                    f"variable {self.name!r}: absent cell {cell} is not one of its coordinates {coords}."
                )
        if self.source_dtype == "bfloat16" and self.codec == "none":
            object.__setattr__(self, "codec", "lz4")
        object.__setattr__(self, "coords", coords)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "absent", absent)

    @property
    def cell_dims(self) -> tuple[str, ...]:
        """The dims before ``token``."""
        return tuple(d for d in self.dims if d in CELL_DIMS)

    @property
    def rest_dims(self) -> tuple[str, ...]:
        """The dims after ``token``."""
        return tuple(d for d in self.dims if d not in CELL_DIMS)

    @property
    def full_dims(self) -> tuple[str, ...]:
        """All dims in the order on disk."""
        return (*self.cell_dims, "token", *self.rest_dims)

    @property
    def cell_shape(self) -> tuple[int, ...]:
        """Sizes of `cell_dims`."""
        return tuple(len(self.coords[d]) for d in self.cell_dims)

    @property
    def rest_shape(self) -> tuple[int, ...]:
        """Sizes of `rest_dims`."""
        return tuple(self.sizes[d] for d in self.rest_dims)

    @property
    def dtype(self) -> np.dtype:
        """Of the stored array and of the writer's buffers, little-endian."""
        return np.dtype(STORED_AS[self.source_dtype]).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all existing cells."""
        return (math.prod(self.cell_shape) - len(self.absent)) * math.prod(self.rest_shape) * self.dtype.itemsize

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape with so many rows on the token axis."""
        return (*self.cell_shape, rows, *self.rest_shape)

    def labels(self, cell: tuple[int, ...]) -> tuple[Any, ...]:
        """Coordinates of a cell given by its indices."""
        return tuple(self.coords[d][i] for d, i in zip(self.cell_dims, cell, strict=True))

    def cells(self) -> Iterator[tuple[int, ...]]:
        """Indices of all cells that exist, in order."""
        missing = set(self.absent)
        for cell in itertools.product(*map(range, self.cell_shape)):
            if self.labels(cell) not in missing:
                yield cell

    def chunk(self, cell: tuple[int, ...], group: int) -> str:
        """Path of one chunk file inside the store."""
        key = ".".join(map(str, ("c", *cell, group, *(0 for _ in self.rest_dims))))
        return f"{self.name}/{self.name}/{key}"

    def to_json(self) -> dict[str, Any]:
        """Everything needed to make it again."""
        return {
            "name": self.name,
            "dims": list(self.dims),
            "coords": dict(self.coords),
            "sizes": dict(self.sizes),
            "source_dtype": self.source_dtype,
            "codec": self.codec,
            "absent": [list(cell) for cell in self.absent],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Variable:
        """The inverse of `to_json`."""
        return cls(**{**data, "dims": tuple(data["dims"]), "absent": tuple(map(tuple, data["absent"]))})


def _plain(value: Any) -> int | str:
    return str(value) if isinstance(value, str) else int(value)
