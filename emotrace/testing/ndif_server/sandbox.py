"""Sandbox: how blocks of ordinary keys run: in a process of their own, while the model stays in this one.

What follows for a block is what follows on NDIF:

* values cross by serialisation: a read is a copy that is written back, with everything that came with it: the ``input`` of a
  module that is given a key-value cache brings the cache, and a copy of it goes on;
* weights in the block are meta tensors, of another dtype than those here; a call of a module on values is carried out here;
* no code crosses: a class that only the block knows, such as a logits processor of the user's own, is refused by pickle;
* no graph crosses, so nothing is differentiated through the model;
* nnsight's counters and batcher live here: a block that reads them sees the first forward for ever;
* the block's random state is not this one's;
* after a ``stop()`` the word that the model is done is still sent, and the next trace of the job takes it for its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnsight import TransformersModel

from emotrace.testing.ndif_server import runner
from emotrace.testing.ndif_server.inner import EarlyStopException, Mediator, Pending
from emotrace.testing.ndif_server.wire import Wire


class BlockError(Exception):
    """A block raised in its own process.

    Args:
        said: error and message.
        text: the traceback there.
    """

    def __init__(self, said: str, text: str) -> None:
        super().__init__(said)
        self.text = text


class Sandbox:
    """Runners, forked for every job; make it before there are threads or weights.

    Args:
        directories: name → where a model lies.
        dtype: of the weights.
        threads: of torch.
    """

    def __init__(self, directories: dict[str, Path], dtype: str, threads: int) -> None:
        self.control, theirs = socket.socketpair()
        if not os.fork():
            self.control.close()
            with open(os.devnull, "r+b") as nothing:  # a pipe that it holds would look open
                os.dup2(nothing.fileno(), 0)
                os.dup2(nothing.fileno(), 1)
            runner.serve(theirs, directories, dtype, threads)
            os._exit(0)
        theirs.close()

    def run(
        self, name: str, model: TransformersModel, blob: bytes, compress: bool, autocast: str | None,
        say: Callable[[str], None], count: Callable[[str, int], None],
    ) -> bytes:  # fmt: skip
        """The saved values of one block.

        Args:
            name: of the model.
            model: with its weights.
            blob: the request.
            compress: whether it is compressed.
            autocast: dtype of torch.autocast in the block; None without.
            say: called with every line that the block prints.
            count: called with ``crossed`` and ``called``, and how many bytes.

        Raises:
            BlockError: for whatever the block raises.
        """
        ours, theirs = socket.socketpair()
        socket.send_fds(self.control, [name.encode()], [theirs.fileno()])
        theirs.close()
        wire = Wire(ours)
        _, process = wire.receive()
        try:
            wire.send("job", blob, compress, autocast)
            return Host(wire, model, say, count).answer()
        finally:
            count("crossed", wire.sent + wire.received)
            wire.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


class Host:
    """Answers a block."""

    def __init__(
        self, wire: Wire, model: TransformersModel, say: Callable[[str], None], count: Callable[[str, int], None]
    ) -> None:
        self.wire, self.model, self.say, self.count = wire, model, say, count
        self.envoys = {envoy.path: envoy for envoy in model.modules()}

    def answer(self) -> bytes:
        """Run the model as often as the block asks for it; what it saved."""
        while True:
            kind, *content = self.next("interleave", "end")
            if kind == "end":
                return content[0]
            self.interleave(*content)

    def next(self, *kinds: str) -> tuple[Any, ...]:
        """The next message that is of one of some kinds; what is printed meanwhile is said.

        Raises:
            BlockError: where the block raised.
            RuntimeError: for another kind: the two are out of step.
        """
        while True:
            message = self.wire.receive()
            if message[0] == "print":
                self.say(message[1])
            elif message[0] == "raised":
                raise BlockError(*message[1:])
            elif message[0] in kinds:
                return message
            else:
                raise RuntimeError(f"out of step: {message[0]!r} came where {' or '.join(kinds)} was due")

    def interleave(self, fn: str, parks: list[Any], groups: list[Any], invokes: list[Any], options: dict) -> None:
        """One run of the model with the workers of a block."""
        model = self.model
        batcher = model._batcher_class(model, options)
        for inputs, named in invokes:
            batcher.add(*inputs, **named)
        workers = [
            Proxy(self, number, park, group) for number, (park, group) in enumerate(zip(parks, groups, strict=True))
        ]
        for worker in workers:
            worker.settle()
        model.interleaver.mediators = list(workers)
        method = getattr(model, fn)
        called = getattr(method, "__wrapped__", None)  # generate and pipe open a trace where they are asked for one
        result = model.interleave(method if called is None else called.__get__(model), batcher=batcher, **options)
        self.wire.send("done", None if workers else result)

    def call(self, path: str, hook: bool, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A module on values of the block."""
        return self.envoys[path](*args, hook=hook, **options)


class Proxy(Mediator):
    """A worker in another process, for nnsight's interleaver here, which matches, counts and batches as for any other.

    Args:
        host: brings its messages.
        number: of the worker.
        park: what it is parked on first; None where it is done.
        group: its rows.
    """

    def __init__(self, host: Host, number: int, park: Any, group: Any) -> None:
        self.host, self.number, self.first, self.batch_group = host, number, park, group
        self.worker: Any = None
        self.pending: Any = None
        self.caches: list[Any] = []
        self.interleaver, self.iteration, self.counts_at_start = None, 0, {}

    def settle(self) -> None:
        """Answer the calls with which a block may begin."""
        self.first = self._served(self.first)

    def start(self, interleaver: Any = None) -> None:
        """Begin where the worker waits."""
        self.interleaver, self.worker = interleaver, self
        self.counts_at_start = dict(interleaver.counts)
        self.pending = self._adopted(self.first)

    @property
    def alive(self) -> bool:
        """Whether the worker waits for anything."""
        return self.pending is not None

    def switch(self, *values: Any) -> Any:
        """Give the worker what it waits for; what it waits for next."""
        return self._adopted(self._served(self._resumed(values)))

    def throw(self, error: BaseException | type[BaseException]) -> None:
        """The run is over: what the model ran past is said."""
        asked, outran, self.pending = self.pending, self.iteration != 0, None
        if isinstance(error, BaseException):
            self.host.wire.send("missed", self.number, str(asked), outran)

    def _resumed(self, values: tuple[Any, ...]) -> Any:
        self.host.wire.send("resume", self.number, values, self.iteration)
        kind, *content = self.host.next("park", "stop")
        if kind == "stop":
            raise EarlyStopException
        return content[1]

    def _served(self, park: Any) -> Any:
        """The next park that is no call."""
        while park is not None and park[0] == "call":
            self.iteration = park[2]
            found = self.host.call(park[1], *park[3:])
            before = self.host.wire.sent
            park = self._resumed((found,))
            self.host.count("called", self.host.wire.sent - before)
        return park

    def _adopted(self, park: Any) -> Pending | None:
        """A park with the visit that it means, of which this side keeps count."""
        if park is None:
            return None
        kind, location, self.iteration, *rest = park
        return Pending(kind, location, self.wanted(location), *rest)
