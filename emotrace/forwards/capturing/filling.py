"""Filling: the row groups of a capture: forwards as requests to where the model runs, and their rows put where they belong."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from emotrace.forwards.capturing import memory
from emotrace.forwards.capturing.job import CaptureJob, Filling
from emotrace.forwards.capturing.reads import rows_of
from emotrace.forwards.entering import backend
from emotrace.labels import EmotraceError
from emotrace.remote import Request
from emotrace.store import Plan, RowGroup, Writer
from emotrace.store.entries import Journaled
from emotrace.store.journal import Journal
from emotrace.traced import requests
from emotrace.traced.requests import Forward

if TYPE_CHECKING:
    from tqdm.auto import tqdm

REQUEST_BYTES = 32 << 20
"""Most bytes of one answer."""


def pieces(job: CaptureJob, group: RowGroup) -> Iterator[Piece]:
    """The forwards of one row group as one request each, always cut alike."""
    row_bytes, limit = sum(v.row_bytes for v in job.reads.variables), backend(job.model).limit or 0
    piece: list[Filling] = []
    size = tokens = 0
    for filling in job.forwards(group):
        more = row_bytes * len(_rows([filling]))
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

    group: RowGroup
    fillings: list[Filling]
    last: bool


class Buffers:
    """The arrays of one row group, in them the slice that each read fills, and which rows are there.

    Args:
        job: the capture.
        group: of its plan.
        arrays: of the group.
        journal: that keeps what is computed; None keeps nothing.
    """

    def __init__(
        self, job: CaptureJob, group: RowGroup, arrays: dict[str, np.ndarray], journal: Journal | None
    ) -> None:
        self.arrays, self.journal, self.targets = arrays, journal, job.reads.targets(arrays)
        kept = Journaled(len(group), []) if journal is None else journal.restore()
        self.done = kept.done
        for entry in kept.entries:
            if entry.problem is None:
                job.count(entry.fired)

    def lack(self, fillings: Iterable[Filling]) -> bool:
        """Whether a row of these forwards is not there."""
        return not all(self.done[_rows([filling]).numpy()].all() for filling in fillings)

    def add(self, filling: Filling, fired: Sequence[int]) -> None:
        """The rows of a forward are there now."""
        if self.journal is not None:
            sizes = [1 if filling.forward.mean else s.stop - s.start for s in filling.forward.spans]
            spans = [(first, first + size) for size, first in zip(sizes, filling.rows, strict=True)]
            self.journal.add(spans, fired)


def filled(
    job: CaptureJob, groups: Iterable[RowGroup], name: str, buffers: Callable[[RowGroup], dict[str, np.ndarray]], bar: tqdm[Any],
    log: Path | None, writer: Writer | None = None,
) -> Iterator[tuple[RowGroup, dict[str, np.ndarray]]]:  # fmt: skip
    """Row groups with their buffers filled, each once; of a server several requests are on their way at a time.

    Args:
        job: the capture.
        groups: that are wanted.
        name: of the capture, for the log.
        buffers: gives the arrays of a group.
        bar: progress; says what the server says of the request that is waited for.
        log: file of request ids.
        writer: of the store whose journals hold what was computed before, and keep what is computed now.
    """
    begun: dict[int, Buffers] = {}
    whole: list[RowGroup] = []

    def of(group: RowGroup) -> Buffers:
        if group.index not in begun:
            arrays = buffers(group)
            begun[group.index] = Buffers(job, group, arrays, writer and writer.journal(group, arrays))
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

    def lacking(group: RowGroup) -> Iterator[Piece]:
        """The pieces that no journal holds, cut as if there were none; the last of them makes the group whole."""
        held = None
        for piece in pieces(job, group):
            if not of(group).lack(piece.fillings):
                bar.update(sum(len(filling.rows) for filling in piece.fillings))
                continue
            if held is not None:
                yield held
            held = piece._replace(last=False)
        if held is None:
            whole.append(group)
        else:
            yield held._replace(last=True)

    def asked() -> Iterator[Request]:
        for group in groups:
            known = writer is not None and writer.begun(group)
            yield from map(request, lacking(group) if known else pieces(job, group))

    def finished(group: RowGroup) -> tuple[RowGroup, dict[str, np.ndarray]]:
        job.memo.clear()
        done = begun.pop(group.index)
        try:
            job.refuse_lost(group, done.arrays)
        except EmotraceError:
            if done.journal is not None:
                done.journal.discard()
            raise
        if job.components is not None:
            job.components.fill(done.arrays)
        return group, done.arrays

    for answered, (values, fired) in backend(job.model).results(job.model, asked(), log, tell):
        while whole:
            yield finished(whole.pop(0))
        group, fillings, last = answered.about
        into = of(group)
        _put(job, fillings, values, into.targets)
        for filling, counts in zip(fillings, fired, strict=True):
            job.count(counts)
            bar.update(len(filling.rows))
            into.add(filling, counts)
        if last:
            yield finished(group)
        elif into.journal is not None:
            into.journal.keep()
    while whole:
        yield finished(whole.pop(0))


def reductions(
    prepared: Iterable[tuple[CaptureJob, Plan, tuple[Any, ...]]], function: Callable[..., Any]
) -> Iterator[Request]:
    """One request per chunk of prompts: all its forwards, and what a function makes of their rows.

    Args:
        prepared: ``(job, plan, what else the function takes)`` of each chunk.
        function: of `emotrace.traced`.
    """
    for job, plan, args in prepared:
        yield _reduction(job, plan, function, args)


def _reduction(job: CaptureJob, plan: Plan, function: Callable[..., Any], args: tuple[Any, ...]) -> Request:
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
    return torch.cat([rows_of(filling.forward.spans, filling.rows, filling.forward.mean) for filling in fillings])


def _put(job: CaptureJob, fillings: Sequence[Filling], values: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    """The rows that came with an answer into the buffers of their group."""
    if not values:
        return
    rows = _rows(fillings)
    for numbers, value in zip(job.reads.cells(), values, strict=True):
        for number, cell in zip(numbers, value, strict=True):
            targets[number][rows] = cell.to(targets[number].dtype)
