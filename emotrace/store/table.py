"""Table: the token table of a store on disk, and what is read of it.

Since format 2 the labels of a prompt stand once, whatever the number of its rows (`emotrace.store.rows.stored`). Format 1 has
every column as ``[token]`` in the root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from emotrace.disk import Located, There
from emotrace.store import checks, layout
from emotrace.store.rows import CHUNK_ROWS, COLUMNS, FIRST, IDS, OF_ROW, TEXTS, Rows, place
from emotrace.store.select import rows_of

RECENT = 4
"""Selections of columns of tokens that are kept, since columns follow from each other."""


class TokenTable:
    """The token table of a store.

    Args:
        root: of the store.
        store: what its metadata says of the plan.
        read: path of an array → its values, or with rows those of these.
    """

    def __init__(self, root: Located, store: Mapping[str, Any], read: Callable[..., np.ndarray] | None = None) -> None:
        self.root = root
        self.n_rows: int = store["rows"]
        self.names: tuple[str, ...] = tuple(store["columns"])
        self.by_prompt = store["format"] > 1
        self._read = read or Checked(root)
        self._known: dict[str, np.ndarray] = {}
        self._recent: dict[tuple[str, bytes], np.ndarray] = {}

    def take(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Values of a column in these rows of the store; None for all."""
        if not self.by_prompt:
            values = self._whole(name)
            return values if rows is None else values[rows]
        if name == "position_from_end":
            return self.take("position", rows) - self.take("prompt_length", rows)
        if name == "token_text":
            return self._whole(TEXTS)[np.searchsorted(self._whole(IDS), self.take("token_id", rows))]
        if name in OF_ROW:
            return self._numbers(name, rows)
        values = self.of_prompt(name)
        return np.repeat(values, self._counts) if rows is None else values[self._prompt_of(rows)]

    def dtype(self, name: str) -> np.dtype:
        """Of the values of a column; objects for texts."""
        if self.by_prompt and name in OF_ROW:
            return np.dtype(object if name == "token_text" else np.int64)
        kind = opened(self.root, place(name) if self.by_prompt else name).dtype
        return kind if kind.kind in "iufb" else np.dtype(object)

    def of_prompt(self, name: str) -> np.ndarray:
        """Values of a column that is the same in all rows of a prompt, one per prompt."""
        return self._whole(place(name))

    def matching(self, wanted: Mapping[str, Any], rows: np.ndarray | None) -> np.ndarray:
        """Which of these rows of the store (None: all) have the wanted labels, counted among them.

        The labels of prompts are compared once per prompt, those of tokens in the rows of the prompts that are left.

        Args:
            wanted: as `select.rows_of` takes it.
            rows: sorted.

        Raises:
            EmotraceError: as `select.rows_of`; for a value that no row of the prompts that are left has, it does not look
                whether another prompt's has it.
        """
        n = self.n_rows if rows is None else len(rows)
        ours = {name: value for name, value in wanted.items() if name not in OF_ROW}
        found = np.arange(n) if not ours else self._of_prompts(ours, rows)
        theirs = {name: value for name, value in wanted.items() if name in OF_ROW}
        if not theirs:
            return found
        at = rows if not ours else found if rows is None else rows[found]
        return found[rows_of(lambda name: self.take(name, at), self.names, len(found), theirs)]

    def _of_prompts(self, wanted: Mapping[str, Any], rows: np.ndarray | None) -> np.ndarray:
        if rows is None:
            picked = rows_of(self.of_prompt, self.names, len(self._first), wanted)
            counts = self._counts[picked]
            offsets = np.repeat(self._first[picked] - (np.cumsum(counts) - counts), counts)
            return offsets + np.arange(len(offsets))
        there, back = np.unique(self._prompt_of(rows), return_inverse=True)
        mask = np.zeros(len(there), dtype=bool)
        mask[rows_of(lambda name: self.of_prompt(name)[there], self.names, len(there), wanted)] = True
        return np.flatnonzero(mask[back])

    def _numbers(self, name: str, rows: np.ndarray | None) -> np.ndarray:
        """A column of numbers of tokens, in these rows: only chunks in which they lie are read."""
        if rows is None or name in self._known or len(rows) > CHUNK_ROWS:
            whole = self._whole(name)
            return (whole if rows is None else whole[rows]).astype(np.int64)
        asked = name, rows.tobytes()
        if asked not in self._recent:
            while len(self._recent) >= RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[asked] = self._read(name, rows).astype(np.int64)
        return self._recent[asked].copy()

    def _whole(self, path: str) -> np.ndarray:
        if path not in self._known:
            values = self._read(path)
            self._known[path] = values if values.dtype.kind in "iufb" else values.astype(object)
        return self._known[path]

    def _prompt_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first, rows, side="right") - 1

    @property
    def _first(self) -> np.ndarray:
        return self._whole(FIRST)

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.diff(np.append(self._first, self.n_rows))


