"""Rows: the token table, one row per captured (prompt, position)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from emotrace.labels import LAYER_SITES, NAME_BYTES, SITE_DIMS, SUBLAYERS, TOKEN_COLUMNS, EmotraceError

COLUMNS = TOKEN_COLUMNS
OF_ROW = ("position", "position_from_end", "token_id", "token_text")
"""Columns that differ between the rows of a prompt."""
CHUNK_ROWS = 1 << 16
"""Rows of a chunk of the token table on disk."""
PROMPTS, VOCABULARY = "prompts", "vocabulary"
FIRST = f"{PROMPTS}/first_row"
IDS, TEXTS = f"{VOCABULARY}/token_id", f"{VOCABULARY}/token_text"


@dataclass(frozen=True, eq=False)
class Rows:
    """The token table as columns, in prompt order and, inside a prompt, in order of position.

    Attributes:
        prompt: index of the prompt, non-decreasing.
        key: key of the prompt.
        position: index in the un-padded sequence.
        prompt_length: length of the prompt in tokens, without the reply.
        token_id: id at that position.
        token_text: its text.
        labels: further columns, one per label of the prompts: ints, floats, bools or strings.
    """

    prompt: np.ndarray
    key: np.ndarray
    position: np.ndarray
    prompt_length: np.ndarray
    token_id: np.ndarray
    token_text: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompt", "position", "prompt_length", "token_id"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        for name in ("key", "token_text"):
            object.__setattr__(self, name, column(name, getattr(self, name), strings=True))
        check_names(self.labels)
        object.__setattr__(self, "labels", {name: column(name, values) for name, values in self.labels.items()})
        if not len(self.prompt):
            raise EmotraceError("the token table is empty: no position of any prompt is selected.")
        for name, values in self.columns.items():
            if values.shape != self.prompt.shape:
                raise EmotraceError(f"column {name!r} has shape {values.shape}, the token table {self.prompt.shape}.")
        step, same = np.diff(self.prompt), np.diff(self.prompt) == 0
        if (step < 0).any() or (np.diff(self.position)[same] <= 0).any():
            raise EmotraceError("the token table must be in prompt order, each prompt's positions increasing.")
        for name in ("key", "prompt_length", *self.labels):
            values = self.columns[name]
            change = (values[1:] != values[:-1]) & ((values[1:] == values[1:]) | (values[:-1] == values[:-1]))
            if (change & same).any():  # NaN stays NaN
                raise EmotraceError(f"{name} must be the same in all rows of a prompt.")

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        token_ids: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        positions: Sequence[Iterable[int]],
        text_of: Callable[[int], str],
        labels: Sequence[Mapping[str, Any]],
    ) -> Rows:
        """The token table from one entry per prompt.

        Args:
            keys: key of each prompt.
            token_ids: ids of each un-padded sequence, prompt and reply.
            prompt_lengths: tokens of each prompt without its reply.
            positions: positions captured of each (may be empty).
            text_of: id → text; called once per different id.
            labels: labels of each; a label that a prompt lacks is ``""`` (strings) or NaN (numbers).
        """
        picked = [np.fromiter(p, dtype=np.int64) for p in positions]
        counts = np.array([len(p) for p in picked])
        prompt = np.repeat(np.arange(len(keys)), counts)
        ids = [np.asarray(ids, dtype=np.int64)[p] for ids, p in zip(token_ids, picked, strict=True)]
        token_id = np.concatenate(ids) if ids else np.empty(0, np.int64)
        unique, inverse = np.unique(token_id, return_inverse=True)
        texts = np.array([text_of(int(i)) for i in unique], dtype=object)
        names = list(dict.fromkeys(name for entry in labels for name in entry))
        return cls(
            prompt=prompt,
            key=np.array(list(keys), dtype=object)[prompt],
            position=np.concatenate(picked) if picked else np.empty(0, np.int64),
            prompt_length=np.asarray(prompt_lengths, dtype=np.int64)[prompt],
            token_id=token_id,
            token_text=texts[inverse],
            labels={name: column(name, [entry.get(name) for entry in labels])[prompt] for name in names},
        )

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def position_from_end(self) -> np.ndarray:
        """Position − prompt length: −1 is the last prompt token, ≥ 0 the reply."""
        return self.position - self.prompt_length

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """All columns, labels last."""
        return {**{name: getattr(self, name) for name in COLUMNS}, **self.labels}

    @cached_property
    def prompt_starts(self) -> np.ndarray:
        """First row of each prompt that has rows."""
        return np.flatnonzero(np.append(True, np.diff(self.prompt) != 0))


def check_names(labels: Iterable[str]) -> None:
    """Refuse labels that have a name of the store's own, or one that zarr cannot hold."""
    for name in labels:
        odd = not name or name.startswith((".", "__")) or "/" in name or "\0" in name or len(name.encode()) > NAME_BYTES
        if odd or name in (*COLUMNS, "variable", "token"):
            raise EmotraceError(f"a label cannot be called {name!r}: the store uses that name, or zarr cannot hold it.")


