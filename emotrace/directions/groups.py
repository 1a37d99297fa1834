"""Groups: which rows belong together, which groups are complete, and which replies are accepted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from emotrace import arguments, disk, shown
from emotrace.labels import ANSWERS, EMOTIONS_EV, TOKEN_COLUMNS, VALENCES, EmotraceError, unknown
from emotrace.signatures import typed

Within = str | Sequence[str] | None
"""Labels that make a group; None for one group of all rows."""


@dataclass(frozen=True)
class Groups:
    """Rows sorted into groups × labels.

    Args:
        labels: the label values, in order.
        names: the groups used, as tuples of their ``within`` values.
        rows: indices of the rows used.
        group: of each row used, index into ``names``.
        code: of each row used, index into ``labels``.
        incomplete: ``{"group": […], "missing": […]}`` of every group that lacks a label.
        label: whose values these are.
        within: labels that make a group.
        complete: whether only groups that hold every value are used.
        accepted: of `accepted_attrs`.
    """

    labels: tuple[Any, ...]
    names: tuple[tuple[Any, ...], ...]
    rows: np.ndarray
    group: np.ndarray
    code: np.ndarray
    incomplete: tuple[dict[str, list[Any]], ...]
    label: str
    within: tuple[str, ...]
    complete: bool
    accepted: Mapping[str, Any] = field(default_factory=dict)
    __repr__ = shown.brief

    @property
    def counts(self) -> np.ndarray:
        """Rows of each cell ``[group, label]``."""
        out = np.zeros((len(self.names), len(self.labels)), dtype=np.int64)
        np.add.at(out, (self.group, self.code), 1)
        return out

    def attrs(self) -> dict[str, Any]:
        """What a derived array says about its groups."""
        return {
            "n_groups": len(self.names),
            "n_rows": len(self.rows),
            "n_incomplete": len(self.incomplete),
            "incomplete": json.dumps(self.incomplete, default=str),
            **self.accepted,
        }


@typed
def accepted(rows: Iterable[Mapping[str, Any]], verdict: str = "verdict") -> list[str]:
    """Keys of the rows whose reply the judge accepted (match 1); published rows carry it as ``judge``."""
    keys = []
    for row in rows:
        found = row.get(verdict) or row.get("judge") or {}
        if found.get("match") == 1:
            keys.append(str(row["key"]))
    return keys


@typed
def complete_groups(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
) -> tuple[list[tuple[Any, ...]], list[dict[str, list[Any]]]]:
    """Groups that hold every label value that occurs, and the others with what each lacks.

    Args:
        rows: mappings, or a table, with these labels.
        label: whose values a complete group has all of.
        within: labels of a group.

    Returns:
        (names of the complete groups, ``[{"group": […], "missing": […]}, …]``).
    """
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    names, incomplete = _sort(table, label, check_within(table, label, within))[3:]
    lacking = {tuple(i["group"]) for i in incomplete}
    return [n for n in names if n not in lacking], incomplete


def group(
    table: pd.DataFrame,
    label: str,
    within: Within,
    accepted: Iterable[str] | None = None,
    complete: bool = True,
) -> Groups:
    """Sort rows into groups; only complete ones (``complete``), or all that hold at least two labels.

    Without labels to group by (None or none) all rows are one group.

    Raises:
        EmotraceError: for an unknown label, fewer than two label values, or no group left.
    """
    within = check_within(table, label, within)
    labels = ordered(table.loc[~missing(table[label]), label])
    if len(labels) < 2:
        raise EmotraceError(
            f"label {label!r} has {len(labels)} value(s) here: {labels}; a direction needs two or more."
        )
    keep = counting(table, accepted)
    rows, of_row, codes, names, incomplete = _sort(table.loc[keep], label, within, labels)
    rows = np.flatnonzero(keep)[rows]
    lacking = {tuple(i["group"]): len(labels) - len(i["missing"]) for i in incomplete}
    use = np.array([n not in lacking or (not complete and lacking[n] >= 2) for n in names], dtype=bool)
    if not use.any():
        raise EmotraceError(
            f"no {'complete ' if complete else ''}group: {len(names)} groups within {within}, of which {len(lacking)} "
            f"lack one of {labels}" + ("." if accepted is None else f" among the {int(keep.sum())} accepted rows.")
        )
    new = np.cumsum(use) - 1
    mine = use[of_row]
    return Groups(
        labels,
        tuple(n for n, u in zip(names, use, strict=True) if u),
        rows[mine],
        new[of_row[mine]],
        codes[mine],
        tuple(incomplete),
        label,
        within,
        complete,
        accepted_attrs(table, keep),
    )


def is_accepted(table: pd.DataFrame, accepted: Iterable[str]) -> np.ndarray:
    """Which rows have a key among the accepted ones.

    Raises:
        EmotraceError: for a single string, rows without keys, or not one accepted row.
    """
    if isinstance(accepted, (str, bytes)):
        raise EmotraceError(f"accepted={accepted!r} is one string; give an iterable of keys.")
    if "key" not in table:
        raise EmotraceError("accepted=… needs rows with a 'key'.")
    keep = table["key"].astype(str).isin([str(k) for k in accepted]).to_numpy()
    if not keep.any():
        raise EmotraceError(
            f"accepted=…: none of the keys is among the {len(table)} rows (e.g. {table['key'].iloc[0]!r})."
        )
    return keep


def counting(table: pd.DataFrame, accepted: Iterable[str] | None) -> np.ndarray:
    """Which rows count: those that `is_accepted` says, or all of them for None."""
    return np.ones(len(table), dtype=bool) if accepted is None else is_accepted(table, accepted)


def accepted_attrs(table: pd.DataFrame, keep: np.ndarray) -> dict[str, Any]:
    """What a result says of the keys of the rows that count (``keep``): digest and number; nothing where all rows do."""
    if keep.all():
        return {}
    keys = sorted({str(key) for key in table["key"].to_numpy()[keep]})
    return {"accepted_digest": disk.digest(keys), "n_accepted": len(keys)}


def codes(table: pd.DataFrame, label: str, values: Sequence[Any], place: str = "") -> np.ndarray:
    """Of every row, the index of its label among ``values``.

    Raises:
        EmotraceError: for a label that no row has, a value that is not among them, or a value without a row.
    """
    if label not in table:
        raise unknown("label", label, table.columns, place)
    at = {v: i for i, v in enumerate(values)}
    found = table[label].tolist()
    for i, value in enumerate(found):
        if value not in at:
            raise unknown(f"{label} of prompt {table['key'].iloc[i]!r}", value, values, place)
    code = np.array([at[value] for value in found], dtype=np.int64)
    absent = [v for i, v in enumerate(values) if not (code == i).any()]
    if absent:
        raise EmotraceError(f"{place or 'here'}: no (accepted) prompt has {label} {absent[0]!r}.")
    return code


def check_within(table: pd.DataFrame, label: str, within: Within) -> tuple[str, ...]:
    """The grouping as a tuple, empty for one group of all rows, after checking that rows carry it and the label."""
    within = () if within is None else (within,) if isinstance(within, str) else within
    within = arguments.names("within", within, empty=True)
    own = [name for name in table if name not in TOKEN_COLUMNS]
    if label not in table:
        raise unknown("label", label, own, "directions, label=…, --label")
    for name in within:
        if name not in table:
            error = unknown("label", name, own, "directions, within=…, --within")
            raise EmotraceError(f"{error} For one group of all rows: within=None, --within ''.")
    if label in within:
        raise EmotraceError(f"within={within}: groups are made of other labels than {label!r}.")
    return within


def ordered(values: Iterable[Any]) -> tuple[Any, ...]:
    """Distinct values in the vocabulary's order where they are in one, else sorted."""
    found = {v.item() if isinstance(v, np.generic) else v for v in values}
    for vocabulary in (ANSWERS, VALENCES, EMOTIONS_EV):
        if found <= set(vocabulary):
            return tuple(v for v in vocabulary if v in found)
    return tuple(sorted(found, key=lambda v: (isinstance(v, str), v)))


