"""Layout: where things lie inside a store, and how it is created whole.

```
activations.zarr/
  zarr.json                    attrs, consolidated metadata
  position/ token_id/ prompt/  token table: 1-D arrays [token]
  prompts/ vocabulary/         labels of every prompt, texts of every token: 1-D arrays [prompt], [word]
  residual/                    one group per variable
    layer/ sublayer/           its coordinates
    residual/c.LAYER.SUBLAYER.GROUP.0    one chunk, or shard, per (layer, sublayer, row group)
  row_groups/commit/           first row of each group; NNNNNN.json: the commit records; .lock
    NNNNNN.journal             batches of a group that is not committed yet
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from emotrace import disk
from emotrace.disk import Located
from emotrace.labels import COUNTED, EmotraceError
from emotrace.store.plan import SHARDED, Plan
from emotrace.store.rows import CHUNK_ROWS, stored
from emotrace.store.variable import Variable
from emotrace.texts import from_json, to_json

MAY_DIFFER = ("command", "versions", "batch_size")
"""Attrs that may differ when a run is continued."""
SINCE = {"bos": None}
"""What attrs that a store of the version before lacks amounted to then."""
FOLLOWS = ("begins_with_bos", "left_out")
"""Attrs that follow from the tokenizer and ``bos``: of no account where a store of the version before lacks them."""
COMMITS = "row_groups/commit"
LOCK = f"{COMMITS}/.lock"
TABLE_RECORD = f"{COMMITS}/table.json"
PARTIAL = ".partial"
JOURNAL = ".journal"
LEASE = ".lease"
DESCRIBING = ("emotrace_store", "plan_digest")
"""Attrs that the store writes itself."""
CASTAGNOLI = "crc32c:"
"""What CRC-32C checksums begin with."""


def commit_record(group: int) -> str:
    """Path of a group's commit record inside the store."""
    return f"{COMMITS}/{group:06d}.json"


def journal(group: int) -> str:
    """Path of a group's journal inside the store."""
    return f"{COMMITS}/{group:06d}{JOURNAL}"


