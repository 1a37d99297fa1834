"""Run log: rows committed by identity, resumed after a kill; progress bars; presets for published numbers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from emotrace.labels import EmotraceError

IDENTITY = ("key", "method", "draw")
_DEFAULTS: Final = {"draw": 0}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Log:
    """An append-only JSONL file whose rows are known by identity, so that a run continues where it was killed.

    A last line without its newline is what a kill leaves: it is not a row, and is cut off before the next append.

    Args:
        path: the file; it need not exist.
        identity: the fields that tell rows apart (``draw`` is 0 where a row has none).

    Raises:
        EmotraceError: for a damaged line (with its number), a row without a field of the identity, or two of one identity.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Sequence[str] = IDENTITY) -> None:
        self.path = Path(path)
        self.identity = tuple(identity)
        self._file: int | None = None
        self.done: set[tuple[Any, ...]] = set()
        self._load(self.done)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.done)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return self.identity_of(row) in self.done

    def identity_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The identity of a row.

        Raises:
            EmotraceError: if a field is missing.
        """
        try:
            return tuple(row[f] if f in row else _DEFAULTS[f] for f in self.identity)
        except KeyError as error:
            raise EmotraceError(
                f"{self.path}: a row has no field {error}, which its identity {self.identity} needs."
            ) from None

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order they were appended."""
        return [row for _, row in self._read()]

    def append(self, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Write rows and wait until they are on disk.

        Raises:
            EmotraceError: for a row that is there already, if another process appends to the file, or if the disk is
                full (what was committed before stays, the run can be continued).
        """
        batch: list[Any] = [rows] if isinstance(rows, Mapping) else list(rows)
        names = [self.identity_of(row) for row in batch]
        fd = self._open()
        for i, name in enumerate(names):
            if name in self.done or name in names[:i]:
                raise EmotraceError(f"{self.path} has a row {dict(zip(self.identity, name, strict=True))} already.")
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch).encode()
        before = os.fstat(fd).st_size
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        except OSError as error:
            os.ftruncate(fd, before)
            if error.errno not in _FULL:
                raise
            raise EmotraceError(
                f"the disk is full ({error.strerror}) while writing {self.path}. The rows before are kept: make room and "
                "repeat the same command to continue."
            ) from error
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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise EmotraceError(
                    f"another run is appending to {self.path}; wait for it, or choose another path."
                ) from None
            self._file = fd
            self.done.clear()
            os.ftruncate(fd, self._load(self.done))
        return self._file

    def _load(self, done: set[tuple[Any, ...]]) -> int:
        """Collect identities; returns the number of bytes that are whole lines."""
        whole = 0
        for end, row in self._read():
            name = self.identity_of(row)
            if name in done:
                raise EmotraceError(f"{self.path} has two rows {dict(zip(self.identity, name, strict=True))}.")
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
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise EmotraceError(f"{self.path}:{number} is damaged: {error}.") from None
                if not isinstance(row, dict):
                    raise EmotraceError(f"{self.path}:{number} is not a row: {row!r}.")
                yield end, row


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write JSON so that the file is at any moment either the old one or the new one; NaN is refused."""
    _replace(Path(path), json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file as a whole, as `write_json` does."""
    _replace(Path(path), "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _replace(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, target)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    desc: str = "",
    unit: str = "it",
    enabled: bool = True,
) -> tqdm[Any]:
    """A bar on stderr with rate and time left; iterate over it, or call its ``update(n)`` and ``close()``."""
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=not enabled, dynamic_ncols=True)