def require_labels(table: pd.DataFrame, names: Iterable[str], place: str) -> None:
    """Refuse rows that lack a label, which would make a value of its own.

    Raises:
        EmotraceError: for a label that no row has, or naming the first that lacks one.
    """
    for name in names:
        if name not in table:
            raise unknown("label", name, list(table), place)
        absent = np.flatnonzero(missing(table[name]))
        if len(absent):
            which = f"prompt {table['key'].iloc[absent[0]]!r}" if "key" in table else f"row {absent[0]}"
            raise EmotraceError(f"{place}: {which} has no {name!r} ({len(absent)} rows lack it); leave them out.")


def missing(column: pd.Series | pd.DataFrame) -> np.ndarray:
    """Which values are absent: None, NaN or the empty string."""
    return (column.isna() | (column.astype(str) == "")).to_numpy(dtype=bool)


def _sort(
    table: pd.DataFrame, label: str, within: tuple[str, ...], labels: tuple[Any, ...] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[Any, ...]], list[dict[str, list[Any]]]]:
    """(rows, group of each, label code of each, names of the groups in order of appearance, incomplete ones)."""
    absent = np.logical_or.reduce([missing(table[name]) for name in (label, *within)])
    rows = np.flatnonzero(~absent)
    part = table.iloc[rows]
    names = zip(*(part[w].tolist() for w in within), strict=True) if within else ((),) * len(rows)
    labels = labels or ordered(part[label])
    at = {v: i for i, v in enumerate(labels)}
    codes = np.array([at[v] for v in part[label].tolist()], dtype=np.int64)
    index: dict[tuple[Any, ...], int] = {}
    of_row = np.array([index.setdefault(n, len(index)) for n in names], dtype=np.int64)
    present = np.zeros((len(index), len(labels)), dtype=bool)
    present[of_row, codes] = True
    incomplete = [
        {"group": list(n), "missing": [v for v, p in zip(labels, present[i], strict=True) if not p]}
        for n, i in index.items()
        if not present[i].all()
    ]
    return rows, of_row, codes, list(index), incomplete
