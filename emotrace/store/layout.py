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
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from emotrace import disk
from emotrace.disk import Located
from emotrace.labels import EmotraceError
from emotrace.store.plan import SHARDED
from emotrace.store.variable import Variable
from emotrace.texts import from_json, to_json

MAY_DIFFER = (*disk.MAY_DIFFER, "batch_size")
"""Attrs that may differ when a run is continued."""
SINCE = {"bos": None}
"""What attrs that a store of the version before lacks amounted to then."""
FOLLOWS = ("begins_with_bos", "left_out")
"""Attrs that follow from the tokenizer and ``bos``: of no account where a store of the version before lacks them."""
COMMITS = "row_groups/commit"
LOCK = f"{COMMITS}/.lock"
TABLE_RECORD = f"{COMMITS}/table.json"
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
    if not isinstance(path, Path) or not (path / COMMITS).is_dir():  # nothing can be appended to in a bucket
        return []
    names = os.listdir(path / COMMITS)
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


def dump(obj: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and one final newline, so that equal content is equal bytes."""
    return (to_json(obj, sort_keys=True, indent=1) + "\n").encode()


def settle(root: Located, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a store of another plan, or made with other settings.

    Args:
        root: of the store.
        stored: its attrs.
        wanted: attrs, and ``plan_digest``.

    Raises:
        EmotraceError: naming every difference.
    """
    old = {name for name in FOLLOWS if name not in stored}
    disk.settle(str(root), {**SINCE, **stored}, {**SINCE, **wanted}, {*MAY_DIFFER, *old, "emotrace_store"})
