"""Workers: ranks handed to the workers of a cluster that Dask knows."""

from __future__ import annotations

import os
import pickle
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from emotrace import disk
from emotrace.labels import EmotraceError
from emotrace.ranks.rank import ALONE, Rank, taking

P = ParamSpec("P")
T = TypeVar("T")
WAIT = 300
"""Seconds for which a cluster may be without a worker."""
LOOKED = 0.1
"""Seconds between two looks at what workers have done."""


class _Model(NamedTuple):
    """A model on its way to workers: how it is loaded."""

    loaded: bytes


def on_workers(client: Any, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function as one rank on every worker of a cluster, then here, where it finds all of it made.

    For whatever ranks share: rows that are judged, sums over prompts, replies, captures (these two have ``client=`` as well)::

        from dask.distributed import Client
        from emotrace.runlog import Log

        rows = et.ranks.on_workers(Client(), et.judges.judge_rows, rows, judge, Log("/shared/judged.jsonl"))
        dirs = et.ranks.on_workers(Client(), et.stream_directions, model, prompts, label="emotion", out="/shared/sums")

    Args:
        client: a ``distributed.Client`` (or whatever has its ``scheduler_info`` and ``submit``).
        function: that keeps its work in ``out`` or a log. A worker that dies has its rank given to another one.
        *args: of the function. Each worker loads a model for itself, from where this process had it, and keeps it.
        **kwargs: likewise; a local ``out`` must be a folder that workers see.

    Returns:
        What the function returns.

    Raises:
        EmotraceError: for what is no client, a cluster without workers, or arguments that cannot be sent there.
    """
    what = getattr(function, "__name__", str(function))
    if not callable(getattr(client, "scheduler_info", None)):
        raise EmotraceError(f"{what}(client=<{type(client).__name__}>): a dask.distributed Client is due.")
    sent = _packed(what, (function, [_sent(what, a) for a in args], {k: _sent(what, v, k) for k, v in kwargs.items()}))
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except TimeoutError as error:
        raise EmotraceError(f"{what}(client=…): the cluster has no worker after {WAIT} seconds.") from error
    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    call = uuid.uuid4().hex  # a key used again before its first use is forgotten would be answered without work
    # Free to go anywhere: one bound to a worker, even loosely, waits for ever when all workers die at once and others come.
    futures = [
        client.submit(_carried_out, sent, Rank(i, workers), key=f"{what}-{i}-of-{workers}-{call}", pure=False)
        for i in range(workers)
    ]
    try:
        _awaited(what, client, futures)
        client.gather(futures)
    finally:
        client.cancel(futures)
    with taking(*ALONE):
        return function(*args, **kwargs)


def _awaited(what: str, client: Any, futures: list[Any]) -> None:
    """Wait for all, or for one that fails; a cluster that has lost its workers has as long to get others as at the beginning."""
    seen = time.monotonic()
    while not all(f.done() for f in futures) and not any(f.status == "error" for f in futures):
        if client.scheduler_info(n_workers=-1)["workers"]:
            seen = time.monotonic()
        elif time.monotonic() - seen > WAIT:
            raise EmotraceError(
                f"{what}(client=…): the cluster has had no worker for {WAIT} seconds. What was made is kept: called again, "
                "it goes on."
            )
        time.sleep(LOOKED)


def _sent(what: str, value: Any, name: str = "") -> Any:
    """An argument as workers get it: models by how they are loaded, relative paths as absolute ones."""
    if hasattr(value, "sites") and hasattr(value.sites, "again"):
        return _Model(_packed(what, value.sites.again))
    if isinstance(value, Path) or (name == "out" and isinstance(value, str)):
        return disk.url_of(value) if disk.is_url(value) else os.path.abspath(value)
    return value


def _packed(what: str, value: Any) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise EmotraceError(f"{what}(client=…): an argument cannot be sent to workers ({error}).") from error


@lru_cache(maxsize=2)
def _once(loaded: bytes) -> Any:
    """The model of a worker."""
    return pickle.loads(loaded)()


def _carried_out(sent: bytes, rank: Rank) -> None:
    function, args, kwargs = pickle.loads(sent)
    with taking(*rank):
        function(*map(_arrived, args), **{name: _arrived(value) for name, value in kwargs.items()})


def _arrived(value: Any) -> Any:
    return _once(value.loaded) if isinstance(value, _Model) else value
