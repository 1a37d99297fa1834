"""Sums: float64 totals over a stream of prompts, committed after each chunk and continued after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_tensors

from emotrace import disk, ranks
from emotrace.bundles import CONTENT, confirm, content, read_pair
from emotrace.disk import plain, replace_file, write_json
from emotrace.files import read_bytes
from emotrace.forwards.parted import Added, Parts
from emotrace.labels import EmotraceError, filename
from emotrace.texts import from_json


class Sums:
    """Named totals and the number of prompts they cover.

    ::

        sums = Sums(out, settings)
        for rows in sums.left(pieces):  # ranges that follow each other
            sums.add("a", …)
            sums.commit(rows.stop)

    Several ranks (`emotrace.ranks`) each compute some pieces, which are added in their order: all end with the bits of one
    process.

    Each commit writes the numbers under a new name, syncs them, and then replaces the manifest that names them, so a
    kill leaves the last commit; a repeated run ends with the same bits.

    Args:
        out: folder of ``NAME.json`` and ``NAME.DONE.safetensors``; None keeps the totals in memory.
        settings: everything that the totals depend on, as JSON values.
        name: stem of the files.

    Attributes:
        done: prompts covered by the last commit.

    Raises:
        EmotraceError: for totals of other settings (the difference is named) or damaged files.
    """

    def __init__(self, out: str | Path | None, settings: Mapping[str, Any], name: str = "sums") -> None:
        self.out = None if out is None else Path(out)
        self.name = filename(name, "Sums(name=…)")
        try:
            self.settings = json.loads(json.dumps(plain(settings)))
        except (TypeError, ValueError) as error:
            raise EmotraceError(f"the settings of a sum must be JSON: {error}.") from error
        self.done = 0
        self.rank = ranks.chosen(None, out, "Sums(rank)")
        self._arrays: dict[str, np.ndarray] = {}
        self._parts: Parts | None = None
        self._added: list[tuple[str, np.ndarray]] = []
        self._written = b""
        if self.out is not None and self._manifest.is_file():
            self._open()
            disk.clear_leftovers(self.out, self.name)

    def __getitem__(self, name: str) -> np.ndarray:
        """A total, float64."""
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @property
    def apart(self) -> bool:
        """Whether pieces are computed by several ranks, or were, and are not all in the totals."""
        return self.out is not None and (self.rank.of > 1 or self._folder.is_dir())

    @property
    def totals(self) -> dict[str, np.ndarray]:
        """All totals, float64."""
        return dict(self._arrays)

    def left(self, pieces: Iterable[range]) -> Iterator[range]:
        """Pieces of the prompts that are not in the totals, of which this process computes each that it is given.

        Args:
            pieces: ranges that follow each other, the same in every run and of every rank.
        """
        pieces = list(pieces)
        if not pieces or self.done >= pieces[-1].stop:
            return
        if self.apart:
            self._parts = Parts(self._folder, self.rank, [piece.stop for piece in pieces], self._covered)
            try:
                yield from map(pieces.__getitem__, self._of_ranks(self._parts))
            finally:
                self._parts.close()
                self._parts = None
            return
        yield from (piece for piece in pieces if piece.stop > self.done)

    def _of_ranks(self, parts: Parts) -> Iterator[int]:
        while True:
            yield from parts.left()
            if not parts.more():
                break
        parts.fold(self._fold, self._refresh)

    def _fold(self, done: int, added: Added) -> None:
        for name, value in added:
            self._total(name, value)
        self._commit(done)

    def _refresh(self) -> None:
        if self._manifest.is_file() and self._manifest.read_bytes() != self._written:
            self._open()

    def _covered(self) -> int:
        """Prompts that the totals on disk cover."""
        try:
            return int(from_json(self._manifest.read_bytes())["done"])
        except FileNotFoundError:
            return 0

    def add(self, name: str, value: object) -> None:
        """Add an array (or number) to a total of the same shape; the first one makes it.

        Raises:
            EmotraceError: for another shape, or values that are not finite.
        """
        value = np.asarray(value, dtype=np.float64)
        if not np.isfinite(value).all():
            raise EmotraceError(f"the sum {name!r} got a value that is not finite after {self.done} prompts.")
        if self._parts is not None:
            self._added.append((name, np.ascontiguousarray(value)))
        else:
            self._total(name, value)

    def _total(self, name: str, value: np.ndarray) -> None:
        if name not in self._arrays:
            self._arrays[name] = value.copy()
        elif self._arrays[name].shape != value.shape:
            raise EmotraceError(f"the sum {name!r} has shape {self._arrays[name].shape}; {value.shape} was added.")
        else:
            self._arrays[name] += value

    def commit(self, done: int) -> None:
        """The totals now cover ``done`` prompts; with a folder, wait until that is on disk.

        Raises:
            EmotraceError: if ``done`` does not grow, another process commits there, or the disk is full (the last commit
                stays).
        """
        if self._parts is not None:
            added, self._added = self._added, []
            self._parts.keep(done, added)
        else:
            self._commit(done)

    def _commit(self, done: int) -> None:
        if done <= self.done:
            raise EmotraceError(f"commit({done}): {self.done} prompts are committed already.")
        self.done = done
        if self.out is None:
            return
        if (self._manifest.read_bytes() if self._manifest.is_file() else b"") != self._written:
            raise EmotraceError(f"another process is writing to {self._manifest}; wait for it, or choose another path.")
        blob = save_tensors(self._arrays)
        manifest = {
            "done": done,
            "numbers": self._numbers(done).name,
            "sha256": hashlib.sha256(blob).hexdigest(),
            "identity": self.settings,
        }
        replace_file(self._numbers(done), blob)
        write_json(self._manifest, {**manifest, CONTENT: content(manifest)})
        self._written = self._manifest.read_bytes()
        for path in self.out.glob(f"{self.name}.*.safetensors"):  # of the commit before, and of one that was killed
            if path.suffixes[-2][1:].isdigit() and path != self._numbers(done):
                path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        """Where ranks put what they add."""
        assert self.out is not None
        made = {name: value for name, value in self.settings.items() if name not in disk.MAY_DIFFER}
        return self.out / f"{self.name}.{disk.digest(made)[:8]}.parts"

    @property
    def _manifest(self) -> Path:
        assert self.out is not None
        return self.out / f"{self.name}.json"

    def _numbers(self, done: int) -> Path:
        assert self.out is not None
        return self.out / f"{self.name}.{done}.safetensors"

    def _open(self) -> None:
        self._written = read_bytes(self._manifest)
        try:
            manifest = dict(from_json(self._written))
            settings, done = manifest["identity"], int(manifest["done"])
            numbers = self._manifest.with_name(Path(manifest["numbers"]).name)
        except (ValueError, KeyError, TypeError) as error:
            raise EmotraceError(f"{self._manifest} is damaged ({error!r}); remove it to start again.") from error
        confirm(self._manifest, manifest)
        disk.settle(self.out or "", settings, self.settings, disk.MAY_DIFFER, what=f"{self.name}.json")
        _, arrays = read_pair(self._manifest, numbers)
        self._arrays = {k: np.array(v, dtype=np.float64) for k, v in arrays.items()}
        self.done = done