def journaled(path: Located) -> list[int]:
    """Indices of the row groups that have a journal, in order."""
    here = isinstance(path, Path) and (path / COMMITS).is_dir()  # nothing can be appended to in a bucket
    names = os.listdir(path / COMMITS) if here else []
    stems = [n.removesuffix(JOURNAL) for n in names if n.endswith(JOURNAL)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def fingerprint(attrs: Mapping[str, Any]) -> str:
    """Hash of everything that the values of a store depend on, out of its attributes."""
    made = {name: value for name, value in attrs.items() if name not in (*MAY_DIFFER, *DESCRIBING)}
    return hashlib.sha256(json.dumps([attrs["plan_digest"], made], sort_keys=True).encode()).hexdigest()[:16]


def checksum(*parts: Any, like: str = CASTAGNOLI) -> str:
    """Checksum of bytes-like parts taken together, of the kind of another.

    Args:
        parts: whose bytes follow each other.
        like: a checksum, which says the kind: CRC-32C with its name in front, or the bare CRC-32 of earlier stores.
    """
    value = 0
    for part in parts:
        value = extend(value, part, like)
    return shown(value, like)


def extend(value: int, part: Any, like: str) -> int:
    """The value of a checksum after more bytes; CRC-32C takes a fraction of the time that CRC-32 does."""
    if like.startswith(CASTAGNOLI):
        return google_crc32c.extend(value, np.frombuffer(part, np.uint8)) if len(part) else value
    return zlib.crc32(part, value)


def shown(value: int, like: str) -> str:
    """A checksum as records have it."""
    return f"{CASTAGNOLI if like.startswith(CASTAGNOLI) else ''}{value:08x}"


def encoder(variable: Variable) -> Any | None:
    """The codec of a variable's chunks, or None for raw little-endian bytes."""
    if variable.codec == "none":
        return None
    from numcodecs.blosc import Blosc

    return Blosc(cname=variable.codec, clevel=5 if variable.codec == "lz4" else 1, shuffle=Blosc.SHUFFLE)


def damaged(root: Located, what: str) -> EmotraceError:
    """The error for a damaged store: what is wrong, and the way out."""
    return EmotraceError(
        f"{root} is damaged: {what}. `emotrace verify {root}` lists all damage; `emotrace repair {root}` makes what is damaged "
        "pending again, so that the command that captured it computes only that."
    )


def read_attrs(path: Located) -> dict[str, Any]:
    """Attributes of the store at ``path``, as they stand there.

    Raises:
        EmotraceError: if there is nothing, something that is not a store of emotrace, or one that is described wrongly.
    """
    if not path.exists():
        raise EmotraceError(f"no activation store at {path}.")
    try:
        attrs = from_json((path / "zarr.json").read_bytes())["attributes"]
        version = attrs["emotrace_store"]["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (path / COMMITS).is_dir():
            raise damaged(path, f"zarr.json does not describe a store ({error!r})") from None
        raise EmotraceError(f"{path} is not an activation store of emotrace; it is left as it is.") from None
    if version not in range(1, SHARDED + 1):
        raise EmotraceError(f"{path} has store format {version!r}; this emotrace reads formats 1 to {SHARDED}.")
    try:
        check_description(attrs["emotrace_store"])
    except (EmotraceError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"zarr.json does not describe a store ({error!r})") from error
    return attrs


def check_description(store: Mapping[str, Any]) -> None:
    """Refuse a description whose entries are missing or cannot be, with whatever error that gives."""
    for name in ("rows", "row_group"):
        if not isinstance(store[name], int) or store[name] < 1:
            raise ValueError(f"{name} is {store[name]!r}")
    if not store["variables"] or not all(isinstance(c, str) for c in store["columns"]):
        raise ValueError("variables or columns are missing")
    for variable in store["variables"]:
        Variable.from_json(variable)


def committed_groups(path: Located) -> list[int]:
    """Indices of the committed row groups, in order.

    Raises:
        EmotraceError: where the folder of commit records is missing.
    """
    try:
        names = disk.names_in(path, COMMITS)
    except OSError as error:
        raise damaged(path, f"{COMMITS} cannot be read ({error.strerror})") from error
    return sorted(int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit())


def lock(root: Path, shown: Path, shared: bool = False) -> int:
    """Take the writer's lock of the store in ``root``; held until the descriptor is closed or the process ends.

    Args:
        root: of the store.
        shown: what messages call it.
        shared: with other ranks; who takes it alone takes away what killed ranks left.

    Raises:
        disk.Busy: if another writer holds it.
    """
    fd = disk.lock(root / LOCK, shown, shared=shared)
    disk.clear_leftovers(root / COMMITS)
    if not shared:
        for left in (root / COMMITS).glob(f"*{LEASE}*"):
            left.unlink(missing_ok=True)
    return fd


def create(path: Path, plan: Plan, shared: bool = False) -> int:
    """Create the store whole (all arrays, token table, consolidated metadata) and return its lock.

    It is built under a hidden name beside ``path`` and renamed, so a killed creation leaves nothing at ``path``.

    Args:
        path: of the store.
        plan: what it shall hold.
        shared: whether the lock is shared with other ranks once the store is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}{PARTIAL}")
    (building / COMMITS).mkdir(parents=True, exist_ok=True)
    fd = lock(building, path)
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
    keep = {building / LOCK, building / COMMITS, (building / COMMITS).parent}
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
    files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file() and p != root / LOCK}
    record = {name: _file_record(p) for name, p in files.items()}
    for file in files.values():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    for folder in {p.parent for p in files.values()}:
        disk.sync_folder(folder)
    disk.replace_file(root / TABLE_RECORD, dump({"files": record, "attributes": attrs}))


def upload(built: Path, root: disk.There) -> None:
    """Put the files of a folder into a bucket, the record of the token table last."""
    last = {TABLE_RECORD: 2, "zarr.json": 1}
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
    codec = encoder(variable)
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
            (folder / "zarr.json").write_bytes(dump({**node, "consolidated_metadata": inline}))


def _file_record(path: Path) -> list[Any]:
    data = path.read_bytes()
    return [len(data), checksum(data)]


def dump(obj: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and one final newline, so that equal content is equal bytes."""
    return (to_json(obj, sort_keys=True, indent=1) + "\n").encode()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], show: Callable[[Any], str] = repr) -> list[str]:
    """Attrs that keep a run from being continued, each with both values."""
    out = []
    stored = {**SINCE, **stored}
    wanted = {**SINCE, **wanted}
    old = {name for name in FOLLOWS if name not in stored}
    for name in sorted({*stored, *wanted} - {*MAY_DIFFER, *old, "emotrace_store"}):
        a, b = stored.get(name, "(nothing)"), wanted.get(name, "(nothing)")
        if a != b:
            out.append(f"{name}: stored {show(a)}, now {show(b)}")
    return out
