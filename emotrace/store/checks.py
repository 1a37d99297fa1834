"""Checks: what was committed with a checksum is used only while it still has it.

A file is checked when it is first read in a process, and again once its size or time of change differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from emotrace.disk import Located, There
from emotrace.store import layout
from emotrace.store.variable import Variable
from emotrace.texts import from_json

State = tuple[int, int, int, int]
"""Inode, size, time of change, and time of the last write to the file or to what is said of it."""
_SOUND: dict[str, State] = {}
"""Path → state in which a file had its checksum."""


@dataclass(frozen=True)
class Damage:
    """One file that is not what was committed.

    Attributes:
        path: the file, relative to the store.
        problem: ``missing``, ``truncated …``, ``changed`` or ``unreadable …``.
        group: its row group, or None for metadata and token table.
    """

    path: str
    problem: str
    group: int | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + ("" if self.group is None else f" (row group {self.group})")


class Committed(NamedTuple):
    """What a record says of a file: its size in bytes, and its checksum."""

    size: int
    checksum: str


def difference(size: int, checksum: str, wanted: Committed) -> str | None:
    """How a file differs from what was committed, or None."""
    if size != wanted.size:
        return f"{'truncated' if size < wanted.size else 'too long'}: {size} bytes instead of {wanted.size}"
    return None if checksum == wanted.checksum else "changed: the checksum differs"


def problem(root: Located, name: str, wanted: Committed) -> str | None:
    """What is wrong with a file of a store, read as a whole; None if nothing is."""
    try:
        data = (root / name).read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error})"
    return difference(len(data), layout.checksum(data, like=wanted.checksum), wanted)


def state(status: os.stat_result) -> State:
    """What tells one state of a file from another without reading it."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sound(path: str, at: State) -> bool:
    """Whether a file in this state had its checksum before."""
    return _SOUND.get(path) == at


def note(path: str, at: State) -> None:
    """A file in this state has its checksum."""
    _SOUND[path] = at


def read_record(root: Located, name: str, field: str) -> dict[str, Committed]:
    """The files of a record, by name.

    Raises:
        ValueError: for a record that cannot be read.
    """
    try:
        data = (root / name).read_bytes()
        whole = from_json(data)
        files = whole[field]
        if layout.dump(whole) != data:
            raise ValueError("not as it was written")
        if not all(isinstance(size, int) and isinstance(checksum, str) for size, checksum in files.values()):
            raise ValueError("no sizes and checksums")
        return {name: Committed(*said) for name, said in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unreadable ({error})") from error


def inner_checksums(root: Located, group: int) -> dict[str, list[str]]:
    """Checksums of the inner chunks of each shard of a row group, by its name.

    Raises:
        ValueError: for a record that cannot be read.
    """
    try:
        return {
            name: said.split()
            for name, said in from_json((root / layout.commit_record(group)).read_bytes())["inner"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"unreadable ({error})") from error


def attrs(root: Located) -> dict[str, Any]:
    """Attributes of a store whose metadata is what was committed.

    Raises:
        EmotraceError: if there is no store, or its metadata is damaged.
    """
    found = layout.read_attrs(root)
    require(root, "zarr.json", table(root))
    return found


def table(root: Located) -> dict[str, Committed]:
    """`of_table`, or the error that says how to mend it."""
    try:
        return of_table(root)
    except ValueError as error:
        raise layout.damaged(root, f"{layout.TABLE_RECORD} is {error}") from error


def of_group(root: Located, group: int, variables: Mapping[str, Variable]) -> dict[str, Committed]:
    """The chunks of a committed row group, by name.

    Raises:
        ValueError: for a record that cannot be read, or lacks a chunk.
    """
    files = read_record(root, layout.commit_record(group), "chunks")
    planned = {v.chunk(cell, group) for v in variables.values() for cell in v.cells()}
    if files.keys() != planned:
        raise ValueError(f"unreadable (it names {len(files)} chunks, not the {len(planned)} of the plan)")
    return files


def of_table(root: Located) -> dict[str, Committed]:
    """The files of the token table and all metadata, by name.

    Raises:
        ValueError: for a record that cannot be read.
    """
    return read_record(root, layout.TABLE_RECORD, "files")


def in_table(root: Located) -> Iterator[Damage]:
    """Damage of metadata and token table."""
    try:
        files = of_table(root)
    except ValueError as error:
        yield Damage(layout.TABLE_RECORD, str(error))
        return
    for name, wanted in sorted(files.items()):
        if (found := problem(root, name, wanted)) is not None:
            yield Damage(name, found)


def in_group(root: Located, group: int, variables: Mapping[str, Variable]) -> Iterator[Damage]:
    """Damage of one committed row group."""
    try:
        files = of_group(root, group, variables)
    except ValueError as error:
        yield Damage(layout.commit_record(group), str(error), group)
        return
    for name, wanted in sorted(files.items()):
        if (found := problem(root, name, wanted)) is not None:
            yield Damage(name, found, group)


def confirmed(root: Located, name: str, files: Mapping[str, Committed]) -> bytes:
    """A file of the token table or the metadata, as it was committed.

    Raises:
        EmotraceError: if it is not.
    """
    try:
        data = (root / name).read_bytes()
        found = difference(len(data), layout.checksum(data, like=files[name].checksum), files[name])
    except FileNotFoundError:
        data, found = b"", "missing"
    except KeyError:
        data, found = b"", "unknown to the store's record"
    if found is not None:
        raise layout.damaged(root, f"{name} is not what was committed ({found})")
    return data


def require(root: Located, name: str, files: Mapping[str, Committed]) -> None:
    """Check a file of the token table or the metadata.

    Raises:
        EmotraceError: if it is not what was committed.
    """
    path = f"{root}/{name}"
    try:
        at = (0, 0, 0, 0) if isinstance(root, There) else state(os.stat(path))
    except OSError:
        at = (0, 0, 0, 0)
    if sound(path, at):
        return
    found = problem(root, name, files[name]) if name in files else "unknown to the store's record"
    if found is not None:
        raise layout.damaged(root, f"{name} is not what was committed ({found})")
    note(path, at)
