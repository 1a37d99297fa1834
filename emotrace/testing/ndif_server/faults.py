"""Faults: what is still to go wrong, as it was ordered."""

from __future__ import annotations

import threading
from typing import Any

FAULTS: dict[str, tuple[str, ...]] = {
    "refuse": ("request",),  # 403, whatever the key
    "http": ("subscribe", "request", "response", "results", "status", "env"),  # `code` (503) instead of an answer
    "drop": ("subscribe", "request", "reply", "queued", "running", "completed", "response", "results"),
    "delay": (
        "subscribe", "request", "reply", "queued", "running", "completed", "response", "results", "status", "env",
    ),  # `seconds`
    "error": ("queued", "running", "completed"),  # the job fails there, with `message`
    "lose": ("job", "result"),  # accepted and never run; run, and its result never seen
    "twice": ("queued", "running", "completed", "run"),  # the frame is sent twice; the job itself runs twice
    "restart": ("queued", "running", "completed"),  # down for `seconds`; `stale`: polls see the last status for ever
}  # fmt: skip
"""Kind of fault → where it can happen. ``subscribe``: before the session id; ``request``: the job is taken in and its
websocket closed; ``reply``: taken in, but the POST gets no answer; ``queued``, ``running``: after that status was told;
``completed``: after the run, before it is told; ``response``, ``results``: a poll, a download (breaks off half-way);
``status``, ``env``: what is asked before anything is sent."""


class Misfortune(Exception):
    """A failure that was ordered."""


class Faults:
    """What is still to go wrong."""

    def __init__(self) -> None:
        self.left: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.woken = threading.Event()

    def add(self, fault: dict[str, Any]) -> None:
        """Order one; a ValueError says what can be ordered."""
        kinds = [kind for kind in fault if kind in FAULTS]
        if len(kinds) != 1 or fault[kinds[0]] not in FAULTS[kinds[0]]:
            raise ValueError(f"{fault}: one of {FAULTS}")
        with self.lock:
            self.left.append({"kind": kinds[0], "at": fault[kinds[0]], "times": 1, "after": 0, **fault})

    def take(self, kind: str, at: str) -> dict[str, Any] | None:
        """The fault that happens here and now, if any; it is counted."""
        with self.lock:
            for fault in self.left:
                if (fault["kind"], fault["at"]) == (kind, at):
                    if fault["after"] > 0:
                        fault["after"] -= 1
                        continue
                    fault["times"] -= 1
                    if fault["times"] == 0:
                        self.left.remove(fault)
                    return fault
        return None

    def wait(self, at: str) -> None:
        """Sleep, if a delay was ordered, until it is over or everyone is woken."""
        woken = self.woken
        if fault := self.take("delay", at):
            woken.wait(fault.get("seconds", 0.1))

    def wake(self) -> None:
        """End the delays that are going on."""
        woken, self.woken = self.woken, threading.Event()
        woken.set()
