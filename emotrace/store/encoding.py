"""Encoding: rows of a row group as the bytes of a chunk or shard, and what its commit record says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from emotrace.store import layout, shards
from emotrace.store.plan import Plan, RowGroup
from emotrace.store.variable import Variable


class ChunkSums(NamedTuple):
    """What a commit record says of a chunk: its bytes, its checksum, and those of its inner chunks."""

    size: int
    checksum: str
    inner: list[str]


def recorded(group: RowGroup, chunks: Mapping[str, ChunkSums]) -> bytes:
    """The commit record of a row group."""
    record: dict[str, Any] = {"group": group.index, "rows": [group.start, group.stop]}
    record["chunks"] = {name: [size, checksum] for name, (size, checksum, _) in chunks.items()}
    inner = {name: " ".join(sums.inner) for name, sums in chunks.items() if sums.inner}
    return layout.dump({**record, **({"inner": inner} if inner else {})})


def parts_of(rows: np.ndarray, variable: Variable, plan: Plan, codec: Any | None) -> tuple[list[memoryview], list[str]]:
    """The bytes of one chunk, padded to the size of the row group, and checksums of its inner chunks.

    Args:
        rows: of one cell, ``[row, …]``.
        variable: whose.
        plan: of the store.
        codec: of `layout.encoder`.
    """
    missing, inner = plan.row_group - len(rows), plan.inner_rows
    arrays = [np.ascontiguousarray(rows)]
    if missing:
        arrays.append(np.zeros((missing, *variable.rest_shape), variable.dtype))
    if inner is None and codec is None:
        return [part.data.cast("B") for part in arrays], []
    whole = np.concatenate(arrays) if missing else arrays[0]
    if inner is None:
        return [memoryview(_encoded(whole, codec)).cast("B")], []
    parts = [memoryview(_encoded(whole[at : at + inner], codec)).cast("B") for at in range(0, len(whole), inner)]
    index = memoryview(shards.index([len(part) for part in parts]))
    return [*parts, index], [layout.checksum(part) for part in parts]


def _encoded(rows: np.ndarray, codec: Any | None) -> Any:
    return rows if codec is None else codec.encode(rows)
