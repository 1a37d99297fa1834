"""Rewiring inside a trace: forwards in which every reader of the residual stream has an input of its own.

A reader's input goes through its norm and its projection apart from the model's. Where the weights are not beside the block,
both are called where they are, and what heads write comes by calls, once for all forwards of a job.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import nnsight
import torch

from emotrace.traced import inner, places, weights
from emotrace.traced.circuits import LoweredMetric
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
from emotrace.traced.weights import Spec


class HeadProjection(NamedTuple):
    """What makes the queries, the keys or the values of a layer.

    Attributes:
        place: of its output.
        envoy: of itself.
        columns: of its output, that each reader makes.
        order: when it runs; the same for those that are one module.
    """

    place: Place
    envoy: Any
    columns: list
    order: float


class MlpReader(NamedTuple):
    """The MLP of a layer as a reader.

    Attributes:
        stream: place of the residual that it reads.
        norm: envoy of what it reads through.
        normed: place of the output of that.
    """

    stream: Place
    norm: Any
    normed: Place


class Layer(NamedTuple):
    """Readers and writers of one layer, of `emotrace.discovery.wiring`.

    Attributes:
        stream: place of the residual that attention reads.
        norm: envoy of what it reads through.
        projections: `HeadProjection` s of queries, keys and values.
        z: place of what heads write, before the output projection.
        heads: how many.
        out: `Spec` of the output projection.
        mlp: `MlpReader`, or None where it neither reads nor writes.
        mlp_out: place of what the MLP writes.
        scale: of it.
    """

    stream: Place
    norm: Any
    projections: list
    z: Place
    heads: int
    out: Spec
    mlp: Any
    mlp_out: Place
    scale: float


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


class Cut(NamedTuple):
    """What one forward takes away: rows of a batch, as often as ``cut`` has rows for.

    Attributes:
        inputs: ids, mask and whatever else the forward takes.
        at: ``[row]``, the column where the metric reads.
        metric: what is measured.
        cut: ``[row, reader, writer]``: 1 takes an edge away, 0 leaves it.
    """

    inputs: dict
    at: torch.Tensor
    metric: LoweredMetric
    cut: torch.Tensor


def rewired(model: TracedModel, wired: Wired, others: list, cuts: list, live: bool) -> list:
    """Forwards in which every reader gets its own residual stream: x − Σ_s cut[reader, s] · (a_s − other_s).

    Args:
        model: an nnsight model.
        wired: what is rewired.
        others: of every writer, in order, what stands for it: ``[row, token, d]`` of the input, and of each layer
            ``[row, token, head · head_dim]`` of z and ``[row, token, d]`` of the MLP.
        cuts: a `Cut` for each forward.
        live: whether cuts are differentiated.

    Returns:
        For each forward ``metric`` ``[row]`` and, where live, ``gradient`` of its sum with respect to ``cut``; on the CPU.
    """
    written = [matrix(model, layer.out, layer.heads) for layer in wired.layers]
    return [_once(model, wired, written, others, one, live) for one in cuts]


def sizes(model: TracedModel, specs: list, heads: list, changes: list) -> list:
    """By how much what each head writes changes: ``[row, head]`` of each layer, lengths summed over tokens.

    Args:
        model: an nnsight model.
        specs: `Spec` of each layer's output projection.
        heads: how many each has.
        changes: of z, ``[row, token, head · head_dim]``.
    """
    found = []
    for spec, n, change in zip(specs, heads, changes, strict=True):
        wrote = matrix(model, spec, n).float().cpu()
        found.append(torch.einsum("bthk,hkd->bthd", change.unflatten(-1, (n, -1)), wrote).norm(dim=-1).sum(1))
    return found


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


def matrix(model: TracedModel, spec: Spec, heads: int) -> torch.Tensor:
    """``[head, head_dim, d_model]``, what z writes."""
    out = weights.output_projection(model, spec)
    whole = out.weight if spec.scale == 1.0 else out.matrix * spec.scale
    return whole.detach().unflatten(0, (heads, -1))


def rows_of(module: Any) -> tuple:
    """Weight ``[out, in]`` and bias of a Linear or a Conv1D."""
    weight = module.weight
    return (weight.T if type(module).__name__ == "Conv1D" else weight), getattr(module, "bias", None)


def into(norm: Any, x: torch.Tensor, covectors: torch.Tensor) -> torch.Tensor:
    """Covectors ``[reader, row, token, d]`` behind a norm as covectors before it, at x ``[row, token, d]``."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().expand(covectors.shape).clone().requires_grad_(True)
        return torch.autograd.grad(_apart(norm, leaf), leaf, covectors)[0]


