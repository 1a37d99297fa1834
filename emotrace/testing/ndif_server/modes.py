"""Modes: what NDIF does to every job, around the block that runs."""

from __future__ import annotations

import contextlib
import functools
import io
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch

from emotrace.testing.ndif_server.inner import Exchange, exchanged

MODES: dict[str, Any] = {
    "no_gradients": False,  # values come without a graph, and what a block writes carries none into the model
    "copies": False,  # values are copies: changing one in place changes nothing in the model
    "autocast": None,  # dtype of torch.autocast around every block
    "expire_urls": 3600.0,  # seconds for which the address of a result is good; None: for ever
    "execution_timeout": None,  # seconds after which a block is killed
    "inline_limit": 8 << 20,  # results up to so many bytes come on the websocket, others by URL
    "versions": {},  # package → version that /env claims
    "window": 0.0,  # seconds for which nothing is stored of a job that was received (404)
    "deploy_seconds": 0.0,  # seconds that a model which is not up takes to come up
}


class Overtime(BaseException):
    """The block ran past the execution timeout; no ``except Exception`` of its own may hide that."""


@contextlib.contextmanager
def limits(modes: dict[str, Any], say: Callable[[str], None], trusted: bool) -> Iterator[None]:
    """The modes, around one block that tells what it prints; what another process does to values anyway is left to it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(Prints(say)))
        stack.enter_context(cast(modes["autocast"]))
        if trusted and (modes["copies"] or modes["no_gradients"]):
            stack.enter_context(exchanged(_crossing(modes["copies"], modes["no_gradients"])))
        if seconds := modes["execution_timeout"]:
            stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, functools.partial(_overtime, seconds))
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield


def cast(dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    """torch.autocast to a dtype; nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=getattr(torch, dtype))


def _overtime(seconds: float, *_: object) -> None:
    raise Overtime(f"the block ran past the execution timeout of {seconds} s")


def _crossing(copies: bool, detached: bool) -> Callable[[Exchange], Exchange]:
    """Values cross between block and model as through a pickle: no shared memory, no graph, or neither."""

    def over(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(map(over, value))
        if type(value) is dict:
            return {key: over(item) for key, item in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach() if detached else value
        return value.clone() if copies else value

    def through(event: Exchange) -> Exchange:
        return lambda kind, location, *rest: over(event(kind, location, *map(over, rest)))

    return through


class Prints(io.TextIOBase):
    """What a block prints, told line by line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.rest = say, ""

    def write(self, text: str) -> int:
        """Say every line that is whole."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.say(line)
        return len(text)
