"""Filling: the row groups of a capture: forwards as requests to where the model runs, and their rows put where they belong."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from emotrace.forwards.capturing import memory
from emotrace.forwards.capturing.job import CaptureJob, Filling
from emotrace.forwards.capturing.reads import rows_of
from emotrace.forwards.entering import backend
from emotrace.remote import Request
from emotrace.store import Plan
from emotrace.store.layout import MAY_DIFFER
from emotrace.traced import requests
from emotrace.traced.requests import Forward

REQUEST_BYTES = 32 << 20
"""Most bytes of one answer."""


def identity(plan: Plan) -> str:
    """Hash of everything that the answers depend on."""
    attrs = {name: value for name, value in plan.attrs.items() if name not in MAY_DIFFER}
    return hashlib.sha256(json.dumps([plan.digest, attrs], sort_keys=True).encode()).hexdigest()[:16]


def pieces(job: CaptureJob, group: Any) -> Iterator[Piece]:
    """The forwards of one row group as one request each, always cut alike."""
    row_bytes, limit = sum(v.row_bytes for v in job.reads.variables), backend(job.model).limit or 0
    piece: list[Filling] = []
    size = tokens = 0
    for filling in job.forwards(group):
        more = row_bytes * sum(span.stop - span.start for span in filling.forward.spans)
        work = filling.forward.inputs["input_ids"].numel()
        if piece and (size + more > REQUEST_BYTES or tokens + work > limit):
            yield Piece(group, piece, False)
            piece, size, tokens = [], 0, 0
        piece, size, tokens = [*piece, filling], size + more, tokens + work
    yield Piece(group, piece, True)


class Piece(NamedTuple):
    """What one request does of a row group.

    Attributes:
        group: of the plan.
        fillings: its forwards, and where their rows go.
        last: whether the group is whole with it.
    """

    group: Any
    fillings: list[Filling]
    last: bool


class Buffers:
    """The arrays of one row group, and in them the slice that each read fills."""

    def __init__(self, job: CaptureJob, arrays: dict[str, np.ndarray]) -> None:
        self.arrays, self.targets = arrays, job.reads.targets(arrays)


def filled(
    job: CaptureJob, groups: Sequence[Any], name: str, buffers: Callable[[Any], dict[str, np.ndarray]], bar: Any,
    log: Path | None,
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:  # fmt: skip
    """Row groups with their buffers filled, in order, each once; of a server several requests are on their way at a time.

    Args:
        job: the capture.
        groups: that are wanted.
        name: of the capture, for the log.
        buffers: gives the arrays of a group.
        bar: progress; says what the server says of the request that is waited for.
        log: file of request ids.
    """
    begun: dict[int, Buffers] = {}

    def of(group: Any) -> Buffers:
        if group.index not in begun:
            begun[group.index] = Buffers(job, buffers(group))
        return begun[group.index]

    def request(piece: Piece) -> Request:
        def halves() -> list[Request]:
            middle = len(piece.fillings) // 2
            first, second = piece.fillings[:middle], piece.fillings[middle:]
            return [request(Piece(piece.group, first, False)), request(Piece(piece.group, second, piece.last))]

        return Request(
            f"{name}:{piece.group.index}:{_digest(piece.fillings)}", requests.captured,
            lambda: job.arguments(piece.fillings), piece, halves if len(piece.fillings) > 1 else None,
            lambda: ([], job.carry_out(piece.fillings, of(piece.group).targets)),
        )  # fmt: skip

    def tell(said: str) -> None:
        bar.set_postfix_str(said[:60])

    asked = (request(piece) for group in groups for piece in pieces(job, group))
    for answered, (values, fired) in backend(job.model).results(job.model, asked, log, tell):
        group, fillings, last = answered.about
        _put(job, fillings, values, of(group).targets)
        for filling, counts in zip(fillings, fired, strict=True):
            job.count(counts)
            bar.update(len(filling.rows))
        if last:
            job.memo.clear()
            arrays = begun.pop(group.index).arrays
            job.refuse_lost(group, arrays)
            yield group, arrays


def reductions(prepared: Iterable[tuple[CaptureJob, Plan, tuple[Any, ...]]], function: Any) -> Iterator[Request]:
    """One request per chunk of prompts: all its forwards, and what a function makes of their rows.

    Args:
        prepared: ``(job, plan, what else the function takes)`` of each chunk.
        function: of `emotrace.traced`.
    """
    for job, plan, args in prepared:
        yield _reduction(job, plan, function, args)


def _reduction(job: CaptureJob, plan: Plan, function: Any, args: tuple[Any, ...]) -> Request:
    (group,) = plan.groups

    def packed() -> tuple:
        fillings = list(job.forwards(group))
        return (*job.arguments(fillings), torch.argsort(_rows(fillings)), function, args)

    def here() -> tuple:
        arrays = {v.name: memory.empty(v.shape(plan.n_rows), v.dtype) for v in plan.variables}
        fired = job.carry_out(job.forwards(group), job.reads.targets(arrays))
        job.memo.clear()
        job.refuse_lost(group, arrays)
        shapes = [(math.prod(v.cell_shape), -1, math.prod(v.rest_shape)) for v in plan.variables]
        values = [torch.from_numpy(arrays[v.name].reshape(s)) for v, s in zip(plan.variables, shapes, strict=True)]
        return function(job.model, values, *args), fired

    return Request("", requests.reduced, packed, job, None, here)


def _digest(fillings: Sequence[Filling]) -> str:
    """What a request computes, and where its rows belong."""
    asked = [(filling.rows, *_asked(filling.forward)) for filling in fillings]
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def _asked(forward: Forward) -> tuple:
    """As plain tuples, which the ids of jobs that are on their way were made of."""
    return tuple(map(tuple, forward.spans)), (0, forward.inputs["input_ids"].shape[1]), forward.recipe is None


def _rows(fillings: Sequence[Filling]) -> torch.Tensor:
    """Where the rows of some forwards belong, in the order in which they come."""
    return torch.cat([rows_of(filling.forward.spans, filling.rows) for filling in fillings])


def _put(job: CaptureJob, fillings: Sequence[Filling], values: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    """The rows that came with an answer into the buffers of their group."""
    if not values:
        return
    rows = _rows(fillings)
    for numbers, value in zip(job.reads.cells(), values, strict=True):
        for number, cell in zip(numbers, value, strict=True):
            targets[number][rows] = cell.to(targets[number].dtype)