def _once(model: TracedModel, wired: Wired, written: list, others: list, one: Cut, live: bool) -> dict:
    with torch.inference_mode(False), torch.set_grad_enabled(live), model.trace(one.inputs) as tracer:
        answer = nnsight.save(_rewired(model, wired, written, others, one, live))
        inner.stop(model, tracer)
    return answer


def _rewired(model: TracedModel, wired: Wired, matrices: list, others: list, one: Cut, live: bool) -> dict:
    at, cut = one.at, one.cut.detach().requires_grad_(live)
    times = len(at) // len(others[0])
    written: list = []  # [row, token, d] of each writer, minus what stands for it
    reader = 0

    def changed(value: torch.Tensor, number: int) -> torch.Tensor:
        return value - others[number].repeat(times, 1, 1).to(value)

    for n, layer in enumerate(wired.layers):
        x = places.fetch(layer.stream, None, len(at))
        if n == 0:
            written.append(changed(x, 0))
        streams = _streams(x, cut, written, reader, sum(len(p.columns) for p in layer.projections))
        reader += len(streams)
        normed = _called(model, layer.norm, streams)
        for projection, columns in _placed(layer.projections):
            places.put(projection.place, _projected(model, projection.envoy, normed, columns))
        change = changed(places.fetch(layer.z, None, len(at)), 2 * n + 1).unflatten(-1, (layer.heads, -1))
        written += list(torch.einsum("bthk,hkd->hbtd", change, matrices[n].to(change)))
        if layer.mlp is None:
            continue
        x = places.fetch(layer.mlp.stream, None, len(at))
        places.put(layer.mlp.normed, _called(model, layer.mlp.norm, _streams(x, cut, written, reader, 1))[0])
        reader += 1
        written.append(layer.scale * changed(places.fetch(layer.mlp_out, None, len(at)), 2 * n + 2))
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
    scores = one.metric.function(read, *one.metric.args)
    answer = {"metric": scores.detach().cpu()}
    if live:
        answer["gradient"] = torch.autograd.grad(scores.sum(), cut)[0].cpu()
    return answer


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


def _projected(model: TracedModel, envoy: Any, normed: torch.Tensor, columns: list) -> torch.Tensor:
    """The output of a projection of which each reader's columns follow from that reader's own stream."""
    weight, bias = rows_of(envoy._module)
    out = torch.zeros((*normed.shape[1:-1], weight.shape[0]), dtype=normed.dtype, device=normed.device)
    whole = envoy(normed[[reader for reader, _ in columns]]) if inner.weightless(model) else None
    parts, order = [], []
    for number, (reader, mine) in enumerate(columns):
        if whole is not None:
            parts.append(whole[number][..., mine])
        else:
            part = normed[reader] @ weight[mine].T
            parts.append(part if bias is None else part + bias[mine])
        order.append(mine)
    index = torch.cat(order).to(out.device)
    return out.index_copy(-1, index, torch.cat(parts, -1))


def _called(model: TracedModel, envoy: Any, x: torch.Tensor) -> torch.Tensor:
    """A module on values of our own, where its weights are."""
    return envoy(x) if inner.weightless(model) else _apart(envoy._module, x)


def _apart(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A module on values of our own, past the interleaver that sits in its ``forward``."""
    return type(module).forward(module, x)
