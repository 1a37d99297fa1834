"""Parted: what each rank added to sums, piece by piece, until one rank adds all of it in the order of one process.

Numbers are added up in float64, whose sum depends on the order; so a part holds what was added, not sums of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from emotrace import disk
from emotrace.ranks import Leases, Rank, Shares
from emotrace.ranks.shares import POLL

LEASES, FOLD = "leases", "fold"
Added = Sequence[tuple[str, np.ndarray]]
"""What was added for a piece, in order."""


class Parts:
    """Pieces of sums on disk that are not in the sums yet.

    Args:
        folder: where they lie; it goes when all are in the sums.
        rank: of this process.
        ends: of each piece, the number of prompts up to its last, in order.
        summed: how many prompts the sums cover.

    Raises:
        disk.Busy: if another process is this rank.
    """

    def __init__(self, folder: Path, rank: Rank, ends: Sequence[int], summed: Callable[[], int]) -> None:
        self.folder, self.ends, self._summed = folder, list(ends), summed
        self._place = disk.Folder(folder)
        self._leases = Leases(self._place, LEASES, rank)
        if not self._leases.take(str(rank).replace(" ", "-")):
            raise disk.Busy(f"another process is writing to {folder} as {rank}; wait for it, or choose another path.")
        self._shares = Shares(self._leases, len(self.ends), self._done)
        self._claimed: set[int] = set()

    def left(self) -> Iterator[int]:
        """Pieces that this process computes now."""
        for piece in self._shares.free():
            self._claimed.add(piece)
            yield piece

    def keep(self, end: int, added: Added) -> None:
        """The piece that ends there is computed."""
        piece = self.ends.index(end)
        tensors = {f"{i:06d}.{name}": value for i, (name, value) in enumerate(added)}
        self._place.put_new(self._name(piece), save_tensors(tensors))
        self._claimed.discard(piece)
        self._shares.finished(piece)

    def more(self) -> bool:
        """Wait for the other ranks: whether one of their pieces is this process's after all."""
        return self._shares.wait()

    def fold(self, add: Callable[[int, Added], None], refresh: Callable[[], None]) -> None:
        """Add all pieces in order, unless another rank does; returns when the sums cover all.

        Args:
            add: takes the end of a piece and what was added for it.
            refresh: reads the sums as they are on disk.
        """
        while self._summed() < self.ends[-1]:
            if not self._leases.take(FOLD):
                time.sleep(POLL)
                continue
            refresh()
            done = self._summed()
            for piece, end in enumerate(self.ends):
                if end > done:
                    add(end, self._read(piece))
            self._leases.give_back(FOLD)
        refresh()

    def close(self) -> None:
        """Let go of everything, and take away what is in the sums."""
        if self._summed() >= self.ends[-1]:
            for piece in range(len(self.ends)):
                self._place.delete(self._name(piece))
            with contextlib.suppress(FileNotFoundError):
                disk.clear_leftovers(self.folder)
            self._leases.forget(lambda _: True)
        self._leases.close()
        for empty in (self.folder / LEASES, self.folder):
            with contextlib.suppress(OSError):  # another rank is not done with it yet
                empty.rmdir()

    def _read(self, piece: int) -> Added:
        tensors = load_tensors(self._place.read(self._name(piece)))
        return [(name.partition(".")[2], tensors[name]) for name in sorted(tensors)]

    def _done(self, piece: int) -> bool:
        return (self.folder / self._name(piece)).exists() or self._summed() >= self.ends[piece]

    def _name(self, piece: int) -> str:
        return f"{self.ends[piece]:09d}.safetensors"
