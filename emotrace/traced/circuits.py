"""Circuits inside a trace: forwards in which nodes are blended with other values, and in which every reader has its own input.

A *step* is ``(order, kind, number, place)``, steps sorted by order: kind ``node`` is a place where components write, kind
``metric`` one that the metric reads. A *metric* is ``(function, args)``: ``function(values, *args)`` takes what its places
hold at one token, ``[row, width]`` each, and returns one number per row.
"""

from __future__ import annotations

from typing import Any

import nnsight
import torch

from emotrace.traced import places
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
from emotrace.traced.precision import exactly


def linear(values: list, covectors: torch.Tensor) -> torch.Tensor:
    """⟨value, covector⟩ of each row."""
    return (_wide(values[0]) * covectors.to(values[0].device)).sum(-1)


def divergence(values: list, clean: torch.Tensor) -> torch.Tensor:
    """−KL(clean ‖ now) in nats between the distributions that logits make; 0 at most."""
    now = torch.log_softmax(_wide(values[0]), -1)
    then = torch.log_softmax(clean.to(now.device, now.dtype), -1)
    return -(then.exp() * (then - now)).sum(-1)


def forward(
    model: TracedModel, inputs: dict, steps: list, at: torch.Tensor, metric: tuple | None, sets: dict, blends: dict,
    wanted: tuple,
) -> dict:  # fmt: skip
    """One forward up to the last step.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        steps: see above.
        at: ``[row]``, the column where the metric reads.
        metric: see above; None returns what it would have been given.
        sets: number of a node → ``[row, token, width]`` that takes its place.
        blends: number of a node → ``(other, keep)``: it becomes ``other + keep · (value − other)``, keep ``[row, 1, width]``.
        wanted: of ``values`` (of the nodes, as written) and ``gradients`` (of the metric's sum with respect to them).

    Returns:
        On the CPU: ``metric`` ``[row]`` or the list of its places' values; ``values`` and ``gradients``, lists by number.
    """
    slopes = "gradients" in wanted
    with torch.inference_mode(False), torch.set_grad_enabled(slopes), model.trace(inputs) as tracer:
        answer = nnsight.save(_forward(steps, at, metric, sets, blends, wanted))
        tracer.stop()
    return answer


def _forward(steps: list, at: torch.Tensor, metric: tuple | None, sets: dict, blends: dict, wanted: tuple) -> dict:
    slopes, rows = "gradients" in wanted, torch.arange(len(at))
    nodes: list = []
    read: list = []
    for _, kind, number, place in steps:
        value = places.fetch(place, None, len(at))
        if kind == "metric":
            read.append(value[rows.to(value.device), at.to(value.device)])
            continue
        new = value
        if number in sets:
            new = sets[number].to(value.device, value.dtype)
        elif number in blends:
            other, keep = (v.to(value.device, value.dtype) for v in blends[number])
            new = other + keep * (value - other)
        if slopes:  # a tensor of its own: what else reads the same value is not this place
            new = new.view_as(new) if new.requires_grad else new.detach().requires_grad_(True)
        if slopes or new is not value:
            places.put(place, new)
        nodes.append(new)
    out: dict = {}
    if "values" in wanted:
        out["values"] = [v.detach().float().cpu().clone() for v in nodes]
    if metric is None:
        return out | {"metric": [v.detach().float().cpu().clone() for v in read]}
    with exactly(read[-1]):
        scores = metric[0](read, *metric[1])
    out["metric"] = scores.detach().cpu()
    if slopes:
        gradients = torch.autograd.grad(scores.sum(), nodes, allow_unused=True)
        empty = [torch.zeros_like(v) if g is None else g for v, g in zip(nodes, gradients, strict=True)]
        out["gradients"] = [g.detach().float().cpu() for g in empty]
    return out


def rewired(
    model: TracedModel, inputs: dict, layers: list, last: tuple, steps: list, at: torch.Tensor, metric: tuple | None,
    others: list, cut: torch.Tensor, live: bool,
) -> dict:  # fmt: skip
    """One forward in which every reader gets its own residual stream: x − Σ_s cut[reader, s] · (a_s − other_s).

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        layers: of `emotrace.discovery.wiring`, lowered.
        last: ``(order, place)`` of the stream that the metric sees.
        steps: what the metric reads after it, see above; empty where it reads that stream itself.
        at: ``[row]``, the column where the metric reads.
        metric: see above.
        others: of every writer, in order, what stands for it: ``[row, token, d]`` of the input, and of each layer
            ``[row, token, head · head_dim]`` of z and ``[row, token, d]`` of the MLP.
        cut: ``[row, reader, writer]``: 1 takes an edge away, 0 leaves it.
        live: whether ``cut`` is differentiated.

    Returns:
        ``metric`` ``[row]`` and, where live, ``gradient`` of its sum with respect to ``cut``; on the CPU.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(live), model.trace(inputs) as tracer:
        answer = nnsight.save(_rewired(layers, last, steps, at, metric, others, cut, live))
        tracer.stop()
    return answer


def _rewired(
    layers: list, last: tuple, steps: list, at: torch.Tensor, metric: Any, others: list, cut: torch.Tensor, live: bool
) -> dict:
    cut = cut.detach().requires_grad_(live)
    written: list = []  # [row, token, d] of each writer, minus what stands for it
    reader = 0
    for n, (base, attention, z, mlp, mlp_out) in enumerate(layers):
        x = places.fetch(base, None, len(at))
        if n == 0:
            written.append(x - others[0].to(x))
        norm, projections = attention
        streams = _streams(x, cut, written, reader, sum(len(p[2]) for p in projections))
        reader += len(streams)
        normed = _call(norm, streams)
        for place, module, columns in _placed(projections):
            out = _projected(module, normed, columns)
            places.put(place, out)
        place, matrix = z
        heads = places.fetch(place, None, len(at))
        change = (heads - others[2 * n + 1].to(heads)).unflatten(-1, (matrix.shape[0], -1))
        written += list(torch.einsum("bthk,hkd->hbtd", change, matrix.to(heads)))
        if mlp is None:
            continue
        stream, norm, place = mlp
        x = places.fetch(stream, None, len(at))
        places.put(place, _call(norm, _streams(x, cut, written, reader, 1))[0])
        reader += 1
        place, scale = mlp_out
        value = places.fetch(place, None, len(at))
        written.append(scale * (value - others[2 * n + 2].to(value)))
    rows = torch.arange(len(at))
    x = places.fetch(last[1], None, len(at))
    x = _streams(x, cut, written, reader, 1)[0]
    read = []
    if not steps:
        read.append(x[rows, at])
    else:
        places.put(last[1], x)
    for _, _, _, place in steps:
        value = places.fetch(place, None, len(at))
        read.append(value[rows.to(value.device), at.to(value.device)])
    scores = metric[0](read, *metric[1])
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
        tracer.stop()
    return read[0]


def _streams(x: torch.Tensor, cut: torch.Tensor, written: list, reader: int, n: int) -> torch.Tensor:
    """``[reader, row, token, d]``: the stream of each of the next n readers."""
    cuts = cut[:, reader : reader + n, : len(written)].to(x)
    return x - torch.einsum("brs,sbtd->rbtd", cuts, torch.stack(written))


def _placed(projections: list) -> list:
    """Projections of one attention in order of execution: ``(place, module, [(reader, columns)])``, fused ones once."""
    fused: dict = {}
    reader = 0
    for place, module, columns, order in projections:
        fused.setdefault(order, (place, module, []))
        fused[order][2].extend((reader + i, c) for i, c in enumerate(columns))
        reader += len(columns)
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
