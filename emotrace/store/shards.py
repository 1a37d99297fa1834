"""Shards: inner chunks of a row group in one file, as zarr's sharding codec has them: one behind the other, then the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np

ENTRY = np.dtype("<u8")
"""Of the index: offset and size of each inner chunk; CRC-32C of all of them follows."""


def index(sizes: Sequence[int]) -> bytes:
    """The index of inner chunks of these sizes that follow each other."""
    stops = np.cumsum(sizes)
    entries = np.stack([stops - sizes, sizes], axis=1).astype(ENTRY).tobytes()
    return entries + google_crc32c.value(entries).to_bytes(4, "little")


def index_size(chunks: int) -> int:
    """Bytes of the index of so many inner chunks."""
    return chunks * 2 * ENTRY.itemsize + 4


def index_of(data: bytes | memoryview) -> np.ndarray:
    """Where each inner chunk begins and ends, ``[chunk, 2]``, out of an index.

    Raises:
        ValueError: for one whose checksum differs.
    """
    data = bytes(data)
    if google_crc32c.value(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise ValueError("the index of the shard is damaged")
    entries = np.frombuffer(data[:-4], ENTRY).reshape(-1, 2).astype(np.int64)
    return np.stack([entries[:, 0], entries.sum(axis=1)], axis=1)


def neighbours(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Sorted numbers as runs without a gap: first and last of each."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    for run in np.split(numbers, cuts):
        if len(run):
            yield int(run[0]), int(run[-1])
