"""Workers: ranks handed to the workers of a cluster that Dask knows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from emotrace.labels import EmotraceError
from emotrace.ranks.rank import Rank

WAIT = 300
"""Seconds for which a cluster may be without a worker."""


def on_workers(client: Any, work: Callable[[Rank], object], what: str) -> None:
    """Have every worker of a cluster carry out one rank; returns once all is whole.

    Args:
        client: a ``distributed.Client`` (or whatever has its ``scheduler_info`` and ``submit``).
        work: done by the worker; that of one that dies is given to another one.
        what: is done, for messages and the dashboard.

    Raises:
        EmotraceError: for what is no client, or one without workers.
    """
    if not callable(getattr(client, "scheduler_info", None)):
        raise EmotraceError(f"{what}(client=<{type(client).__name__}>): a dask.distributed Client is due.")
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except TimeoutError as error:
        raise EmotraceError(f"{what}(client=…): the cluster has no worker after {WAIT} seconds.") from error
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    futures = [
        client.submit(
            _carried_out, work, Rank(i, len(workers)), key=f"{what}-{i}-of-{len(workers)}-{id(work)}", workers=[at],
            allow_other_workers=True, pure=False,
        ) for i, at in enumerate(workers)
    ]  # fmt: skip
    try:
        client.gather(futures)
    finally:
        client.cancel(futures)


def _carried_out(work: Callable[[Rank], object], rank: Rank) -> None:
    work(rank)


def packed(make: Callable[[], Any] | None, what: str) -> bytes:
    """A function for `once`, as bytes.

    Raises:
        EmotraceError: for one that cannot be sent.
    """
    import cloudpickle

    try:
        return cloudpickle.dumps(make)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise EmotraceError(f"{what}: the model cannot be sent to workers ({error}); load it by its name.") from error


@lru_cache(maxsize=2)
def once(make: bytes) -> Any:
    """What a pickled function gives, made once in a process: the model of a worker."""
    return pickle.loads(make)()
