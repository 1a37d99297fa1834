"""Run log: rows committed by name, resumed after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from emotrace import disk
from emotrace.labels import EmotraceError
from emotrace.replies.row import NAMED_BY
from emotrace.texts import from_json, to_json

__all__ = ["Log", "repair_rows"]

_DEFAULTS: Final = {"draw": 0}


class Log:
    """An append-only JSONL file whose rows are known by name, so that a run continues where it was killed.

    A last line without its newline is what a kill leaves: it is not a row, and is cut off before the next append.

    Args:
        path: the file; it need not exist.
        named_by: the fields that tell rows apart (``draw`` is 0 where a row has none).

    Raises:
        EmotraceError: for a damaged line (with its number), a row without one of these fields, or two of one name.
    """

    def __init__(self, path: str | os.PathLike[str], named_by: Sequence[str] = NAMED_BY) -> None:
        self.path = Path(path)
        self.named_by = tuple(named_by)
        self._file: int | None = None
        self.done: set[tuple[Any, ...]] = set()
        self._load(self.done)

    def __reduce__(self) -> tuple[type[Log], tuple[Path, tuple[str, ...]]]:
        return Log, (self.path.absolute(), self.named_by)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.done)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return self.name_of(row) in self.done

    def name_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The name of a row: the values of those fields.

        Raises:
            EmotraceError: if a field is missing.
        """
        try:
            found = tuple(row[f] if f in row else _DEFAULTS[f] for f in self.named_by)
        except KeyError as error:
            raise EmotraceError(
                f"{self.path}: a row has no field {error}, which names rows here ({', '.join(self.named_by)})."
            ) from None
        for field, value in zip(self.named_by, found, strict=True):
            if isinstance(value, (list, dict)):
                raise EmotraceError(f"{self.path}: a row has {field} {value!r}; a text or a number tells rows apart.")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order they were appended."""
        return [row for _, row in self._read()]

    def append(self, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Write rows and wait until they are on disk.

        Raises:
            EmotraceError: for a row that is there already, if another process appends to the file, or if it cannot be written
                or the disk is full (what was committed before stays, the run can be continued).
        """
        batch: list[Any] = [rows] if isinstance(rows, Mapping) else list(rows)
        names = [self.name_of(row) for row in batch]
        fd = self._open()
        for i, name in enumerate(names):
            if name in self.done or name in names[:i]:
                raise EmotraceError(f"{self.path} has a row {dict(zip(self.named_by, name, strict=True))} already.")
        data = "".join(to_json(row) + "\n" for row in batch).encode()
        before = os.fstat(fd).st_size
        with disk.writing(self.path):
            try:
                while data:
                    data = data[os.write(fd, data) :]
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, before)
                raise
        self.done.update(names)

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _open(self) -> int:
        if self._file is None:
            disk.clear_leftovers(self.path.parent, self.path.name)
            new = not self.path.exists()
            fd = disk.lock(self.path, flags=os.O_APPEND)
            if new:
                disk.sync_folder(self.path.parent)
            self._file = fd
            self.done.clear()
            os.ftruncate(fd, self._load(self.done))
        return self._file

    def _load(self, done: set[tuple[Any, ...]]) -> int:
        """Collect identities; returns the number of bytes that are whole lines."""
        whole = 0
        for end, row in self._read():
            name = self.name_of(row)
            if name in done:
                raise EmotraceError(f"{self.path} has two rows {dict(zip(self.named_by, name, strict=True))}.")
            done.add(name)
            whole = end
        return whole

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.exists():
            return
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                aside = f"`emotrace repair {self.path}` moves such lines aside."
                try:
                    row = from_json(line)
                except ValueError as error:
                    raise EmotraceError(f"{self.path}:{number} is damaged: {error}. {aside}") from None
                if not isinstance(row, dict):
                    raise EmotraceError(f"{self.path}:{number} is not a row: {row!r}. {aside}")
                yield end, row


def repair_rows(path: str | os.PathLike[str]) -> list[int]:
    """Move the lines of a JSON-lines file that are no rows to ``….damaged`` beside it; the others stay as they are.

    Returns:
        The numbers of these lines, from 1.

    Raises:
        EmotraceError: if there is no such file, or another run appends to it.
    """
    target = Path(path)
    if not target.is_file():
        raise EmotraceError(f"no file of rows at {target}.")
    fd = disk.lock(target)
    try:
        with open(target, "rb") as file:
            lines = list(file)
        wrong = [i for i, line in enumerate(lines) if not (line.endswith(b"\n") and _is_row(line))]
        if lines and len(wrong) == len(lines) and not lines[0].startswith(b"{"):
            raise EmotraceError(f"{target} is no file of rows: none of its {len(lines)} lines is one.")
        if wrong:
            aside = target.with_name(f"{target.name}.damaged")
            with disk.writing(aside), open(aside, "ab") as file:
                file.writelines(lines[i].rstrip(b"\n") + b"\n" for i in wrong)
            disk.sync_file(aside)
            disk.replace_file(target, b"".join(line for i, line in enumerate(lines) if i not in wrong))
    finally:
        os.close(fd)
    return [i + 1 for i in wrong]


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(from_json(line), dict)
    except ValueError:
        return False
