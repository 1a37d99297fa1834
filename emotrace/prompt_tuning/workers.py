"""Workers: the same work done here, or in several processes that each load the model once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from emotrace import model as model_
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel

_HERE: dict[str, Any] = {}
"""What a worker process holds: the model, and whatever all its jobs share."""

S = TypeVar("S")
J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[LanguageModel, S, J], R]
"""``work(model, shared, job) → result``: a function of a module, so that a new process can import it."""


def model_of(model: LanguageModel | str | Path, options: Mapping[str, Any] | None = None) -> LanguageModel:
    """A loaded model as it is; a directory or hub id loaded.

    Raises:
        EmotraceError: as `emotrace.load`.
    """
    return model_.load(model, **(options or {})) if isinstance(model, (str, Path)) else model


def check(model: LanguageModel | str | Path, processes: int) -> None:
    """Refuse what cannot be spread over processes.

    Raises:
        EmotraceError: for fewer than one process, or several with a model that is loaded already.
    """
    if processes < 1:
        raise EmotraceError(f"processes={processes}: at least 1.")
    if processes > 1 and not isinstance(model, (str, Path)):
        raise EmotraceError(
            f"processes={processes}: every process loads the model itself, so give its directory or hub id, "
            f"not a {type(model).__name__}; or processes=1."
        )


def spread(
    work: Work[S, J, R], jobs: Sequence[J], shared: S, model: LanguageModel | str | Path, loaded: LanguageModel, processes: int,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[J, R]]:  # fmt: skip
    """Results of jobs as they become ready.

    Processes are spawned, with one torch thread each. No more jobs are handed out than there are processes, so that little
    is lost when the run is stopped. They end with the run, however it ends: each watches a pipe whose other end closes with it.

    Args:
        work: ``work(model, shared, job) → result``, a function of a module.
        jobs: one argument each.
        shared: what every job needs; sent to each process once.
        model: directory or hub id that processes load.
        loaded: the model of this process, used where there is one process.
        processes: how many.
        options: for `emotrace.load`.

    Yields:
        ``(job, result)`` in the order of completion.
    """
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, work(loaded, shared, job)
        return
    context = multiprocessing.get_context("spawn")
    ended, lifeline = context.Pipe(duplex=False)
    start = (ended, str(model), dict(options or {}), shared)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), context, _begin, start)
    waiting, running = list(reversed(jobs)), {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop()
                running[pool.submit(_carry_out, work, job)] = job
            ready: set[Future[Any]] = wait(running, return_when=FIRST_COMPLETED).done
            for future in ready:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise EmotraceError(
            "a worker process ended before its work (out of memory, or killed). What was finished is kept: repeat the command "
            "with fewer processes to continue."
        ) from error
    finally:
        lifeline.close()  # whoever still works stops at once
        pool.shutdown(wait=True, cancel_futures=True)
        ended.close()


def _begin(ended: Connection, model: str, options: dict[str, Any], shared: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the run decides what ends
    threading.Thread(target=_end_with, args=(ended,), name="emotrace-lifeline", daemon=True).start()
    torch.set_num_threads(1)
    _HERE.update(model=model_.load(model, **options), shared=shared)


def _end_with(run: Connection) -> None:
    """End this process as soon as the other end of a pipe is closed, by whatever ends the run."""
    run.poll(None)
    os._exit(1)


def _carry_out(work: Work[Any, J, R], job: J) -> R:
    return work(_HERE["model"], _HERE["shared"], job)
