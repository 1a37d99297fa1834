"""Inner: all that the loopback server uses of nnsight's inner parts, to stand in for a server that runs them itself.

A change there shows in ``tests/testing/test_inner.py``, and is mended here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import EarlyStopException, Event, Interleaver, Mediator, OutOfOrderError, Pending
from nnsight.intervention.tracer import InterleavingTracer
from nnsight.modeling.mixins.meta import Meta
from nnsight.ndif import get_local_env
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc

__all__ = [
    "EarlyStopException",
    "Envoy",
    "Event",
    "Interleaver",
    "InterleavingTracer",
    "Mediator",
    "Meta",
    "OutOfOrderError",
    "Pending",
    "get_local_env",
]

Exchange = Callable[..., Any]
"""``(kind, location, *values)`` of what a block asks of its model; what the block gets."""


@contextlib.contextmanager
def exchanged(through: Callable[[Exchange], Exchange]) -> Iterator[None]:
    """What blocks ask of their model goes another way meanwhile.

    Args:
        through: gives that way, of nnsight's own.
    """
    original = Mediator.__dict__["event"]

    def event(cls: type[Mediator], *asked: Any) -> Any:
        return through(original.__get__(None, cls))(*asked)

    Mediator.event = classmethod(event)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Mediator.event = original


def forget_blocks() -> None:
    """Line numbers of another job's file would be read for those of the next."""
    SOURCES.clear()
    BLOCKS.clear()


def saved(run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Of the names that a block leaves, those whose values it saved."""
    inc()
    try:
        return {name: value for name, value in run().items() if id(value) in _saves()}
    finally:
        dec()
