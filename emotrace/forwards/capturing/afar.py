"""Afar: a capture on a server: forwards cut into requests, and their answers put where they belong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emotrace.forwards.capturing.reads import rows_of
from emotrace.remote import Request
from emotrace.store import Plan
from emotrace.store.layout import MAY_DIFFER
from emotrace.traced import requests

REQUEST_BYTES = 32 << 20
"""Most bytes of one answer."""
REQUEST_TOKENS = 1 << 16
"""Most tokens that one request computes, padding included: what a server does within its time limit."""


def identity(plan: Plan) -> str:
    """Hash of everything that the answers depend on."""
    attrs = {name: value for name, value in plan.attrs.items() if name not in MAY_DIFFER}
    return hashlib.sha256(json.dumps([plan.digest, attrs], sort_keys=True).encode()).hexdigest()[:16]


def pieces(job: Any, group: Any) -> Iterator[list[Any]]:
    """The forwards of one row group as one request each, always cut alike."""
    row_bytes = sum(v.row_bytes for v in job.reads.variables)
    piece: list[Any] = []
    size = tokens = 0
    for filling in job.forwards(group):
        more = row_bytes * sum(span.stop - span.start for span in filling.forward.spans)
        work = filling.forward.inputs["input_ids"].numel()
        if piece and (size + more > REQUEST_BYTES or tokens + work > REQUEST_TOKENS):
            yield piece
            piece, size, tokens = [], 0, 0
        piece, size, tokens = [*piece, filling], size + more, tokens + work
    if piece:
        yield piece


def filled(
    job: Any, groups: Sequence[Any], name: str, buffers: Callable[[Any], dict[str, np.ndarray]], bar: Any,
    log: Path | None,
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:  # fmt: skip
    """Row groups with their buffers filled, in order, each once; several requests are on their way at a time.

    Args:
        job: the capture.
        groups: that are wanted.
        name: of the capture, for the log.
        buffers: gives the arrays of a group.
        bar: progress; says what the server says of the job that is waited for.
        log: file of job ids.
    """
    left: dict[int, int] = {}  # forwards of each group that are not answered yet

    def request(group: Any, piece: list[Any]) -> Request:
        def halves() -> list[Request]:
            middle = len(piece) // 2
            return [request(group, half) for half in (piece[:middle], piece[middle:])]

        return Request(
            f"{name}:{group.index}:{_digest(piece)}", requests.captured, lambda: job.arguments(piece), (group, piece),
            halves if len(piece) > 1 else None,
        )  # fmt: skip

    def asked() -> Iterator[Request]:
        for group in groups:
            cut = list(pieces(job, group))
            left[group.index] = sum(map(len, cut))
            yield from (request(group, piece) for piece in cut)

    def tell(said: str) -> None:
        bar.set_postfix_str(said[:60])

    filling: dict[int, dict[str, np.ndarray]] = {}
    for answered, (values, fired) in job.model.sites.remote.results(job.model, asked(), log, tell):
        group, piece = answered.about
        arrays = filling.setdefault(group.index, {}) or buffers(group)
        filling[group.index] = arrays
        _put(job, piece, values, arrays)
        for one, counts in zip(piece, fired, strict=True):
            job.count(counts)
            bar.update(len(one.rows))
        left[group.index] -= len(piece)
        if not left[group.index]:
            job.refuse_lost(group, arrays)
            yield group, filling.pop(group.index)


def reductions(prepared: Iterable[tuple[Any, Plan, tuple[Any, ...]]], function: Any) -> Iterator[Request]:
    """One request per chunk of prompts: all its forwards, and what a function makes of their rows.

    Args:
        prepared: ``(job, plan, what else the function takes)`` of each chunk.
        function: of `emotrace.traced`.
    """
    for job, plan, args in prepared:
        forwards = list(job.forwards(plan.groups[0]))
        order = torch.argsort(_rows(forwards))
        yield Request(
            "", requests.reduced, lambda job=job, f=forwards, o=order, a=args: (*job.arguments(f), o, function, a)
        )


def _digest(piece: Sequence[Any]) -> str:
    """What a request computes, and where its rows belong."""
    asked = [(rows, *_asked(forward)) for forward, rows in piece]
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def _asked(forward: Any) -> tuple:
    """As plain tuples, which the ids of jobs that are on their way were made of."""
    return tuple(map(tuple, forward.spans)), (0, forward.inputs["input_ids"].shape[1]), forward.recipe is None


def _rows(fillings: Sequence[Any]) -> torch.Tensor:
    """Where the rows of some forwards belong, in the order in which they come."""
    return torch.cat([rows_of(forward.spans, rows) for forward, rows in fillings])


def _put(job: Any, piece: list[Any], values: list[torch.Tensor], arrays: dict[str, np.ndarray]) -> None:
    """The rows of one answer into the buffers of its group."""
    targets = job.reads.targets(arrays)
    rows = _rows(piece)
    for numbers, value in zip(job.reads.cells(), values, strict=True):
        for number, cell in zip(numbers, value, strict=True):
            targets[number][rows] = cell.to(targets[number].dtype)
