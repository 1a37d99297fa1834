"""Leases: who works on what, told to all that see the same files; a lease that is not renewed lapses.

A lease spares work, it guards none: what two processes write of one piece is the same to the bit, and is committed once.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from emotrace.disk import Objects, began, machine
from emotrace.ranks.rank import Rank

LASTS = 120.0
"""Seconds for which a lease holds unless it is renewed."""
RENEWED = 0.25
"""It is renewed after this share of them."""
ENDING = ".lease"
TAKEN_OVER = ".lapsed"


class Leases:
    """What this process works on, among all that share a place.

    Args:
        place: where the leases lie, with the work itself.
        folder: of it, in which they lie.
        rank: of this process.
    """

    def __init__(self, place: Objects, folder: str, rank: Rank) -> None:
        self.place, self.folder, self.rank = place, folder, rank
        self.owner = uuid.uuid4().hex
        self._held: set[str] = set()
        self._guard, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Whether the piece of that name is this process's to work on from now on; not where somebody, or itself, does."""
        if name in self._held:
            return False
        at = self._at(name)
        if not self.place.put_new(at, self._record()):
            found = self._read(at)
            if found is None:
                return False
            ours = found.get("owner") == self.owner  # the answer was lost
            if not ours and (alive(found) or not self._take_over(at, found)):
                return False
        with self._guard:
            self._held.add(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="emotrace-leases", daemon=True)
            self._thread.start()
        return True

    def live(self, name: str) -> bool:
        """Whether somebody works on it."""
        found = self._read(self._at(name))
        return found is not None and alive(found)

    def holds(self, name: str) -> bool:
        """Whether this process still has a lease that it took: nobody took it over."""
        return name in self._held and (self._read(self._at(name)) or {}).get("owner") == self.owner

    def give_back(self, name: str) -> None:
        """Let go of a piece."""
        with self._guard:
            held = name in self._held
            self._held.discard(name)
        if held and (self._read(self._at(name)) or {}).get("owner") == self.owner:
            self.place.delete(self._at(name))

    def forget(self, done: Callable[[str], bool]) -> None:
        """Take away what killed processes left: leases of pieces of which ``done(name)`` says that they are whole."""
        for entry in self.place.names(self.folder):
            if entry.endswith((ENDING, TAKEN_OVER)):
                found = self._read(f"{self.folder}/{entry}")
                if found is None or (not alive(found) and done(entry.removesuffix(TAKEN_OVER).removesuffix(ENDING))):
                    self.place.delete(f"{self.folder}/{entry}")

    def close(self) -> None:
        """Let go of everything."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for name in list(self._held):
            self.give_back(name)

    def _at(self, name: str) -> str:
        return f"{self.folder}/{name}{ENDING}"

    def _record(self) -> bytes:
        said = {
            "owner": self.owner, "rank": str(self.rank), "machine": machine(), "pid": os.getpid(), "began": began(os.getpid()),
            "until": time.time() + LASTS,
        }  # fmt: skip
        return json.dumps(said).encode()

    def _read(self, at: str) -> dict[str, Any] | None:
        """A lease; None where there is none, or half of one."""
        try:
            found = json.loads(self.place.read(at))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _take_over(self, at: str, lapsed: dict[str, Any]) -> bool:
        """Put a lease in the place of one that lapsed, unless somebody else does."""
        mark = f"{at}{TAKEN_OVER}"
        if not self.place.put_new(mark, self._record()):
            other = self._read(mark)
            if other is None or not alive(other):
                self.place.delete(mark)
            return False
        try:
            if self._read(at) != lapsed:
                return False
            self.place.put(at, self._record())
            return True
        finally:
            self.place.delete(mark)

    def _renew(self) -> None:
        while not self._stop.wait(LASTS * RENEWED):
            with self._guard:
                names = list(self._held)
            for name in names:
                if self.holds(name):
                    self.place.put(self._at(name), self._record())


def alive(lease: dict[str, Any]) -> bool:
    """Whether a lease holds: it has not lapsed, and its process is there if it would be on this machine."""
    if lease.get("machine") == machine() and began(int(lease.get("pid", 0))) != lease.get("began"):
        return False
    return time.time() < float(lease.get("until", 0))
