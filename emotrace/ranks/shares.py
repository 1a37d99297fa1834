"""Shares: the pieces of one piece of work, each taken by one rank; those of a rank that died are taken by the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from emotrace.ranks.leases import Leases

POLL, SELDOM = 0.25, 5.0
"""Seconds between two looks at what the others do, at first and after a while."""


class Shares:
    """Which pieces this rank takes.

    Args:
        leases: of this process.
        pieces: how many there are, the same for all ranks.
        done: whether a piece is whole, whoever made it.
    """

    def __init__(self, leases: Leases, pieces: int, done: Callable[[int], bool]) -> None:
        self.leases, self.pieces, self._done = leases, pieces, done
        self._whole: set[int] = set()

    def free(self) -> Iterator[int]:
        """Pieces that are this process's now: first those of its rank, every ``of``-th, then what nobody works on."""
        number, of = self.leases.rank
        for step in range(of):
            for piece in range((number + step) % of, self.pieces, of):
                if self.done(piece) or not self.leases.take(name_of(piece)):
                    continue
                if self.done(piece):  # meanwhile
                    self.leases.give_back(name_of(piece))
                    continue
                yield piece

    def wait(self) -> bool:
        """Wait for the other ranks: whether there is a piece that nobody works on any more; not where all are whole."""
        pause = POLL
        while left := [piece for piece in range(self.pieces) if not self.done(piece)]:
            if not all(self.leases.live(name_of(piece)) for piece in left):
                return True
            time.sleep(pause)
            pause = min(SELDOM, 1.2 * pause)
        return False

    def done(self, piece: int) -> bool:
        """Whether a piece is whole; asked no more once it is."""
        if piece not in self._whole and self._done(piece):
            self._whole.add(piece)
        return piece in self._whole

    def finished(self, piece: int) -> None:
        """A piece that this process took is whole now."""
        self._whole.add(piece)
        self.leases.give_back(name_of(piece))

    def forget(self) -> None:
        """Take away the leases that killed processes left of whole pieces."""
        self.leases.forget(lambda at: not at.isdigit() or self.done(int(at)))


def name_of(piece: int) -> str:
    """What the lease of a piece is called."""
    return f"{piece:06d}"
