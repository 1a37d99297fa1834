"""Opening: a store for writing: a new one, or one that the same plan began, by one writer or by several ranks."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emotrace import disk
from emotrace.labels import EmotraceError
from emotrace.ranks import ALONE, Leases, Rank
from emotrace.store import bucket_writer, building, layout, mending
from emotrace.store.plan import INNER_ROWS, Plan
from emotrace.store.writer import Writer

OPENING = 5.0
"""Seconds for which a rank waits for another one that creates the store."""


def create_or_resume(path: str | os.PathLike[str], plan: Plan, progress: bool = False, rank: Rank = ALONE) -> Writer:
    """Open a store for writing: a new one, or one that the same plan began.

    What is committed is compared with its checksums first (by a rank: its own row groups). Damaged row groups are pending again,
    damaged metadata is written again, and a warning says so.

    Args:
        path: of the store.
        plan: what it holds or shall hold.
        progress: show a bar on stderr while committed row groups are checked.
        rank: of this process, among those that write to the store at the same time.

    Raises:
        EmotraceError: if something else is at ``path``, if an attr other than ``command``, ``versions`` and ``batch_size``
            differs (each is named with both values), if another process (or one of the same rank) writes to it, or if the disk
            is full.
    """
    if disk.is_url(path):
        return _in_bucket(disk.There(disk.Bucket(disk.url_of(path))), plan, progress, rank)
    root, begun, shared = Path(path), time.monotonic(), rank.of > 1
    while True:
        occupied = root.is_symlink() or root.exists()
        try:
            if not occupied or (root.is_dir() and not any(root.iterdir())):
                return _opened(
                    root, plan, building.create(root, plan, shared), layout.fingerprint(plan.described), rank
                )
            stored = mending.settings(root)
            plan = as_begun(plan, stored)
            layout.settle(root, stored, {**plan.attrs, "plan_digest": plan.digest})
            (root / layout.COMMITS).mkdir(parents=True, exist_ok=True)
            lock = layout.lock(root, root, shared)
            break
        except EmotraceError as error:  # of ranks that begin together one creates the store
            creating = isinstance(error, disk.Busy) or not occupied
            if not shared or not creating or time.monotonic() - begun > OPENING:
                raise
            time.sleep(0.1)
    return _examined(_opened(root, plan, lock, layout.fingerprint(stored), rank), plan, stored, progress, rank)


def _in_bucket(root: disk.There, plan: Plan, progress: bool, rank: Rank) -> Writer:
    """As `create_or_resume`, of a store in a bucket, where a lease is all that keeps writers apart."""
    new = not (root / layout.TABLE_RECORD).is_file()
    if new and (root / "zarr.json").is_file():
        layout.read_attrs(root)  # says what is there instead
    if new:
        bucket_writer.create(root, plan)
    stored = mending.settings(root)
    plan = as_begun(plan, stored)
    layout.settle(root, stored, {**plan.attrs, "plan_digest": plan.digest})
    writer = bucket_writer.BucketWriter(root, plan, layout.fingerprint(stored), _leases(root, rank))
    return _examined(writer, plan, stored, progress, rank)


def _examined(writer: Writer, plan: Plan, stored: Mapping[str, Any], progress: bool, rank: Rank) -> Writer:
    """The writer, once what is damaged in its store is pending again."""
    root = writer.path
    try:
        damage = mending.examine(root, stored, progress, rank)
        if damage:
            mending.take_back(root, damage)
            if any(item.group is None for item in damage):
                mending.rebuild(root, plan, stored)
            warnings.warn(mending.told(root, damage), stacklevel=4)
            writer.look_again()
        return writer
    except BaseException:
        writer.close()
        raise


def _leases(root: disk.Located, rank: Rank) -> Leases:
    """Leases of a store, that of the rank among them."""
    leases = Leases(disk.objects(root), layout.COMMITS, rank)
    if not leases.take(str(rank).replace(" ", "-")):
        raise disk.Busy(f"another process is writing to {root} as {rank}; wait for it, or choose another path.")
    return leases


def as_begun(plan: Plan, stored: Mapping[str, Any]) -> Plan:
    """The plan, cut into row groups as the store that it began is; stores of earlier formats were cut otherwise."""
    about = stored["emotrace_store"]
    if "inner_rows" in about or about["row_group"] < INNER_ROWS // 2:
        return plan
    other = replace(plan, row_group=about["row_group"], sharded=False)
    return other if other.digest == stored.get("plan_digest") else plan


def _opened(root: Path, plan: Plan, lock: int, made: str, rank: Rank) -> Writer:
    """The writer of a store that is locked."""
    try:
        if rank.of == 1:
            return Writer(root, plan, lock, made)
        return Writer(root, plan, lock, made, _leases(root, rank))
    except BaseException:
        os.close(lock)
        raise
