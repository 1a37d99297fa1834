"""Requests: what one remote job of a capture does: some forwards, of which only the wanted rows come home.

The rows of a forward that are wanted are *spans*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from emotrace.traced import caches, derivatives, finite, programs, runs
from emotrace.traced.caches import BeginningRecipe, Setup
from emotrace.traced.model import TracedModel
from emotrace.traced.steps import Sink


class Forward(NamedTuple):
    """One forward.

    Attributes:
        inputs: ids, mask and options.
        spans: `Span` s of the wanted rows, in the columns that it computes.
        recipe: what its rows begin with; None for nothing.
        columns: ``(start, stop)`` that it computes of the padded sequences; None for all.
        program: its steps; None for those that all forwards share.
        n_edits: how many edits it counts.
        differentiated: what is differentiated to every leaf of the program, as `derivatives` says; None for nothing.
        mean: whether the mean over each span is wanted, in float32, instead of its rows.
    """

    inputs: dict
    spans: tuple
    recipe: BeginningRecipe | None = None
    columns: Any = None
    program: Any = None
    n_edits: int = 0
    differentiated: Any = None
    mean: bool = False


def forward(model: TracedModel, steps: list, one: Forward, setup: Setup, memo: dict, sink: Sink) -> list:
    """Carry out one forward; how often each edit fired.

    Args:
        model: an nnsight model.
        steps: that forwards without a program of their own carry out.
        one: forward.
        setup: the empty cache, the last step, and whether the model takes positions.
        memo: keeps the levels of beginnings made last; starts empty, and is the same for forwards that follow each other.
        sink: called with ``(number, value)`` at each read.
    """
    inputs = caches.begun(model, one.inputs, one.recipe, setup, memo)
    program = steps if one.program is None else one.program
    if one.differentiated is not None:
        return derivatives.capture(model, inputs, program, sink, one.n_edits, one.columns, one.differentiated)
    return runs.capture(model, inputs, program, sink, one.n_edits, one.columns)


def captured(model: TracedModel, steps: list, forwards: list, cells: list, setup: Setup, memo: dict) -> tuple:
    """Wanted rows of some forwards.

    Args:
        model: an nnsight model.
        steps: that the forwards share.
        forwards: `Forward` s.
        cells: of each variable, the numbers of its reads.
        setup: the empty cache, the last step, and whether the model takes positions.
        memo: keeps the levels of beginnings made last; starts empty, and is the same for forwards that follow each other.

    Returns:
        One tensor ``[cell, row, width]`` per variable, rows (or means) in the order of forwards and spans, on the CPU and in the
        model's own dtype; and per forward how often each edit fired.
    """
    parts: dict = {number: [] for numbers in cells for number in numbers}
    fired = []
    for one in forwards:
        sink = _sink(parts, one.spans, one.mean)
        fired.append(forward(model, steps, one, setup, memo, sink))
    values = [torch.stack([torch.cat(parts.pop(number)) for number in numbers]) for numbers in cells]
    return values, fired


def reduced(
    model: TracedModel,
    steps: list,
    forwards: list,
    cells: list,
    setup: Setup,
    memo: dict,
    order: torch.Tensor | None,
    reduce: Callable,
    args: tuple,
) -> tuple:
    """What a function makes of the rows of `captured`, and how often each edit fired in each forward.

    Args:
        model: an nnsight model.
        steps: that the forwards share.
        forwards: `Forward` s.
        cells: of each variable, the numbers of its reads.
        setup: the empty cache, the last step, and whether the model takes positions.
        memo: keeps the levels of beginnings made last; starts empty, and is the same for forwards that follow each other.
        order: index of the rows that brings them into the order of the prompts; None leaves them.
        reduce: a function of this package, called with the model and the tensors of `captured`.
        args: what else it takes.
    """
    values, fired = captured(model, steps, forwards, cells, setup, memo)
    if order is not None:
        values = [value[:, order] for value in values]
    return reduce(model, values, *args), fired


def projected(model: TracedModel, values: list, v: torch.Tensor, sizes: list) -> list:
    """The one read of some forwards projected on a vector, in float64: one tensor per forward, which holds so many rows."""
    return [part.double() @ v for part in values[0][0].split(sizes)]


def shape(model: TracedModel, inputs: dict, program: list) -> list:
    """Shape of what one read holds in a forward of one row; empty where it is no tensor."""
    sizes: list = [()]

    def keep(number, value):
        sizes[0] = tuple(getattr(value, "shape", ()))

    runs.capture(model, inputs, program, keep)
    return list(sizes[0])


def lost(model: TracedModel, inputs: dict, program: list, n_edits: int, free: list) -> tuple:
    """Which read of a forward of one row is the first that is not finite: ``(number, column)``; ``()`` for none.

    Args:
        model: an nnsight model.
        inputs: ids, mask and options.
        program: sorted steps of edits and reads.
        n_edits: how many edits to count.
        free: numbers of the reads in which −∞ is a number like others.
    """
    first: list = []

    def keep(number, value):
        if first or finite.finite(value, number in free):
            return
        wrong = ~torch.isfinite(value)
        if number in free:
            wrong &= value != -float("inf")
        first.append((number, int(wrong[0].any(-1).nonzero()[0])))

    runs.capture(model, inputs, program, keep, n_edits)
    return first[0] if first else ()


def pattern(model: TracedModel, inputs: dict, program: list, head: int) -> torch.Tensor:
    """``[query, key]`` of one head in a forward of one row."""
    weights: list = []

    def keep(number, value):
        weights.append(value[0, head].detach().float().cpu().clone())

    runs.capture(model, inputs, program, keep)
    return weights[0]


def _sink(parts: dict, spans: tuple, mean: bool) -> Sink:
    single = programs.single(spans)

    def keep(number, value):  # copies: what a place holds is the model's own
        rows = programs.means(value, spans) if mean else programs.gather(value, spans, single)
        parts[number].append(rows.detach().cpu())

    return keep
