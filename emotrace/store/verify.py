"""Verify: every committed byte against its checksum; and what a store holds, for the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypedDict

import pandas as pd

from emotrace.disk import located
from emotrace.labels import unknown
from emotrace.signatures import typed
from emotrace.store import entries
from emotrace.store.activations import Activations
from emotrace.store.checks import Damage
from emotrace.store.mending import examine, in_journal, settings
from emotrace.store.variable import Variable


@typed
def verify(path: str | os.PathLike[str], progress: bool = False) -> list[Damage]:
    """Read every committed file and compare size and checksum with the commit records; read journals alike.

    Args:
        path: the store.
        progress: show a bar on stderr.

    Returns:
        The damaged files, and the damaged entries of journals; empty if all is well. Groups that are not committed yet are
        no damage, nor is an entry of a journal that was cut off.

    Raises:
        EmotraceError: if there is no store of emotrace at ``path``.
    """
    root = located(path)
    attrs = settings(root)
    found = examine(root, attrs, progress)
    for group, kept in entries.kept_in(root, attrs).items():
        found += in_journal(group, kept)
    return found


class Info(TypedDict):
    """What a store holds, and how far it is.

    Attributes:
        path: the store.
        complete: whether every row group is committed.
        rows: planned.
        rows_committed: of them.
        row_group: rows of a group.
        groups: planned.
        groups_committed: of them.
        groups_begun: row group that a killed or living run has begun → rows that it need not compute again.
        bytes: of the committed rows, uncompressed.
        columns: labels of a row.
        variables: name → its ``shape``, and what the plan says of it.
        attrs: what it was made with.
    """

    path: str
    complete: bool
    rows: int
    rows_committed: int
    row_group: int
    groups: int
    groups_committed: int
    groups_begun: dict[int, int]
    bytes: int
    columns: list[str]
    variables: dict[str, dict[str, Any]]
    attrs: dict[str, Any]


@typed
def info(path: str | os.PathLike[str]) -> Info:
    """What a store holds, as JSON values: sizes, progress, variables, labels and attrs.

    Args:
        path: the store.

    Raises:
        EmotraceError: if there is no store of emotrace at ``path``.
    """
    acts = Activations(path)
    store = acts.attrs["emotrace_store"]
    variables = [Variable.from_json(v) for v in store["variables"]]
    return {
        "path": str(acts.path),
        "complete": acts.complete,
        "rows": store["rows"],
        "rows_committed": len(acts),
        "row_group": store["row_group"],
        "groups": acts.n_groups,
        "groups_committed": acts.n_groups_committed,
        "groups_begun": begun(str(acts.path)),
        "bytes": len(acts) * sum(v.row_bytes for v in variables),
        "columns": list(acts.columns),
        "variables": {
            v.name: {"shape": dict(zip(v.full_dims, v.shape(len(acts)), strict=True)), **v.to_json()} for v in variables
        },
        "attrs": {k: v for k, v in acts.attrs.items() if k != "emotrace_store"},
    }


@typed
def begun(path: str | os.PathLike[str]) -> dict[int, int]:
    """Rows that are computed, of each row group that is begun and not committed.

    Raises:
        EmotraceError: if there is no store of emotrace at ``path``.
    """
    root = located(path)
    return {group: int(kept.done.sum()) for group, kept in entries.kept_in(root, settings(root)).items()}


def _sizes(v: Variable, rows: int) -> dict[str, int]:
    return dict(zip(v.full_dims, v.shape(rows), strict=True))


@typed
def ls(path: str | os.PathLike[str], by: str | Sequence[str] = ()) -> pd.DataFrame:
    """A table of what is inside: one row per variable, or, with ``by``, the number of rows per value of these labels.

    Args:
        path: the store.
        by: names of token labels, e.g. ``("emotion", "valence")``.

    Raises:
        EmotraceError: for an unknown label, or if there is no store.
    """
    acts = Activations(path)
    names = [by] if isinstance(by, str) else list(by)
    for name in names:
        if name not in acts.columns:
            raise unknown("label", name, acts.columns, f"ls({str(path)!r})")
    if names:
        table = pd.DataFrame({name: acts.column(name) for name in names})
        return table.value_counts(sort=False).rename("rows").reset_index()
    rows = []
    for spec in acts.attrs["emotrace_store"]["variables"]:
        v = Variable.from_json(spec)
        rows.append(
            {
                "variable": v.name,
                "dims": ", ".join(f"{d}={n}" for d, n in _sizes(v, len(acts)).items()),
                "layers": ", ".join(map(str, v.coords.get("layer", ()))),
                "sublayers": ", ".join(map(str, v.coords.get("sublayer", ()))),
                "dtype": v.source_dtype,
                "codec": v.codec,
                "bytes": len(acts) * v.row_bytes,
            }
        )
    return pd.DataFrame(rows)
