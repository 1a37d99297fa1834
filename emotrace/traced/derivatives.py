"""Derivatives: one forward that reads values, and one backward pass from a metric at one token to every place that is read.

At each `Leaf` of a program δ = 0 is added to the value, so what the pass leaves at δ is d metric / d value: along everything
that follows from this place, the residual stream included. Rows do not depend on each other, so the gradient of the sum of
their metrics holds each row's own. No gradient of a weight is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import nnsight
import torch

from emotrace.traced import inner, programs
from emotrace.traced.circuits import LoweredMetric
from emotrace.traced.model import TracedModel
from emotrace.traced.precision import exactly
from emotrace.traced.programs import Graph
from emotrace.traced.steps import Sink


class Differentiated(NamedTuple):
    """What is differentiated.

    Attributes:
        metric: of what the places of the `Measure` s hold at one token; each row of its own prompt only.
        at: ``[row]``, column of the token.
        number: under which a sink is given what the metric is.
    """

    metric: LoweredMetric
    at: torch.Tensor
    number: int


def capture(
    model: TracedModel,
    inputs: dict,
    program: list,
    sink: Sink,
    n_edits: int,
    columns: tuple | None,
    what: Differentiated,
) -> list:
    """As `runs.capture`, with a gradient for every `Leaf`.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        program: steps (`traced.steps`) in the order of execution.
        sink: called with ``(number, value)`` at each read, after the backward pass with the gradient of each leaf, and
            with the metric of each row ``[row, token, 1]``, the same at every token.
        n_edits: how many edits to count.
        columns: ``(start, stop)`` of the columns that this forward computes; None where it computes all.
        what: the metric, where it reads, and the number of its value.

    Returns:
        How often each edit was carried out.
    """
    batch, width = inputs["input_ids"].shape
    start, stop = (0, width) if columns is None else columns
    with torch.inference_mode(False), torch.enable_grad(), model.trace(inputs) as tracer:
        fired = [0] * n_edits
        graph = Graph({}, [])
        programs.forward(program, batch, start, stop, fired, sink, graph)
        _passed_back(graph, what, sink)
        counts = nnsight.save(list(fired))
        inner.stop(model, tracer)
    return counts


def _passed_back(graph: Graph, what: Differentiated, sink: Sink) -> None:
    numbers, leaves = list(graph.leaves), list(graph.leaves.values())
    values = []
    for value in graph.measured:
        rows = torch.arange(len(what.at), device=value.device)
        values.append(value[rows, what.at.to(value.device)])
    with exactly(values[-1]):
        scores = what.metric.function(values, *what.metric.args)
    gradients = torch.autograd.grad(scores.sum(), leaves, allow_unused=True)
    for number, leaf, gradient in zip(numbers, leaves, gradients, strict=True):
        sink(number, torch.zeros_like(leaf) if gradient is None else gradient)
    tokens = leaves[0].shape[1]
    sink(what.number, scores.detach()[:, None, None].expand(-1, tokens, 1))
