"""Backends: where a model runs, if not here: on a server, or here as if it were there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel

from emotrace.remote.jobs import Jobs, Request
from emotrace.remote.naming import name_of
from emotrace.remote.server import Server
from emotrace.remote.sources import remember
from emotrace.remote.words import Waiting
from emotrace.sites import LanguageModel
from emotrace.traced import inner, runs

remember()

R = TypeVar("R")

Tell = Callable[[str], None]
REQUEST_TOKENS = 1 << 16
"""Most tokens that one request computes, padding included: what a server does within its time limit."""


class Backend(Protocol):
    """Where a model runs.

    Attributes:
        name: what manifests say: ``local``, ``ndif`` or ``simulated``.
        gradients: whether a trace can differentiate through the model there; None where nobody asked yet.
        copies: whether a trace is handed copies of the model's values, so that nothing large should go to and fro.
        streams: whether what a generation says while it runs is heard here.
        resumes: whether requests go on when whoever sent them is gone, so that their ids are worth keeping.
        limit: most tokens of one request; None where nothing is requested, and each forward stands alone.
    """

    name: str
    gradients: bool | None
    copies: bool
    streams: bool
    resumes: bool
    limit: int | None

    @property
    def traffic(self) -> str:
        """What was asked so far, in words: requests, and bytes both ways."""
        ...

    def holds(self, model: LanguageModel) -> bool:
        """Whether a forward finds the weights there; nnsight would load them silently."""
        ...

    def call(self, model: LanguageModel, function: Callable[..., R], args: tuple) -> R:
        """``function(model, *args)``, a function of `emotrace.traced`, there."""
        ...

    def keeping(self, model: LanguageModel, log: Path | None) -> AbstractContextManager[None]:
        """Where requests go on without whoever sent them: a file keeps the ids of all jobs that are sent meanwhile, until it ends
        well. The same run begun again asks for their results."""
        ...

    def results(
        self, model: LanguageModel, requests: Iterable[Request], log: Path | None = None, tell: Tell | None = None
    ) -> Iterator[tuple[Request, Any]]:
        """Requests with their answers, in order; ``log`` keeps the ids of jobs until all are answered."""
        ...


class Simulated:
    """Here, packed and unpacked as for a server (nnsight's ``remote="local"``)."""

    name, gradients, copies, traffic = "simulated", True, False, "nothing left this computer"
    streams, resumes, limit = False, False, REQUEST_TOKENS

    def holds(self, model: LanguageModel) -> bool:
        """Whether a forward finds the weights: they are here."""
        return True

    def call(self, model: LanguageModel, function: Callable[..., R], args: tuple) -> R:
        """Packed, unpacked and run in this process."""
        return runs.session(model, function, args, inner.LocalSimulationBackend(model))[0]

    def keeping(self, model: LanguageModel, log: Path | None) -> AbstractContextManager[None]:
        """Nothing is on its way, so no ids are kept."""
        return nullcontext()

    def results(
        self, model: LanguageModel, requests: Iterable[Request], log: Path | None = None, tell: Tell | None = None
    ) -> Iterator[tuple[Request, Any]]:
        """One after the other, as they are asked for."""
        for request in requests:
            yield request, self.call(model, request.function, request.args())


class Remote:
    """On a server.

    Args:
        server: which.
        lock: taken while a trace of the model is packed.
    """

    name, streams, resumes, limit = "ndif", False, True, REQUEST_TOKENS

    def __init__(self, server: Server, lock: threading.RLock) -> None:
        self.server, self._lock = server, lock
        self.gradients: bool | None = None
        self.copies = False
        self.requests = self.weights = 0
        self._kept: Jobs | None = None

    def holds(self, model: LanguageModel) -> bool:
        """Whether a forward finds the weights: the server has them."""
        return True

    @property
    def traffic(self) -> str:
        """Requests, bytes both ways, and the bytes of weights that calls there took."""
        sent, received = (n / 1e6 for n in (self.server.sent, self.server.received))
        said = f"{self.requests} requests, {sent:.2f} MB sent, {received:.2f} MB received"
        return f"{said}, {self.weights / 1e6:.2f} MB of weights taken by calls there" if self.weights else said

    def call(self, model: LanguageModel, function: Callable[..., R], args: tuple) -> R:
        """One request, and its answer."""
        request = Request("", function, lambda: args)
        return next(value for _, value in self.results(model, [request]))

    @contextmanager
    def keeping(self, model: LanguageModel, log: Path | None) -> Iterator[None]:
        """One file of job ids for all requests that are sent meanwhile, until it ends well."""
        if log is None or self._kept is not None:  # what is kept already is kept
            yield
            return
        self._kept = jobs = self._jobs(model, log, None)
        try:
            yield
            jobs.done()
        finally:
            self._kept = None
            jobs.close()

    def results(
        self, model: LanguageModel, requests: Iterable[Request], log: Path | None = None, tell: Tell | None = None
    ) -> Iterator[tuple[Request, Any]]:
        """Several requests on their way at a time, answers in their order."""
        kept = self._kept
        if log is None and kept is not None:
            for request, value in kept.results(map(_named, requests)):
                self._take(kept)
                yield request, value
            return
        jobs = self._jobs(model, log, tell)
        try:
            yield from jobs.results(requests)
            jobs.done()
        finally:
            self._take(jobs)
            jobs.close()

    def _take(self, jobs: Jobs) -> None:
        self.weights, jobs.taken = self.weights + jobs.taken, 0

    def _jobs(self, model: LanguageModel, log: Path | None, tell: Tell | None) -> Jobs:
        compressed = CONFIG.API.COMPRESS

        def pack(request: Request) -> bytes:
            carrier = _Packed(compressed)
            with self._lock:
                runs.session(model, request.function, request.args(), carrier)
            self.requests += 1
            return carrier.blob

        said = tell or Waiting(self.server.host)
        return Jobs(self.server, model.to_model_key(), model._remoteable_get_env(), pack, compressed, log, said)


def _named(request: Request) -> Request:
    """A request by the name of what it does, where it has none."""
    if request.name:
        return request
    args = request.args()
    return request._replace(name=name_of(request.function, args), args=lambda: args)


class _Packed(inner.Backend):
    """Packs a trace instead of running it."""

    def __init__(self, compressed: bool) -> None:
        self.compressed, self.blob = compressed, b""

    def __call__(self, tracer: object) -> None:
        self.blob = RequestModel.serialize(tracer, self.compressed)
