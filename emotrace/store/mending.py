"""Repair: what is damaged in a store becomes pending again, so that the same capture computes only that."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emotrace import disk
from emotrace.disk import Located, There, located
from emotrace.labels import EmotraceError
from emotrace.ranks import ALONE, Rank
from emotrace.signatures import typed
from emotrace.store import building, checks, entries, layout
from emotrace.store.checks import Damage
from emotrace.store.plan import Plan
from emotrace.store.table import rows_in
from emotrace.store.variable import Variable
from emotrace.texts import from_json


@typed
def repair(path: str | os.PathLike[str], progress: bool = False) -> list[Damage]:
    """Take the commit back from every damaged row group; intact ones stay as they are.

    Damaged entries of journals (batches of groups that are not committed yet) go; intact ones stay.
    Damaged metadata is written again where the token table is still the one that its digest names; otherwise the next run of
    the capture that made the store writes both.

    Args:
        path: the store.
        progress: show a bar on stderr.

    Returns:
        What was damaged.

    Raises:
        EmotraceError: if there is no store, another process writes to it, or what it holds is recorded nowhere any more.
    """
    root = located(path)
    attrs = settings(root)
    lock = None
    if isinstance(root, Path):
        (root / layout.COMMITS).mkdir(parents=True, exist_ok=True)
        lock = layout.lock(root, root)
    try:
        found = examine(root, attrs, progress)
        with disk.writing(str(root)):
            take_back(root, found)
            if any(item.group is None for item in found):
                plan = _plan(root, attrs)
                if plan is not None:
                    rebuild(root, plan, attrs)
            for group, kept in entries.kept_in(root, attrs).items():
                if kept.problems:
                    entries.mend(Path(str(root)) / layout.journal(group), kept)
                    found += in_journal(group, kept)
    finally:
        if lock is not None:
            os.close(lock)
    return found


def settings(root: Located) -> dict[str, Any]:
    """Attributes of a store that may be damaged: from its metadata, or from the copy in the record of the token table.

    Raises:
        EmotraceError: if there is no store, or both are damaged.
    """
    try:
        return checks.attrs(root)
    except EmotraceError as error:
        if not (root / layout.COMMITS).is_dir():
            raise
        broken = error
    try:
        kept = from_json((root / layout.TABLE_RECORD).read_bytes())
    except (OSError, ValueError):
        return layout.read_attrs(root)  # the record is what is damaged
    try:
        attrs = kept["attributes"]
        layout.check_description(attrs["emotrace_store"])
        return attrs
    except (EmotraceError, KeyError, TypeError, ValueError, AttributeError):
        raise EmotraceError(
            f"{root} cannot be repaired: its metadata is damaged and has no second copy (stores of older versions have none), so "
            f"what it holds is not known any more. Remove it and capture again. ({str(broken).split('. ')[0]}.)"
        ) from broken


def examine(root: Located, attrs: Mapping[str, Any], progress: bool = False, rank: Rank = ALONE) -> list[Damage]:
    """Every committed file that differs from its record; for a rank those of its row groups, and of the token table."""
    from emotrace.shown import progress as progress_bar

    store = attrs["emotrace_store"]
    variables = {v["name"]: Variable.from_json(v) for v in store["variables"]}
    n_groups = -(-store["rows"] // store["row_group"])
    found = list(checks.in_table(root))
    groups = layout.committed_groups(root) if (root / layout.COMMITS).is_dir() else []
    groups = [group for group in groups if group % rank.of == rank.number]
    for group in progress_bar(groups, desc="verify", unit="group", enabled=progress, leave=False):
        if group >= n_groups:
            found.append(Damage(layout.commit_record(group), f"unknown (there are {n_groups} row groups)", group))
        else:
            found += checks.in_group(root, group, variables)
    return found


def in_journal(group: int, kept: entries.Journaled) -> list[Damage]:
    """Damage of the journal of a row group."""
    return [Damage(layout.journal(group), problem, group) for problem in kept.problems]


def told(root: Located, damage: Sequence[Damage]) -> str:
    """What a run that continues a damaged store says of it."""
    groups = sorted({item.group for item in damage if item.group is not None})
    more = f", and {len(damage) - 1} files more" if len(damage) > 1 else ""
    parts = [f"row groups {', '.join(map(str, groups))} are captured again"] if groups else []
    parts += ["metadata and token table are written again"] if any(item.group is None for item in damage) else []
    return f"{root} was damaged ({damage[0]}{more}): {' and '.join(parts)}."


def take_back(root: Located, damage: Sequence[Damage]) -> None:
    """Make damaged row groups pending: their commit records go first, then the chunks that are damaged."""
    groups = {item.group for item in damage if item.group is not None}
    for group in groups:
        (root / layout.commit_record(group)).unlink(missing_ok=True)
    if groups and isinstance(root, Path):
        disk.sync_folder(root / layout.COMMITS)
    for item in damage:
        if item.group is not None:
            (root / item.path).unlink(missing_ok=True)


def rebuild(root: Located, plan: Plan, attrs: Mapping[str, Any]) -> None:
    """Write metadata and token table of a store again, the record last; row groups are left alone."""
    if isinstance(root, There):
        with tempfile.TemporaryDirectory(prefix="emotrace-") as folder:
            building.build(Path(folder), plan, attrs)
            building.upload(Path(folder), root)
        return
    disk.clear_leftovers(root.parent, root.name)
    made = disk.partial(root)
    (made / layout.COMMITS).mkdir(parents=True)
    try:
        with disk.writing(root):
            building.build(made, plan, attrs)
            record = made / layout.TABLE_RECORD
            files = [p for p in sorted(made.rglob("*")) if p.is_file() and p != record]
            for file in (*files, record):
                target = root / file.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            for folder in {file.parent for file in files}:
                disk.sync_folder(root / folder.relative_to(made))
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _plan(root: Located, attrs: Mapping[str, Any]) -> Plan | None:
    """The plan that a store was made by, out of its own token table; None where that is not the one its digest names."""
    store = attrs["emotrace_store"]
    try:
        rows, variables = rows_in(root, store), tuple(map(Variable.from_json, store["variables"]))
        plan = Plan(rows, variables, {}, store["row_group"], "inner_rows" in store)
    except Exception:  # zarr's own errors of whatever class, for whatever the files hold now
        return None
    return plan if plan.digest == attrs.get("plan_digest") else None