def check_labels(labels: Sequence[Mapping[str, Any]], sites: Iterable[str]) -> None:
    """Refuse labels of prompts that a store of these sites cannot hold, as its plan does, before there is a model.

    Args:
        labels: of each prompt.
        sites: their names.

    Raises:
        EmotraceError: for a label called like a column, a variable or a dimension, or with texts among numbers.
    """
    values = {
        name: [entry.get(name) for entry in labels] for name in dict.fromkeys(n for entry in labels for n in entry)
    }
    check_names(values)
    for site in sites:
        cells = ("layer", "sublayer") if site in SUBLAYERS else ("layer",) if site in LAYER_SITES else ()
        for name in values:
            if name in (*cells, *SITE_DIMS[site]):
                raise EmotraceError(f"label {name!r} has the name of a dimension of a variable; rename the label.")
            if name == ("residual" if site in SUBLAYERS else site):
                raise EmotraceError(f"label {name!r} has the name of a variable; rename the label.")
    for name, found in values.items():
        column(f"label {name!r}", found)


class Stored(NamedTuple):
    """An array of the token table on disk.

    Attributes:
        path: in the store.
        values: what it holds.
        dim: along which.
    """

    path: str
    values: np.ndarray
    dim: str


def place(name: str) -> str:
    """Where the values of a prompt's column are in a store."""
    return f"{PROMPTS}/{name}" if name in COLUMNS else f"{PROMPTS}/labels/{name}"


def stored(rows: Rows) -> Iterator[Stored]:
    """What a store holds of a token table, the labels of each prompt once.

    ::

        prompt/ position/ token_id/     [token], int32
        prompts/                        one row per prompt that has rows, in their order
          prompt/ key/ prompt_length/   [prompt]
          first_row/                    its first row; its rows are those up to the next prompt's first
          labels/LABEL/
        vocabulary/                     each token that occurs
          token_id/ token_text/         [word]

    Raises:
        EmotraceError: for a number that 32 bits do not hold.
    """
    starts = rows.prompt_starts
    for name in ("prompt", "position", "token_id"):
        values = rows.columns[name]
        low, high, limit = int(values.min()), int(values.max()), np.iinfo(np.int32)
        if low < limit.min or high > limit.max:
            raise EmotraceError(f"{name} goes from {low} to {high}, which 32 bits do not hold.")
        yield Stored(name, values.astype(np.int32), "token")
    for name in ("prompt", "key", "prompt_length", *rows.labels):
        yield Stored(place(name), rows.columns[name][starts], "prompt")
    yield Stored(FIRST, starts.astype(np.int64), "prompt")
    ids, first = np.unique(rows.token_id, return_index=True)
    yield Stored(IDS, ids, "word")
    yield Stored(TEXTS, rows.token_text[first], "word")


def column(name: str, values: Any, strings: bool = False) -> np.ndarray:
    """One column as int64, float64, bool, or str objects; missing values are ``""`` or NaN.

    Raises:
        EmotraceError: if it mixes strings with numbers, or holds anything else, or a whole number that is lost in 64 bits (among
            fractions or gaps: 53).
    """
    given = np.asarray(values, dtype=None if isinstance(values, np.ndarray) else object)
    if given.dtype.kind in "iufb" and not strings:
        _require_held(name, given[given > np.iinfo(np.int64).max].tolist() if given.dtype.kind == "u" else [])
        return given.astype({"b": np.bool_, "f": np.float64}.get(given.dtype.kind, np.int64))
    items = [v.item() if isinstance(v, np.generic) else v for v in given.tolist()]
    kinds = {type(v) for v in items if v is not None}
    if kinds <= {str}:
        out = np.empty(len(items), dtype=object)
        out[:] = ["" if v is None else v for v in items]
        for value in set(items) - {None}:
            if any("\ud800" <= c <= "\udfff" for c in value):
                raise EmotraceError(f"{name} holds {value!r}, which is not valid Unicode.")
        return out
    if strings or not kinds <= {bool, int, float}:
        odd = next(v for v in items if type(v) is not str)
        raise EmotraceError(f"{name} must be all strings or all numbers; it holds {odd!r} among others.")
    gaps = None in items or float in kinds
    _require_held(name, [v for v in items if type(v) is int and abs(v) > (2**53 if gaps else np.iinfo(np.int64).max)])
    if gaps:
        return np.array([np.nan if v is None else float(v) for v in items], dtype=np.float64)
    return np.array(items, dtype=np.bool_ if kinds == {bool} else np.int64)


def _require_held(name: str, lost: list[int]) -> None:
    if lost:
        raise EmotraceError(
            f"{name} holds {lost[0]}, which its column of numbers does not hold; make its values strings."
        )
