"""Inner: all that emotrace uses of nnsight's inner parts, which no release promises; other modules take them from here.

A change there shows in ``tests/traced/test_inner.py``, and is mended here. What the loopback server uses to stand in for NDIF's
is in ``emotrace/testing/ndif_server/inner.py``.
"""

from __future__ import annotations

from typing import Any

from nnsight.intervention import serialization
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.source import Controller
from nnsight.modeling import huggingface
from nnsight.tracing.backend import Backend

__all__ = ["Backend", "Controller", "Envoy", "LocalSimulationBackend", "serialization"]


def worker() -> Any:
    """The worker that runs this trace's block, or None where nnsight runs it in another way."""
    try:
        return Mediator.current("a place")
    except ValueError:
        return None


def counts(mediator: Any) -> bool:
    """Whether visits are counted where the block of a worker runs; a block that runs apart from its model sees no counts."""
    return bool(mediator.interleaver is not None and mediator.interleaver.counts)


def weightless(model: Any) -> bool:
    """Whether a block runs apart from the weights of its model: what it holds are modules on the meta device."""
    return next(model._module.parameters()).is_meta


def stop(model: Any, tracer: Any) -> None:
    """End a forward after its last step, inside a trace; where a block runs apart from its model, it goes on to its end.

    There the word that the model is done follows a stop, too, and the next trace of the job would take it for its own.
    """
    if not weightless(model):
        tracer.stop()


def block_rows() -> tuple[int, int, int]:
    """``(all rows of the forward, first row of this block, rows of this block)``; zeros where nobody knows."""
    mediator = worker()
    if mediator is None or mediator.interleaver is None:
        return 0, 0, 0
    batcher = mediator.interleaver.batcher
    if batcher is None:  # counted elsewhere, with the visits
        start, size = mediator.batch_group or (0, 0)
        return 0, start, size
    if not batcher.total:
        return 0, 0, 0
    start, size = mediator.batch_group or (0, batcher.total)
    return batcher.total, start, size


def called(source: str) -> str | None:
    """What requests call the model of a hub id or directory, where that is known."""
    return huggingface._ID_CACHE.get(source)


def call(source: str, name: str) -> None:
    """Let requests call a model by a name; nnsight would ask the Hub for the spelling."""
    huggingface._ID_CACHE[source] = name
