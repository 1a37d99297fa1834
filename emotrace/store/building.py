"""Building: a store is made whole before anything is captured: arrays, token table, consolidated metadata, their record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emotrace import disk
from emotrace.labels import COUNTED
from emotrace.store import layout
from emotrace.store.plan import Plan
from emotrace.store.rows import CHUNK_ROWS, stored
from emotrace.store.variable import Variable
from emotrace.texts import to_json


def create(path: Path, plan: Plan, shared: bool = False) -> int:
    """Create the store whole (all arrays, token table, consolidated metadata) and return its lock.

    It is built under a hidden name beside ``path`` and renamed, so a killed creation leaves nothing at ``path``.

    Args:
        path: of the store.
        plan: what it shall hold.
        shared: whether the lock is shared with other ranks once the store is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}{disk.PARTIAL}")
    (building / layout.COMMITS).mkdir(parents=True, exist_ok=True)
    fd = layout.lock(building, path)
    try:
        if (path / "zarr.json").exists():
            shutil.rmtree(building)
            raise disk.Busy(f"another process has just created {path}; repeat the command to continue it.")
        clear(building)
        with disk.writing(path):
            build(building, plan, plan.described)
            if shared:
                disk.share(fd)
            os.rename(building, path)
            disk.sync_folder(path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def clear(building: Path) -> None:
    """Remove what a killed creation left, but for the lock."""
    keep = {building / layout.LOCK, building / layout.COMMITS, (building / layout.COMMITS).parent}
    for entry in sorted(building.rglob("*"), reverse=True):
        if entry not in keep:
            entry.rmdir() if entry.is_dir() else entry.unlink()


def build(root: Path, plan: Plan, attrs: Mapping[str, Any]) -> None:
    """Metadata, token table and their record in an empty folder; the record also keeps the attributes."""
    import zarr

    top = zarr.create_group(root, zarr_format=3, attributes=dict(attrs))
    if attrs["emotrace_store"]["format"] == 1:
        for name, values in plan.rows.columns.items():
            _array(top, name, values, "token")
    else:
        for path, values, dim in stored(plan.rows):
            _array(top, path, values, dim, CHUNK_ROWS)
    commits = top.create_group("row_groups", attributes={"description": "first row of each row group; commit records"})
    _array(commits, "commit", np.arange(plan.n_groups, dtype=np.int64) * plan.row_group, "row_group")
    for variable in plan.variables:
        _variable(top, variable, plan)
    _consolidate(root)
    files = {
        p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file() and p != root / layout.LOCK
    }
    record = {name: _file_record(p) for name, p in files.items()}
    for file in files.values():
        disk.sync_file(file)
    for folder in {p.parent for p in files.values()}:
        disk.sync_folder(folder)
    disk.replace_file(root / layout.TABLE_RECORD, layout.dump({"files": record, "attributes": attrs}))


def upload(built: Path, root: disk.There) -> None:
    """Put the files of a folder into a bucket, the record of the token table last."""
    last = {layout.TABLE_RECORD: 2, "zarr.json": 1}
    files = [file.relative_to(built).as_posix() for file in built.rglob("*") if file.is_file()]
    for name in sorted(files, key=lambda name: (last.get(name, 0), name)):
        disk.objects(root).put(name, (built / name).read_bytes())


def _array(group: Any, name: str, values: np.ndarray, dim: str, chunk: int | None = None) -> None:
    strings = values.dtype == object
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape if chunk is None else (min(chunk, len(values)),),
        dtype="string" if strings else values.dtype.newbyteorder("<"),
        dimension_names=(dim,),
    )
    array[:] = values


def _variable(top: Any, variable: Variable, plan: Plan) -> None:
    from zarr.codecs import BloscCodec

    group = top.create_group(variable.name)
    for dim, values in variable.coords.items():
        _array(group, dim, np.array(values, dtype=np.int64 if isinstance(values[0], int) else object), dim)
    for dim in COUNTED:
        if dim in variable.sizes:
            _array(group, dim, np.arange(variable.sizes[dim], dtype=np.int64), dim)
    codec = layout.encoder(variable)
    blosc = codec and BloscCodec(
        typesize=variable.dtype.itemsize, cname=codec.cname, clevel=codec.clevel, shuffle="shuffle", blocksize=0
    )
    inner, ones = plan.inner_rows, tuple(1 for _ in variable.cell_dims)
    shard = (*ones, plan.row_group, *variable.rest_shape)
    group.create_array(
        variable.name,
        shape=variable.shape(plan.n_rows),
        chunks=shard if inner is None else (*ones, inner, *variable.rest_shape),
        shards=None if inner is None else shard,
        dtype=variable.dtype,
        dimension_names=variable.full_dims,
        filters=None,
        compressors=[blosc] if blosc else None,
        fill_value=float("nan"),
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={"source_dtype": variable.source_dtype, "absent": [list(cell) for cell in variable.absent]},
    )


def _consolidate(root: Path) -> None:
    """Put the metadata of all members into each group's ``zarr.json``, in sorted order so that the bytes are the same."""
    nodes = {p.parent: json.loads(p.read_text()) for p in sorted(root.rglob("zarr.json"))}
    for folder, node in nodes.items():
        if node["node_type"] == "group":
            members = {p.relative_to(folder).as_posix(): n for p, n in nodes.items() if folder in p.parents}
            inline = {"kind": "inline", "must_understand": False, "metadata": members}
            whole = to_json({**node, "consolidated_metadata": inline}, sort_keys=True)
            (folder / "zarr.json").write_bytes(whole.encode())


def _file_record(path: Path) -> list[Any]:
    data = path.read_bytes()
    return [len(data), layout.checksum(data)]
