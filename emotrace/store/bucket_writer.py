"""Bucket writer: row groups go into a bucket as whole objects, then one commit record that is put where none is.

Nothing can be appended to an object, so a row group that is interrupted leaves nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emotrace import disk
from emotrace.ranks import Leases
from emotrace.store import building, layout
from emotrace.store.encoding import ChunkSums, parts_of, recorded
from emotrace.store.journal import Journal
from emotrace.store.plan import Plan, RowGroup
from emotrace.store.writer import Writer


def create(root: disk.There, plan: Plan) -> None:
    """Put metadata and token table into a bucket, their record last; ranks that do so at once put the same bytes."""
    with tempfile.TemporaryDirectory(prefix="emotrace-") as folder:
        built = Path(folder)
        building.build(built, plan, plan.described)
        building.upload(built, root)


class BucketWriter(Writer):
    """A `Writer` of a store in a bucket."""

    path: disk.There  # type: ignore[assignment]

    def __init__(self, path: disk.There, plan: Plan, made: str, leases: Leases) -> None:
        super().__init__(path, plan, None, made, leases)

    def begun(self, group: RowGroup) -> bool:
        """No journal is kept."""
        return False

    def journal(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> Journal | None:
        """No journal is kept."""
        return None

    def _is_committed(self, group: int) -> bool:
        return group in self._committed or (self.path / layout.commit_record(group)).is_file()

    def _write_group(self, group: RowGroup, arrays: Mapping[str, np.ndarray]) -> bool:
        place, chunks = disk.objects(self.path), dict[str, ChunkSums]()
        for variable in self.plan.variables:
            for cell in variable.cells():
                name = variable.chunk(cell, group.index)
                rows = arrays[variable.name][cell]
                parts, inner = parts_of(rows, variable, self.plan, self._codecs[variable.name])
                place.put(name, b"".join(parts))
                chunks[name] = ChunkSums(sum(map(len, parts)), layout.checksum(*parts), inner)
        if not self._still_ours(group):
            return False
        self._commit(group, recorded(group, chunks))
        return True
