"""Timing: two pieces of work measured against each other, turn about, so that a busy machine slows both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """What one piece of work costs, as a multiple of another.

    Attributes:
        median: median time of the one / median time of the other.
        low: smallest ratio of a pair of neighbouring repetitions.
        high: largest.
        seconds: median time of the one.
        reference: median time of the other.
    """

    median: float
    low: float
    high: float
    seconds: float
    reference: float


def ratio(
    work: Callable[[], object],
    reference: Callable[[], object],
    repetitions: int,
    clear: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Time ``work`` against ``reference``: one unmeasured turn of each, then reference, work, reference, work, …

    Args:
        work: what is measured.
        reference: what it is measured against.
        repetitions: measured turns.
        clear: removes what ``work`` left behind; called after each of its turns, not timed.
        clock: gives seconds; ``time.process_time`` those of the CPU.
    """

    def turn() -> tuple[float, float]:
        base, mine = timed(reference, clock), timed(work, clock)
        clear()
        return base, mine

    turn()
    pairs = [turn() for _ in range(repetitions)]
    base, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    each = [b / a for a, b in pairs]
    return Ratio(mine / base, min(each), max(each), mine, base)


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call; garbage is collected before it, and what it returns is dropped after it."""
    gc.collect()
    start = clock()
    result = work()
    seconds = clock() - start
    del result
    return seconds
