"""Plan: what a store will hold and in which pieces, known before anything is written.

A plan is a function of the whole prompt set and the settings, never of what remains to be done; so a run that is
killed and repeated cuts the work into the same row groups.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from emotrace.labels import EmotraceError
from emotrace.store.rows import PROMPTS, VOCABULARY, Rows
from emotrace.store.variable import Variable

FORMAT = 2
"""Of the stores that are made now: labels once per prompt. Format 1, with all labels in every row, is read and continued."""
SHARDED = 3
"""Of those whose row groups are shards, of inner chunks that are read by themselves."""
INNER_ROWS = 256
"""Most rows of an inner chunk; a row group of no more rows is a chunk, no shard."""
FEWEST_INNER = 64
"""Row groups that no number of rows from this one on divides are chunks, too."""
ROW_GROUP_BYTES = 64 << 20
"""Buffer of one row group, unless the caller says otherwise."""
ROW_GROUP_ROWS = 2048
"""At most so many rows between two commits."""


class PromptRows(NamedTuple):
    """The rows of one prompt that belong to one row group: ``start <= row < stop`` of the token table."""

    prompt: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The unit of commit: rows ``start`` to ``stop`` of the token table, one chunk along ``token``.

    Attributes:
        index: number of the group, which is also its chunk index along ``token``.
        start: first row.
        stop: one past the last row.
        prompts: the prompts it takes rows from; one that crosses a boundary is in both groups, each with its own rows.
    """

    index: int
    start: int
    stop: int
    prompts: tuple[PromptRows, ...]

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """The group's rows of the token table."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class Plan:
    """Token table, variables and row-group size of one store; made by `Plan.make`.

    Attributes:
        rows: the token table, one row per captured (prompt, position).
        variables: what is stored for every row.
        attrs: where the activations come from, JSON values only.
        row_group: rows per group; the last group may have fewer.
        sharded: whether row groups of many rows are shards; not in stores of earlier formats.
    """

    rows: Rows
    variables: tuple[Variable, ...]
    attrs: Mapping[str, Any]
    row_group: int
    sharded: bool = True

    @classmethod
    def make(
        cls,
        rows: Rows,
        variables: Sequence[Variable],
        attrs: Mapping[str, Any],
        row_group_bytes: int = ROW_GROUP_BYTES,
        max_rows: int = ROW_GROUP_ROWS,
    ) -> Plan:
        """The plan for these rows and variables.

        Rows per group = budget / bytes per row, at least the longest prompt (unless that alone takes 16 budgets), at
        most ``max_rows``, then evened out so that all groups are of nearly the same size.

        Args:
            rows: token table of the whole prompt set.
            variables: at least one, with different names.
            attrs: JSON values; of these, ``command``, ``versions`` and ``batch_size`` may differ when a run is continued.
            row_group_bytes: memory of one group's buffers.
            max_rows: upper bound of rows per group.

        Raises:
            EmotraceError: for no variables, equal names, names that clash with a label, or attrs that are not JSON.
        """
        names = [v.name for v in variables]
        if not names:
            raise EmotraceError("the plan has no variables: name at least one site to store.")
        taken = {*rows.columns, "row_groups", PROMPTS, VOCABULARY}
        for i, name in enumerate(names):
            if name in names[:i]:
                raise EmotraceError(f"two variables are called {name!r}.")
            if name in taken:
                raise EmotraceError(f"variable {name!r} has the name of a column of the token table; rename the label.")
        dims = {d for v in variables for d in v.dims}
        for label in rows.labels:
            if label in dims:
                raise EmotraceError(f"label {label!r} has the name of a dimension of a variable; rename the label.")
        if row_group_bytes < 1 or max_rows < 1:
            raise EmotraceError(f"row_group_bytes={row_group_bytes} and max_rows={max_rows} must be at least 1.")
        per_row = sum(v.row_bytes for v in variables)
        longest = int(np.diff(np.append(rows.prompt_starts, len(rows))).max())
        cap = max(1, 16 * row_group_bytes // per_row)
        size = min(max(1, row_group_bytes // per_row, min(longest, cap)), max_rows, len(rows))
        size = math.ceil(len(rows) / math.ceil(len(rows) / size))
        return cls(rows, tuple(variables), _jsonable(attrs), size)

    @property
    def n_rows(self) -> int:
        """Rows of the token table."""
        return len(self.rows)

    @property
    def n_groups(self) -> int:
        """Number of row groups."""
        return math.ceil(self.n_rows / self.row_group)

    @property
    def inner_rows(self) -> int | None:
        """Rows of an inner chunk; None where a row group is one chunk."""
        return inner_rows(self.row_group) if self.sharded and FORMAT > 1 else None

    @property
    def bytes(self) -> int:
        """Bytes of all activations, before any codec (token table and metadata not counted)."""
        return self.n_groups * self.row_group * sum(v.row_bytes for v in self.variables)

    @property
    def group_bytes(self) -> int:
        """Bytes of one group's buffers."""
        return self.row_group * sum(v.row_bytes for v in self.variables)

    @cached_property
    def groups(self) -> list[RowGroup]:
        """All row groups in order."""
        return list(self._groups())

    def _groups(self) -> Iterator[RowGroup]:
        starts, prompts = self.rows.prompt_starts, self.rows.prompt
        for index in range(self.n_groups):
            start, stop = index * self.row_group, min((index + 1) * self.row_group, self.n_rows)
            inside = starts[np.searchsorted(starts, start, side="right") : np.searchsorted(starts, stop)]
            cuts = np.concatenate([[start], inside, [stop]]).tolist()
            ids = prompts[cuts[:-1]].tolist()
            yield RowGroup(index, start, stop, tuple(map(PromptRows, ids, cuts[:-1], cuts[1:])))

    @cached_property
    def digest(self) -> str:
        """Hash of token table, variables and row-group size (not of ``attrs``, which are compared one by one)."""
        about = {name: value for name, value in self.to_json().items() if name != "inner_rows"}
        digest = hashlib.sha256(json.dumps({**about, "format": 1}, sort_keys=True).encode())  # of any layout
        for name, column in self.rows.columns.items():
            digest.update(name.encode() + b"\0")
            if column.dtype == object:
                digest.update(json.dumps(column.tolist()).encode())
            else:
                digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    @property
    def described(self) -> dict[str, Any]:
        """Attributes of a store of this plan."""
        return {**self.attrs, "plan_digest": self.digest, "emotrace_store": self.to_json()}

    def to_json(self) -> dict[str, Any]:
        """What the store's metadata says of the plan."""
        inner = self.inner_rows
        return {
            **({"format": FORMAT} if inner is None else {"format": SHARDED, "inner_rows": inner}),
            "rows": self.n_rows,
            "row_group": self.row_group,
            "columns": list(self.rows.columns),
            "variables": [v.to_json() for v in self.variables],
        }


def inner_rows(row_group: int) -> int | None:
    """Rows of an inner chunk of a row group of so many rows: the most, up to `INNER_ROWS`, that divide it."""
    if row_group <= INNER_ROWS:
        return None
    most = max(n for n in range(1, INNER_ROWS + 1) if row_group % n == 0)
    return most if most >= FEWEST_INNER else None


def _jsonable(attrs: Mapping[str, Any]) -> dict[str, Any]:
    for reserved in ("emotrace_store", "plan_digest"):
        if reserved in attrs:
            raise EmotraceError(f"attr {reserved!r} is written by the store itself.")
    out = {}
    for name, value in attrs.items():
        try:
            out[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise EmotraceError(f"attr {name!r} is {value!r}, which JSON cannot hold.") from error
    return out
