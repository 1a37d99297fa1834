"""Runner: a process in which blocks of ordinary keys run: it holds models without weights, and asks for everything else.

One process waits with all imports done; every job gets a copy of it of its own (a fork), which ends with the job.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from greenlet import getcurrent
from nnsight import TransformersModel

from emotrace.testing.ndif_server import models
from emotrace.testing.ndif_server.executing import executed, unpacked
from emotrace.testing.ndif_server.inner import (
    EarlyStopException,
    Envoy,
    Event,
    Interleaver,
    InterleavingTracer,
    Mediator,
    Meta,
    OutOfOrderError,
)
from emotrace.testing.ndif_server.jobs import Refusal
from emotrace.testing.ndif_server.modes import Prints, cast
from emotrace.testing.ndif_server.wire import Wire


def weightless(directory: Path, dtype: str) -> TransformersModel:
    """A model as a runner knows it: no weights, and a dtype that is not theirs."""
    config, auto = models.described(directory)
    told = torch.bfloat16 if models.held(config, dtype) == torch.float32 else torch.float32
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = auto.from_config(config, dtype=told)
    return models.wrapped(module, directory)


def serve(control: socket.socket, directories: dict[str, Path], dtype: str, threads: int) -> None:
    """Fork a runner for every connection that comes over a socket, until it closes.

    Args:
        control: brings the name of a model, and a connection.
        directories: name → where a model lies.
        dtype: of the weights that others hold.
        threads: of torch, in a job.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # threads of this process would be missing in its copies
    known: dict[str, TransformersModel] = {}
    while True:
        name, connections, _, _ = socket.recv_fds(control, 4096, 1)
        if not name:
            os.killpg(0, signal.SIGKILL)
        told = name.decode()
        if told not in known:
            known[told] = weightless(directories[told], dtype)
            gc.freeze()  # a collection in a copy would touch, and so double, all of this
        connection = socket.socket(fileno=connections[0])
        if os.fork():
            connection.close()
            continue
        control.close()
        torch.set_num_threads(threads)
        with contextlib.suppress(EOFError, OSError):
            run(Wire(connection), known[told])
        os._exit(0)


def run(wire: Wire, model: TransformersModel) -> None:
    """Take one block over a connection, run it, and send what it saved or raised."""
    wire.send("here", os.getpid())
    _, blob, compress, autocast = wire.receive()
    _patch()
    objects = model._remoteable_persistent_objects() | {"Interleaver": Split(wire)}
    try:
        with contextlib.redirect_stdout(Prints(lambda line: wire.send("print", line))), cast(autocast):
            wire.send("end", executed(unpacked(blob, objects, compress)))
    except (EOFError, OSError):
        raise
    except BaseException as error:  # a block may raise anything; a traceback crosses as text
        shown = getattr(error, "__intervention_tb__", error.__traceback__)
        refused = isinstance(error, Refusal)  # before any of the block ran: a sentence
        text = str(error) if refused else "".join(traceback.format_exception(type(error), error, shown))
        wire.send("raised", f"{type(error).__name__}: {error}", text)


class Split(Interleaver):
    """The half of nnsight's interleaver that a block sees: it parks, and others count, match and batch.

    Its counts stay 0 and its batcher None, whatever the model does.
    """

    _persistent_id = "Interleaver"

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.wire = wire

    def instrument(self, envoy: Envoy) -> None:
        """Nothing runs here that could be watched."""

    def drive(self, fn: str, invokes: list[Any], options: dict[str, Any]) -> Any:
        """Have the model run, answering for the workers of this trace, until a word comes that it is done.

        Args:
            fn: what of the model runs.
            invokes: inputs, as the block gave them.
            options: keyword arguments beside them.
        """
        self.interleaving = True
        for mediator in self.mediators:
            mediator.start(self)
        parks = [_told(mediator.pending) for mediator in self.mediators]
        self.wire.send("interleave", fn, parks, [m.batch_group for m in self.mediators], invokes, options)
        while True:
            kind, *content = self.wire.receive()
            if kind == "done":
                return content[0]
            if kind == "missed":
                self._missed(*content)
            else:
                self._resumed(*content)

    def _resumed(self, number: int, values: tuple[Any, ...], pin: int | None) -> None:
        mediator = self.mediators[number]
        asked: Any = mediator.pending
        mediator.iteration = pin
        try:
            mediator.pending = mediator.switch(*values)
        except EarlyStopException:
            self.wire.send("stop")
            raise
        told = _told(mediator.pending)
        if asked[0] is Event.VALUE:  # what was read was a copy: edits in place go back with it, edited or not
            self.wire.send("park", number, (Event.SWAP, asked[1], pin, values[0]))
            self.wire.receive()
        self.wire.send("park", number, told)

    def _missed(self, number: int, asked: str, outran: bool) -> None:
        """A worker waits for what the model ran past."""
        error = OutOfOrderError(f"'{asked}' was requested but the model already ran past it")
        try:
            worker: Any = self.mediators[number].worker
            worker.throw(error)
        except OutOfOrderError:
            if not outran:
                raise
            warnings.warn(f"'{asked}' was never reached: the loop asked for a step the run did not make", stacklevel=1)


def _told(park: Any) -> Any:
    """What a worker is parked on, as it crosses."""
    if park is not None and park[0] is Event.BARRIER:
        raise ValueError("a barrier does not cross: the blocks of a trace cannot wait for each other here")
    return park


def _patch() -> None:
    """What a block asks of its model goes over the connection; for the whole process, which runs one job."""

    def event(cls: type[Mediator], kind: Any, location: str, *rest: Any) -> Any:
        parent: Any = getcurrent().parent
        return parent.switch((kind, location, cls.current(location).iteration, *rest))

    def interleave(self: Any, fn: Any, *args: Any, batcher: Any = None, **options: Any) -> Any:
        split = self.interleaver
        batcher = batcher or self._batcher_class(self, options)
        batcher.add(*args, **options)
        split.mediators = [*self._edits, *split.mediators]
        try:
            return split.drive(getattr(fn, "__name__", fn), batcher.invokes, batcher.extra_kwargs)
        except EarlyStopException:
            return None
        finally:
            split.interleaving = False
            split.cancel()

    def call(self: Any, *args: Any, hook: bool = False, **options: Any) -> Any:
        if not self.interleaver.interleaving:
            return self._module(*args, **options)
        return event(Mediator, "call", self.path, hook, args, options)

    def refused(what: str) -> Callable[..., Any]:
        def ask(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"{what} is not imitated in the sandbox of this loopback server")

        return ask

    Mediator.event = classmethod(event)  # type: ignore[method-assign]
    Envoy.__call__ = call  # type: ignore[method-assign]
    Envoy.source = property(refused("source"))  # type: ignore[assignment, method-assign]
    InterleavingTracer.cache = refused("tracer.cache")  # type: ignore[method-assign]
    owners: Iterable[Any] = (Envoy, Meta)
    for owner in owners:
        owner.interleave = interleave
