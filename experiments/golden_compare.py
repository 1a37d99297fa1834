"""What two golden runs say differently: numbers to the bit, texts, labels, pictures; never bytes of a compression."""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from matplotlib.image import imread

from emotrace.run import LOCK
from emotrace.store import open_activations
from emotrace.store.rows import PROMPTS, VOCABULARY

FREE = {"command", "versions", "python", "started", "finished", "seconds"}
"""Entries of JSON, columns of tables, and lines of a page's table of settings, that may differ: when, how and
with what it was made."""
ABOUT_RUN = {"golden.json"}
"""Files about a run itself."""
ROWS = ("row_groups/commit",)
"""Inside a store: records with checksums of chunks as they lie on the disk."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[+-]\d{4}|Z)?|\b\d+\.\d s$")
"""A moment, or how long a command took at the end of what it says."""
SETTING = re.compile(rf"<tr><td>(?:{'|'.join(sorted(FREE))})(?:\.[^<]*)?</td>")
TEXTS = {".html", ".txt", ".md", ".css", ".jinja"}
DIGEST = re.compile(r"[0-9a-f]{16,}")
SHORT = 60
"""Characters of a value that are shown."""
ABSENT = "(absent)"


class Difference(NamedTuple):
    """One place that differs."""

    file: str
    place: str
    before: str
    after: str


@dataclass
class Found:
    """What a comparison found.

    Attributes:
        differences: every place that differs, file by file.
        renamed: names of files that say the same under another name, before and after.
        files: compared.
        values: compared: numbers, texts, cells, lines.
    """

    differences: list[Difference] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0
    values: int = 0


def trees(before: Path, after: Path, digits: int | None = None) -> Found:
    """Compare two folders file by file; a ``.zarr`` store counts as one file.

    Args:
        before: one folder.
        after: the other.
        digits: numbers that agree in so many are the same (cells: of the largest of their array), and digests are left out, so
            that what a change of rounding did not do stands alone; None compares bits.

    Returns:
        Every difference. A file that is in one folder only is a difference, unless a file of the other one, absent here, says
        the same: then it is renamed, which is listed, and no difference.
    """
    mine, theirs, found = _files(before), _files(after), Found()
    for name in sorted(mine.keys() & theirs.keys()):
        _differ(name, _said(mine[name]), _said(theirs[name]), found, digits)
    gone = {name: _said(mine[name]) for name in sorted(mine.keys() - theirs.keys())}
    for name in sorted(theirs.keys() - mine.keys()):
        new = _said(theirs[name])
        old = next((n for n, said in gone.items() if Path(n).suffix == Path(name).suffix and _same(said, new)), None)
        if old is None:
            found.differences.append(Difference(name, "file", ABSENT, f"{len(new)} values"))
        else:
            found.renamed.append((old, name))
            found.files, found.values = found.files + 1, found.values + len(gone.pop(old))
    found.differences += [Difference(name, "file", f"{len(said)} values", ABSENT) for name, said in gone.items()]
    return found


def table(found: Found, rows: int) -> str:
    """The differences as text, at most so many lines of each file."""
    lines = [f"{old}\n    now {new}" for old, new in found.renamed]
    by_file: dict[str, list[Difference]] = {}
    for one in found.differences:
        by_file.setdefault(one.file, []).append(one)
    for name, some in by_file.items():
        lines.append(f"{name}: {len(some)} differences")
        lines += [f"    {d.place}: {_short(d.before)} | {_short(d.after)}" for d in some[:rows]]
        lines += [f"    … and {len(some) - rows} more"] if len(some) > rows else []
    lines.append(
        f"{found.files} files, {found.values:,} values compared: {len(found.differences)} differences in {len(by_file)} files, "
        f"{len(found.renamed)} renamed"
    )
    return "\n".join(lines)


def _files(folder: Path) -> dict[str, Path]:
    """Name → path of every file; a store is one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(p.endswith(".zarr") for p in inside.parts[:-1]) or inside.as_posix() in ABOUT_RUN or path.name == LOCK:
            continue
        if path.is_file() or path.suffix == ".zarr":
            found[inside.as_posix()] = path
    return found


def _said(path: Path) -> dict[str, Any]:
    """Place → what a file says there, in a form whose equality is that of the bits."""
    if path.suffix == ".zarr" and path.is_dir():
        return dict(_store(path))
    kinds = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".npy": _npy, ".safetensors": _safetensors, ".png": _png}
    read = kinds.get(path.suffix, _text if path.suffix in TEXTS else _bytes)
    return dict(read(path))


def _differ(name: str, mine: dict[str, Any], theirs: dict[str, Any], found: Found, digits: int | None = None) -> None:
    """Add what differs in one file."""
    found.files += 1
    for place in dict.fromkeys([*mine, *theirs]):
        a, b = mine.get(place, ABSENT), theirs.get(place, ABSENT)
        found.values += getattr(a, "size", 1)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape):
            found.differences += _cells(name, place, a, b, digits)
        elif isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or (a != b and not _rounded(a, b, digits)):
            found.differences.append(Difference(name, place, _shown(a), _shown(b)))