class Checked:
    """Reads arrays, or some of their rows, out of files that are what was committed.

    Args:
        root: of the store.
    """

    def __init__(self, root: Located) -> None:
        self.root = root
        self._files: dict[str, Any] | None = None
        self._arrays: dict[str, Any] = {}
        self._fetched: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[Checked], tuple[Located]]:
        return Checked, (self.root,)  # another process looks at the files itself

    def __call__(self, path: str, rows: np.ndarray | None = None) -> np.ndarray:
        """The array at a path of the store, or these rows of it."""
        if self._files is None:
            self._files = checks.table(self.root)
        files = self._files
        if rows is None:
            needed = [f for f in files if f.startswith(f"{path}/")]
        else:
            chunks = (f"{path}/c/{chunk}" for chunk in np.unique(rows // CHUNK_ROWS).tolist())
            needed = [f"{path}/zarr.json", *(c for c in chunks if c in files)]  # zarr writes no chunk of zeros
        for file in needed:
            if not isinstance(self.root, There):
                checks.require(self.root, file, files)
            elif file not in self._fetched:
                self._fetched[file] = _buffer(checks.confirmed(self.root, file, files))
        if path not in self._arrays:
            there = isinstance(self.root, There)
            self._arrays[path] = _of_bytes(self._fetched, path) if there else opened(self.root, path)
        array = self._arrays[path]
        return np.asarray(array[:] if rows is None else array.oindex[rows])


def opened(root: Located, path: str) -> Any:
    """An array of the token table.

    Raises:
        EmotraceError: where it cannot be read.
    """
    import zarr

    try:
        if isinstance(root, There):
            return _of_bytes({f"{path}/zarr.json": _buffer((root / path / "zarr.json").read_bytes())}, path)
        return zarr.open_array(root / path, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise layout.damaged(root, f"column {path!r} cannot be read ({error})") from error


def _of_bytes(files: dict[str, Any], path: str) -> Any:
    """An array of files in memory."""
    import zarr
    from zarr.storage import MemoryStore

    return zarr.open_array(MemoryStore(files), path=path, mode="r")


def _buffer(data: bytes) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().buffer.from_bytes(data)


def plain(root: Located) -> Callable[..., np.ndarray]:
    """Reads arrays as they stand there."""

    def read(path: str, rows: np.ndarray | None = None) -> np.ndarray:
        import zarr

        array: Any = zarr.open_array(root / path, mode="r")
        return np.asarray(array[:] if rows is None else array.oindex[rows])

    return read


def rows_in(root: Located, store: Mapping[str, Any]) -> Rows:
    """The token table of a store as it stands there, unchecked; raises whatever zarr does."""
    table = TokenTable(root, store, plain(root))
    columns = {name: table.take(name) for name in COLUMNS if name != "position_from_end"}
    return Rows(**columns, labels={name: table.take(name) for name in table.names if name not in COLUMNS})
