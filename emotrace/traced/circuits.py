"""Circuits inside a trace: forwards in which nodes are blended with other values, and in which every reader has its own input.

Steps are a `Node` at each place where components write, and a `Read` at each that the metric reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import nnsight
import torch

from emotrace.traced import inner, places
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
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


class HeadProjection(NamedTuple):
    """What makes the queries, the keys or the values of a layer.

    Attributes:
        place: of its output.
        module: itself.
        columns: of its output, that each reader makes.
        order: when it runs; the same for those that are one module.
    """

    place: Place
    module: Any
    columns: list
    order: float


class MlpReader(NamedTuple):
    """The MLP of a layer as a reader.

    Attributes:
        stream: place of the residual that it reads.
        norm: module that it reads through.
        normed: place of the output of that.
    """

    stream: Place
    norm: Any
    normed: Place


class Layer(NamedTuple):
    """Readers and writers of one layer, of `emotrace.discovery.wiring`.

    Attributes:
        stream: place of the residual that attention reads.
        norm: module that it reads through.
        projections: `HeadProjection` s of queries, keys and values.
        z: place of what heads write, before the output projection.
        matrix: ``[head, head_dim, d_model]``, what z writes.
        mlp: `MlpReader`, or None where it neither reads nor writes.
        mlp_out: place of what the MLP writes.
        scale: of it.
    """

    stream: Place
    norm: Any
    projections: list
    z: Place
    matrix: torch.Tensor
    mlp: Any
    mlp_out: Place
    scale: float


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


class Wired(NamedTuple):
    """What is rewired, and where the metric sees it.

    Attributes:
        layers: `Layer` s.
        last: place of the stream that the metric sees.
        steps: `Read` s of what the metric reads after it; empty where it reads that stream itself.
    """

    layers: list
    last: Place
    steps: list


def rewired(
    model: TracedModel, inputs: dict, wired: Wired, at: torch.Tensor, metric: LoweredMetric, others: list, cut: torch.Tensor,
    live: bool,
) -> dict:  # fmt: skip
    """One forward in which every reader gets its own residual stream: x − Σ_s cut[reader, s] · (a_s − other_s).

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        wired: what is rewired.
        at: ``[row]``, the column where the metric reads.
        metric: what is measured.
        others: of every writer, in order, what stands for it: ``[row, token, d]`` of the input, and of each layer
            ``[row, token, head · head_dim]`` of z and ``[row, token, d]`` of the MLP.
        cut: ``[row, reader, writer]``: 1 takes an edge away, 0 leaves it.
        live: whether ``cut`` is differentiated.

    Returns:
        ``metric`` ``[row]`` and, where live, ``gradient`` of its sum with respect to ``cut``; on the CPU.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(live), model.trace(inputs) as tracer:
        answer = nnsight.save(_rewired(wired, at, metric, others, cut, live))
        inner.stop(model, tracer)
    return answer


def _rewired(
    wired: Wired, at: torch.Tensor, metric: LoweredMetric, others: list, cut: torch.Tensor, live: bool
) -> dict:
    cut = cut.detach().requires_grad_(live)
    written: list = []  # [row, token, d] of each writer, minus what stands for it
    reader = 0
    for n, layer in enumerate(wired.layers):
        x = places.fetch(layer.stream, None, len(at))
        if n == 0:
            written.append(x - others[0].to(x))
        streams = _streams(x, cut, written, reader, sum(len(p.columns) for p in layer.projections))
        reader += len(streams)
        normed = _call(layer.norm, streams)
        for projection, columns in _placed(layer.projections):
            places.put(projection.place, _projected(projection.module, normed, columns))
        heads = places.fetch(layer.z, None, len(at))
        change = (heads - others[2 * n + 1].to(heads)).unflatten(-1, (layer.matrix.shape[0], -1))
        written += list(torch.einsum("bthk,hkd->hbtd", change, layer.matrix.to(heads)))
        if layer.mlp is None:
            continue
        x = places.fetch(layer.mlp.stream, None, len(at))
        places.put(layer.mlp.normed, _call(layer.mlp.norm, _streams(x, cut, written, reader, 1))[0])
        reader += 1
        value = places.fetch(layer.mlp_out, None, len(at))
        written.append(layer.scale * (value - others[2 * n + 2].to(value)))
    rows = torch.arange(len(at))
    x = places.fetch(wired.last, None, len(at))
    x = _streams(x, cut, written, reader, 1)[0]
    read = []
    if not wired.steps:
        read.append(x[rows, at])
    else:
        places.put(wired.last, x)
    for step in wired.steps:
        value = places.fetch(step.place, None, len(at))
        read.append(value[rows.to(value.device), at.to(value.device)])
    scores = metric.function(read, *metric.args)
    answer = {"metric": scores.detach().cpu()}
    if live:
        answer["gradient"] = torch.autograd.grad(scores.sum(), cut)[0].cpu()
    return answer


def following(model: TracedModel, inputs: dict, given: list, last: Place) -> torch.Tensor:
    """What a place holds ``[row, token, width]`` where others before it were given values.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        given: ``(place, value)``, in order of execution.
        last: place that is read.
    """
    with torch.no_grad(), model.trace(inputs) as tracer:
        for place, value in given:
            places.put(place, value)
        read = nnsight.save([places.fetch(last, None, len(inputs["input_ids"])).float().cpu().clone()])
        inner.stop(model, tracer)
    return read[0]


def _streams(x: torch.Tensor, cut: torch.Tensor, written: list, reader: int, n: int) -> torch.Tensor:
    """``[reader, row, token, d]``: the stream of each of the next n readers."""
    cuts = cut[:, reader : reader + n, : len(written)].to(x)
    return x - torch.einsum("brs,sbtd->rbtd", cuts, torch.stack(written))


def _placed(projections: list) -> list:
    """Projections of one attention in order of execution, fused ones once, with ``(reader, columns)`` of all that each makes."""
    fused: dict = {}
    reader = 0
    for projection in projections:
        _, columns = fused.setdefault(projection.order, (projection, []))
        columns.extend((reader + i, c) for i, c in enumerate(projection.columns))
        reader += len(projection.columns)
    return [fused[order] for order in sorted(fused)]


def _projected(module: Any, normed: torch.Tensor, columns: list) -> torch.Tensor:
    """The output of a projection of which each reader's columns follow from that reader's own stream."""
    matrix, bias = rows_of(module)
    out = torch.zeros((*normed.shape[1:-1], matrix.shape[0]), dtype=normed.dtype, device=normed.device)
    parts = []
    order = []
    for reader, mine in columns:
        part = normed[reader] @ matrix[mine].T
        parts.append(part if bias is None else part + bias[mine])
        order.append(mine)
    index = torch.cat(order).to(out.device)
    return out.index_copy(-1, index, torch.cat(parts, -1))


def rows_of(module: Any) -> tuple:
    """Weight ``[out, in]`` and bias of a Linear or a Conv1D."""
    weight = module.weight
    return (weight.T if type(module).__name__ == "Conv1D" else weight), getattr(module, "bias", None)


def _call(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A module on values of our own, past the interleaver that sits in its ``forward``."""
    return type(module).forward(module, x)


def into(norm: Any, x: torch.Tensor, covectors: torch.Tensor) -> torch.Tensor:
    """Covectors ``[reader, row, token, d]`` behind a norm as covectors before it, at x ``[row, token, d]``."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().expand(covectors.shape).clone().requires_grad_(True)
        return torch.autograd.grad(_call(norm, leaf), leaf, covectors)[0]


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value if value.dtype == torch.float64 else value.float()
