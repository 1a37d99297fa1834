"""Circuits inside a trace: forwards in which nodes are blended with other values.

Steps are a `Node` at each place where components write, and a `Read` at each that the metric reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import nnsight
import torch

from emotrace.traced import inner, places
from emotrace.traced.model import TracedModel
from emotrace.traced.precision import exactly


class LoweredMetric(NamedTuple):
    """One number per row of what places hold at one token.

    Attributes:
        function: takes the values, ``[row, width]`` of each place read, and the other arguments; returns ``[row]``.
        args: its other arguments.
    """

    function: Any
    args: tuple


class Blend(NamedTuple):
    """A node becomes ``other + keep · (value − other)``.

    Attributes:
        other: ``[row, token, width]``.
        keep: ``[row, 1, width]``.
    """

    other: torch.Tensor
    keep: torch.Tensor


def linear(values: list, covectors: torch.Tensor) -> torch.Tensor:
    """⟨value, covector⟩ of each row."""
    return (_wide(values[0]) * covectors.to(values[0].device)).sum(-1)


def divergence(values: list, clean: torch.Tensor) -> torch.Tensor:
    """−KL(clean ‖ now) in nats between the distributions that logits make; 0 at most."""
    now = torch.log_softmax(_wide(values[0]), -1)
    then = torch.log_softmax(clean.to(now.device, now.dtype), -1)
    return -(then.exp() * (then - now)).sum(-1)


def forward(
    model: TracedModel, inputs: dict, steps: list, at: torch.Tensor, metric: LoweredMetric | None, sets: dict, blends: dict,
    wanted: tuple,
) -> dict:  # fmt: skip
    """One forward up to the last step.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        steps: in the order of execution.
        at: ``[row]``, the column where the metric reads.
        metric: None returns what it would have been given.
        sets: number of a node → ``[row, token, width]`` that takes its place.
        blends: number of a node → `Blend`.
        wanted: of ``values`` (of the nodes, as written) and ``gradients`` (of the metric's sum with respect to them).

    Returns:
        On the CPU: ``metric`` ``[row]`` or the list of its places' values; ``values`` and ``gradients``, lists by number.
    """
    slopes = "gradients" in wanted
    with torch.inference_mode(False), torch.set_grad_enabled(slopes), model.trace(inputs) as tracer:
        answer = nnsight.save(_forward(steps, at, metric, sets, blends, wanted))
        inner.stop(model, tracer)
    return answer


def _forward(
    steps: list, at: torch.Tensor, metric: LoweredMetric | None, sets: dict, blends: dict, wanted: tuple
) -> dict:
    slopes, rows = "gradients" in wanted, torch.arange(len(at))
    nodes: list = []
    read: list = []
    for step in steps:
        value = places.fetch(step.place, None, len(at))
        if step.kind == "read":
            read.append(value[rows.to(value.device), at.to(value.device)])
            continue
        new = value
        if step.number in sets:
            new = sets[step.number].to(value.device, value.dtype)
        elif step.number in blends:
            other, keep = (v.to(value.device, value.dtype) for v in blends[step.number])
            new = other + keep * (value - other)
        if slopes:  # a tensor of its own: what else reads the same value is not this place
            new = new.view_as(new) if new.requires_grad else new.detach().requires_grad_(True)
        if slopes or new is not value:
            places.put(step.place, new)
        nodes.append(new)
    out: dict = {}
    if "values" in wanted:
        out["values"] = [v.detach().float().cpu().clone() for v in nodes]
    if metric is None:
        return out | {"metric": [v.detach().float().cpu().clone() for v in read]}
    with exactly(read[-1]):
        scores = metric.function(read, *metric.args)
    out["metric"] = scores.detach().cpu()
    if slopes:
        gradients = torch.autograd.grad(scores.sum(), nodes, allow_unused=True)
        empty = [torch.zeros_like(v) if g is None else g for v, g in zip(nodes, gradients, strict=True)]
        out["gradients"] = [g.detach().float().cpu() for g in empty]
    return out


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value if value.dtype == torch.float64 else value.float()
