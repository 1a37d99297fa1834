"""Programs: everything that one trace reads and edits, carried out: steps `Keep`, `Read` and groups of edits."""

from __future__ import annotations

from typing import NamedTuple

import torch

from emotrace.traced import edits, places
from emotrace.traced.steps import Sink


class Graph(NamedTuple):
    """What a forward keeps to be differentiated.

    Attributes:
        leaves: number of a `Leaf` → its δ.
        measured: what the metric's places hold, in order.
    """

    leaves: dict
    measured: list


def forward(
    program: list, batch: int, start: int, stop: int, fired: list, sink: Sink | None = None, graph: Graph | None = None
) -> None:
    """Run a program in the forward that computes columns ``[start, stop)``.

    Without a graph a `Leaf` does nothing, and a `Measure` is a read like any other.

    Args:
        program: steps (`traced.steps`) in the order of execution.
        batch: rows in the forward.
        start: first column computed.
        stop: one past the last.
        fired: counts of the edits, one per edit; counted up.
        sink: called as ``sink(number, value)`` with ``[batch, token, width]`` at each read.
        graph: filled; None where nothing is differentiated.
    """
    kept: dict = {}
    bases = {step.base for step in program if step.kind == "edit" and edits.live(step, start, stop)}
    for step in program:
        if step.kind == "edit":
            edits.apply(step, kept, batch, start, stop, fired)
        elif step.kind == "keep":
            if step.order in bases:
                kept[step.order] = places.fetch(step.place, None, batch)
        elif step.kind == "leaf":
            if graph is not None:
                graph.leaves[step.number] = places.leaf(step.place, batch)
        else:
            value = places.fetch(step.place, None, batch)
            if step.kind == "measure" and graph is not None:
                graph.measured.append(value)
            elif sink is not None:
                sink(step.number, value.detach() if isinstance(value, torch.Tensor) else value)


def reaches(program: list, start: int) -> bool:
    """Whether a program edits any column from ``start`` on."""
    return any(edits.live(step, start, None) for step in program if step.kind == "edit")


class Span(NamedTuple):
    """Neighbouring columns of one row.

    Attributes:
        row: of the batch.
        start: first column.
        stop: one past the last.
    """

    row: int
    start: int
    stop: int


def single(spans: tuple) -> tuple | None:
    """``(rows, columns)`` index tensors where every span is one column, else None."""
    if any(span.stop - span.start != 1 for span in spans):
        return None
    return torch.tensor([span.row for span in spans]), torch.tensor([span.start for span in spans])


def means(value: torch.Tensor, spans: tuple) -> torch.Tensor:
    """The mean over each span, ``[span, width]``, in float32."""
    return torch.stack([value[row, start:stop].float().mean(0) for row, start, stop in spans])


def gather(value: torch.Tensor, spans: tuple, index: tuple | None) -> torch.Tensor:
    """Rows of ``[batch, token, width]`` that are wanted, ``[row, width]``.

    Args:
        value: what a place holds.
        spans: in the columns of this forward.
        index: ``(rows, columns)`` of `single`, where every span is one column; else None.
    """
    if index is not None:
        return value[index]
    return torch.cat([value[span.row, span.start : span.stop] for span in spans])
