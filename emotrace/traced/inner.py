"""Inner: all that emotrace uses of nnsight's inner parts, which no release promises.

A change there shows in ``tests/traced/test_inner.py``, and is mended here.
"""

from __future__ import annotations

from typing import Any

from nnsight.intervention.interleaver import Mediator
from nnsight.modeling import huggingface


def worker() -> Any:
    """The worker that runs this trace's block, or None where nnsight runs it in another way."""
    try:
        return Mediator.current("a place")
    except ValueError:
        return None


def block_rows() -> tuple[int, int, int]:
    """``(all rows of the forward, first row of this block, rows of this block)``; zeros where nobody knows."""
    mediator = worker()
    if mediator is None or mediator.interleaver is None:
        return 0, 0, 0
    batcher = mediator.interleaver.batcher
    if batcher is None or not batcher.total:
        return 0, 0, 0
    start, size = mediator.batch_group or (0, batcher.total)
    return batcher.total, start, size


def called(source: str) -> str | None:
    """What requests call the model of a hub id or directory, where that is known."""
    return huggingface._ID_CACHE.get(source)


def call(source: str, name: str) -> None:
    """Let requests call a model by a name; nnsight would ask the Hub for the spelling."""
    huggingface._ID_CACHE[source] = name
