"""Spread: the rows of one file, made in pieces by several ranks, and put into it in the order in which one process would.

A piece is written whole to ``FILE.DIGEST.parts/`` by the rank that made it; when all are there, one rank appends them to the
file, and the folder goes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotrace import disk
from emotrace.ranks import Leases, Rank, Shares, name_of
from emotrace.ranks.shares import POLL
from emotrace.runlog import Log
from emotrace.texts import from_json, to_json

MADE, LEASES, WHOLE = "made.json", "leases", "whole"


def folder(out: str | Path, made: Mapping[str, Any]) -> Path:
    """Where the pieces of a file lie until all are there.

    Args:
        out: the file.
        made: everything that the rows depend on.
    """
    return Path(f"{out}.{disk.digest(made)[:8]}.parts")


def shared(out: str | Path, made: Mapping[str, Any], rank: Rank) -> bool:
    """Whether pieces are to be made: by several ranks, or because ranks left some."""
    return rank.of > 1 or folder(out, made).is_dir()


def joined(
    log: Log, made: Mapping[str, Any], rank: Rank, pieces: Sequence[Sequence[tuple[Any, ...]]],
    make: Callable[[int], Sequence[Mapping[str, Any]]],
) -> None:  # fmt: skip
    """Have all rows in a file, in the order of their pieces; returns when they are there, whoever made them.

    Args:
        log: the file.
        made: everything that the rows depend on.
        rank: of this process.
        pieces: names of the rows of each; the same for all ranks.
        make: gives those rows of a piece that the file does not hold yet.

    Raises:
        disk.Busy: if another process is this rank.
    """
    path = folder(log.path, made)
    place = disk.Folder(path)
    there = {i for i, names in enumerate(pieces) if log.done.issuperset(names)}
    if not (path / MADE).is_file():
        place.put_new(MADE, (to_json(made, sort_keys=True, indent=1) + "\n").encode())
    leases = Leases(place, LEASES, rank)
    if not leases.take(str(rank).replace(" ", "-")):
        raise disk.Busy(f"another process is writing to {log.path} as {rank}; wait for it, or choose another path.")

    def ended() -> bool:
        return not (path / MADE).exists()

    shares = Shares(leases, len(pieces), lambda i: i in there or (path / _part(i)).exists() or ended())
    try:
        while True:
            for piece in shares.free():
                rows = make(piece)
                place.put_new(_part(piece), "".join(to_json(row) + "\n" for row in rows).encode())
                shares.finished(piece)
            if not shares.wait():
                break
        while not ended() and not leases.take(WHOLE):
            time.sleep(POLL)
        if not ended():
            _gather(log, path, len(pieces))
    finally:
        leases.forget(lambda _: True)
        leases.close()
        for empty in (path / LEASES, path):
            with contextlib.suppress(OSError):  # another rank is not done with it yet
                empty.rmdir()


def _gather(log: Log, path: Path, pieces: int) -> None:
    """Append all pieces to the file; then they go."""
    with Log(log.path, log.named_by) as whole:
        for piece in range(pieces):
            if (path / _part(piece)).exists():
                rows = [from_json(line) for line in (path / _part(piece)).read_bytes().splitlines()]
                whole.append([row for row in rows if row not in whole])
    (path / MADE).unlink()
    for left in path.glob("*.jsonl"):
        left.unlink()
    disk.clear_leftovers(path)


def _part(piece: int) -> str:
    return f"{name_of(piece)}.jsonl"
