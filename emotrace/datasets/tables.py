"""Tables: rows of a data file or of a data set on the hub, each with its place for error messages."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from emotrace import shipped
from emotrace.files import read_json, read_jsonl, read_text
from emotrace.labels import EmotraceError, unknown

SUFFIXES: Final = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
EXTRA: Final = "pip install 'emotrace[hub]'"


class HubTable(Protocol):
    """A data set of the hub's library."""

    features: Mapping[str, Any]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Its rows."""
        ...


@dataclass(frozen=True)
class SourceTable:
    """Rows of a data set.

    Attributes:
        name: the file or hub id, for messages.
        rows: pairs of the row's place (``file:line``) and the row.
        classes: names of the classes of a column, where the source says them.
    """

    name: str
    rows: Iterable[tuple[str, dict[str, Any]]]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def open_table(
    source: str | Path, *, split: str, config: str | None = None, columns: Sequence[str] | None = None
) -> SourceTable:
    """The rows of a local file, of a data set saved to disk, or of one on the hub.

    Args:
        source: a ``.csv``, ``.tsv``, ``.json`` (an array of objects) or ``.jsonl`` file; a ``.parquet`` or ``.arrow`` file or
            a folder of `datasets.Dataset.save_to_disk` (these need the extra ``hub``); or a hub id.
        split: of a data set that has several; a file holds one.
        config: of a hub id.
        columns: names of the columns of a ``.tsv`` file without a header (one that has them all in its first line has one).

    Raises:
        EmotraceError: for a missing or unreadable file, an absent extra, or a data set that cannot be fetched.
    """
    path = shipped.find(source)
    if path.is_dir():
        return _saved(path, split)
    suffix = path.suffix.lower()
    if path.is_file() or suffix in SUFFIXES:
        if not path.is_file():
            raise EmotraceError(f"{path}: no such file.")
        if suffix in (".csv", ".tsv"):
            return SourceTable(str(path), _delimited(path, suffix, columns))
        if suffix == ".jsonl":
            return SourceTable(str(path), read_jsonl(path))
        if suffix == ".json":
            return SourceTable(str(path), _objects(path))
        if suffix in (".parquet", ".arrow"):
            return _binary(path, suffix)
        raise unknown("kind of file", suffix or path.name, SUFFIXES, str(path))
    if not HUB_ID.fullmatch(str(source)):
        raise EmotraceError(f"{source}: no such file or folder, and no hub id (owner/name) either.")
    return _hub(str(source), config, split)


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that is text and not blank.

    Raises:
        EmotraceError: naming the place and the fields that there are.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        have = ", ".join(map(str, row)) or "nothing"
        raise EmotraceError(f"{where}: field {name!r} is missing, empty or no text (the row has: {have}).")
    return value


def _delimited(path: Path, suffix: str, columns: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV, whose cells may be parted by semicolons or tabs, too, where its header has no comma, or of a TSV."""
    text = read_text(path)
    header = text.split("\n", 1)[0].rstrip("\r")
    tabs = suffix == ".tsv"
    mark = "\t" if tabs else next((m for m in ",;\t" if m in header), ",")
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, quoting=quoting, strict=True)
    names = list(columns) if columns is not None and tabs and not set(columns) <= set(header.split(mark)) else None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise EmotraceError(f"{where}: not a table ({error}).") from None
        if names is None:
            names = cells
            twice = [n for n in names if names.count(n) > 1]
            if twice:
                raise EmotraceError(f"{where}: the column {twice[0]!r} occurs twice.")
        elif cells:
            if len(cells) != len(names):
                raise EmotraceError(f"{where}: {len(cells)} cells, but there are {len(names)} columns.")
            yield where, dict(zip(names, cells, strict=True))


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    value = read_json(path)
    if not isinstance(value, list):
        raise EmotraceError(f"{path}: a JSON array of objects is due, not {type(value).__name__}.")
    for i, row in enumerate(value):
        if not isinstance(row, dict):
            raise EmotraceError(f"{path}, row {i}: a row is a JSON object, not {type(row).__name__}.")
        yield f"{path}, row {i}", row


def _library(source: str) -> Any:
    try:
        import datasets  # type: ignore[import-not-found]  # the hub's library, an extra
    except ImportError:
        raise EmotraceError(
            f"{source}: reading it needs the library 'datasets' ({EXTRA}). Without it: a .csv, .tsv, .json or .jsonl file."
        ) from None
    return datasets


def _binary(path: Path, suffix: str) -> SourceTable:
    library = _library(str(path))
    try:
        read = library.Dataset.from_parquet if suffix == ".parquet" else library.Dataset.from_file
        return _loaded(str(path), read(str(path)))
    except Exception as error:  # the bytes are a stranger's, and the libraries raise what they like
        raise EmotraceError(f"{path} cannot be read: {error}.") from error


def _saved(path: Path, split: str) -> SourceTable:
    library = _library(str(path))
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:
        raise EmotraceError(f"{path} is no saved data set: {error}.") from error
    if isinstance(found, library.DatasetDict):
        if split not in found:
            raise unknown("split", split, found, str(path))
        found = found[split]
    return _loaded(str(path), found)


def _hub(name: str, config: str | None, split: str) -> SourceTable:
    library = _library(f"{name} is no file or folder; as a hub id")
    try:
        return _loaded(f"{name}[{split}]", library.load_dataset(name, config, split=split))
    except Exception as error:  # offline, unknown, gated: the hub's own words say which
        raise EmotraceError(f"{name} (config {config}, split {split}) cannot be had from the hub: {error}") from error


def _loaded(name: str, found: HubTable) -> SourceTable:
    classes = {}
    for column, feature in found.features.items():
        inner = getattr(feature, "feature", feature)  # a list of class labels, or one
        if getattr(inner, "names", None):
            classes[column] = tuple(inner.names)
    return SourceTable(name, ((f"{name}, row {i}", dict(row)) for i, row in enumerate(found)), classes)
