"""Rank: which of several processes this one is: as it is told, or as SLURM and torchrun say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from emotrace import arguments
from emotrace.labels import EmotraceError

ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
TASKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
"""Variables of a process and of how many there are: torchrun's, which may run inside a task of SLURM's, then SLURM's."""
_TAKEN: ContextVar[Rank | None] = ContextVar("rank", default=None)
_SAID: set[str] = set()


class Rank(NamedTuple):
    """One of several processes that share one piece of work.

    Attributes:
        number: which one, from 0.
        of: how many there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"rank {self.number} of {self.of}"


ALONE = Rank(0, 1)
"""Of a process that does everything itself."""


@contextmanager
def taking(index: int, of: int) -> Iterator[Rank]:
    """Everything inside that keeps its work in ``out`` is done as this rank.

    Args:
        index: which of the processes this one is, from 0.
        of: how many there are.
    """
    token = _TAKEN.set(rank := checked((index, of), "taking"))
    try:
        yield rank
    finally:
        _TAKEN.reset(token)


def chosen(given: tuple[int, int] | None, out: object, place: str) -> Rank:
    """The rank of this process: the one given, that of `taking`, or what the environment says, which is printed then.

    Args:
        given: ``(index, of)``; None for one that was not given.
        out: where the work is kept; without it there is nothing to share.
        place: of the argument, for messages.

    Raises:
        EmotraceError: for what is no rank, or one of several without ``out``.
    """
    if given is not None:
        rank = checked(given, place)
        if rank.of > 1 and out is None:
            raise EmotraceError(f"{place}={tuple(rank)}: ranks share what they keep in out=, which is not given.")
        return rank
    if out is None:
        return ALONE
    taken = _TAKEN.get()
    if taken is not None:
        return taken
    rank, names = of_environment(os.environ)
    said = f"{rank}, as {' and '.join(names)} {'says' if len(names) == 1 else 'say'}"
    if rank.of > 1 and said not in _SAID:
        _SAID.add(said)
        print(f"emotrace: {said}", file=sys.stderr)
    return rank


def checked(given: tuple[int, int], place: str) -> Rank:
    """The rank that two numbers are.

    Raises:
        EmotraceError: naming them.
    """
    index, of = given
    arguments.whole(f"{place}: of", of, 1)
    arguments.whole(f"{place}: rank", index, 0)
    if index >= of:
        raise EmotraceError(f"{place}={tuple(given)}: ranks of {of} are 0 to {of - 1}.")
    return Rank(index, of)


def of_environment(environment: Mapping[str, str]) -> tuple[Rank, list[str]]:
    """What SLURM and torchrun say, and by which variables: a task of an array, and in it one of several processes.

    Args:
        environment: variables.
    """
    rank, names = ALONE, []
    one = _numbers(environment, ARRAY)
    if one is not None:
        first, step = (_number(environment, f"SLURM_ARRAY_TASK_{name}") or 0 for name in ("MIN", "STEP"))
        index, rest = divmod(one[0] - first, max(step, 1))
        if not rest and 0 <= index < one[1]:
            rank, names = Rank(index, one[1]), [ARRAY[0]]
    for pair in TASKS:
        two = _numbers(environment, pair)
        if two is not None and 0 <= two[0] < two[1] and two[1] > 1:
            return Rank(rank.number * two[1] + two[0], rank.of * two[1]), [*names, pair[0]]
    return rank, names


def _numbers(environment: Mapping[str, str], names: tuple[str, str]) -> tuple[int, int] | None:
    found = [_number(environment, name) for name in names]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