def _same(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two files say the same."""
    found = Found()
    if mine.keys() == theirs.keys():
        _differ("", mine, theirs, found)
    return mine.keys() == theirs.keys() and not found.differences


def _rounded(a: Any, b: Any, digits: int | None) -> bool:
    """Whether two places say numbers that agree in so many digits, or digests of what is compared elsewhere."""
    said = [x[-1] if isinstance(x, tuple) else x for x in (a, b)]
    if digits is None or ABSENT in said:
        return False
    if all(isinstance(x, str) and DIGEST.fullmatch(x) for x in said):
        return len(said[0]) == len(said[1])
    try:
        one, other = map(float, said)
    except (TypeError, ValueError):
        return False
    return math.isclose(one, other, rel_tol=10.0**-digits)


def _cells(name: str, place: str, a: np.ndarray, b: np.ndarray, digits: int | None = None) -> Iterator[Difference]:
    """The cells of two arrays of one shape that differ in a bit, or in so many digits of the largest of them."""
    if a.dtype.kind in "OSUT":
        differ = a != b
    elif digits is not None and a.dtype.kind == "f":
        largest = np.abs(a, where=np.isfinite(a), out=np.zeros_like(a)).max(initial=0)
        differ = ~np.isclose(a, b, rtol=0, atol=10.0**-digits * largest, equal_nan=True)
    else:
        size = a.dtype.itemsize
        bits = (np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(-1, size) for x in (a, b))
        differ = (next(bits) != next(bits)).any(1).reshape(a.shape)
    for at in np.argwhere(differ):
        where = tuple(at.tolist())
        yield Difference(name, f"{place}[{','.join(map(str, where))}]", repr(a[where]), repr(b[where]))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Path → leaf of JSON; numbers with their kind and bits."""
    if isinstance(value, (dict, list)):
        items = (
            [(k, v) for k, v in value.items() if k not in FREE] if isinstance(value, dict) else list(enumerate(value))
        )
        if not items:
            yield place, "{}" if isinstance(value, dict) else "[]"
        for key, one in items:
            yield from _leaves(one, f"{place}/{key}")
    else:
        yield place, Number(value) if isinstance(value, float) else (type(value).__name__, value)


class Number(NamedTuple):
    """A float that equals another only to the bit; NaN equals NaN, −0 is not 0."""

    value: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and struct.pack("d", self.value) == struct.pack("d", other.value)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(struct.pack("d", self.value))


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    return _leaves(json.loads(path.read_text(encoding="utf-8")))


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for i, line in enumerate(lines, 1):
            yield from _leaves(json.loads(line), f"line {i}")


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Cells by the name of their column, as written: a number is written with all of its digits."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = [*csv.reader(file)] or [[]]
    yield "columns", head
    for i, row in enumerate(rows, 2):
        for j, cell in enumerate(row):
            if (name := head[j] if j < len(head) else str(j)) not in FREE:
                yield f"line {i}, {name}", cell


def _npy(path: Path) -> Iterator[tuple[str, Any]]:
    yield "array", np.load(path, allow_pickle=False)


def _safetensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Tensors from the header's own words, so that kinds that numpy lacks (bfloat16) are compared too, as bits."""
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:start])
    yield from _leaves(header.pop("__metadata__", {}), "metadata")
    known = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
             "BOOL": "?", "U64": "<u8", "U32": "<u4", "U16": "<u2", "BF16": "<u2"}  # fmt: skip
    for name, about in sorted(header.items()):
        first, last = about["data_offsets"]
        kind = np.dtype(known.get(about["dtype"], "u1"))
        flat = np.frombuffer(blob[start + first : start + last], kind)
        yield f"{name} ({about['dtype']})", flat.reshape(about["shape"]) if about["dtype"] in known else flat


def _store(path: Path) -> Iterator[tuple[str, Any]]:
    """Attributes, arrays with their dims, and what else lies in a store, but for records of how chunks lie on the disk.

    The token table of activations is compared column by column, in whatever format it lies there.
    """
    root = zarr.open_group(path, mode="r")
    attrs: dict[str, Any] = dict(root.attrs)
    table: tuple[str, ...] = ()
    if "emotrace_store" in attrs:
        attrs["emotrace_store"] = {k: v for k, v in attrs["emotrace_store"].items() if k != "format"}
        acts = open_activations(path)
        table = (*acts.columns, PROMPTS, VOCABULARY)
        yield from ((name, acts.column(name)) for name in acts.columns)
    yield from _leaves(attrs, "attrs")
    for name, member in sorted(root.members(max_depth=None)):
        if name.split("/")[0] in table:
            continue
        yield from _leaves(dict(member.attrs), f"{name} attrs")
        if isinstance(member, zarr.Array):
            yield f"{name} dims", repr(member.metadata.dimension_names)  # type: ignore[union-attr]  # format 3
            yield name, np.asarray(member[...])
    for file in sorted(path.rglob("*.json")):
        inside = file.relative_to(path).as_posix()
        if file.name != "zarr.json" and not inside.startswith(ROWS):
            yield from ((f"{inside}{place}", leaf) for place, leaf in _json(file))


def _png(path: Path) -> Iterator[tuple[str, Any]]:
    """The pixels of a picture, as one place: where one line moves, all do."""
    pixels = imread(path)
    yield "picture", (pixels.shape, pixels.tobytes())


def _text(path: Path) -> Iterator[tuple[str, Any]]:
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not SETTING.search(line):
            yield f"line {i}", TIME.sub("(time)", line)


def _bytes(path: Path) -> Iterator[tuple[str, Any]]:
    yield "bytes", path.read_bytes()


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Number):
        return repr(value.value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, tuple):
        return f"pixels {value[0]}" if isinstance(value[0], tuple) else repr(value[1])
    return str(value)


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
