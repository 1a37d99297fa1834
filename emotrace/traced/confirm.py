"""Confirm: on the server, that the residual stream of a model is what its shrunken twin showed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from emotrace.traced import inner, places, runs
from emotrace.traced.model import TracedModel
from emotrace.traced.steps import Read


class Closure(NamedTuple):
    """By which numbers a layer's closure knows what it reads.

    Attributes:
        pre: ``resid_pre``.
        attn: ``attn_out``.
        mlp: ``mlp_out``.
        post: ``resid_post``.
        scale: c of the residual stream; None in a post-LN layer.
        norms: `PostNorms` of a post-LN layer; None elsewhere.
    """

    pre: int
    attn: int
    mlp: int
    post: int
    scale: Any = None
    norms: Any = None


class PostNorms(NamedTuple):
    """The numbers of the inputs of both norms of a post-LN layer, and of the output of the first."""

    mid_in: int
    post_in: int
    mid: int


def closures(model: TracedModel, inputs: dict, reads: list, layers: list) -> tuple:
    """Largest relative deviation of every layer's closure, in one small forward.

    Args:
        model: an nnsight model.
        inputs: ids and mask.
        reads: sorted steps that read, numbered.
        layers: a `Closure` each.

    Returns:
        ``(deviations, roundings, dtypes, copies)``: max|got − want| / max|like| of every layer; max|want| / max|like|, by
        which rounding is enlarged; the dtype of ``resid_post`` of the last layer, and of the weights, or of what is read
        first where the weights are not beside the block; whether values are handed over as copies.
    """
    seen: dict = {}

    def keep(number, value):
        seen[number] = value.detach().clone()

    runs.capture(model, inputs, reads, keep)
    errors, roundings = [], []
    for layer in layers:
        pre, attn, mlp, post = (_rows(seen[n]) for n in (layer.pre, layer.attn, layer.mlp, layer.post))
        if layer.norms is not None:
            mid_in, post_in, mid = (_rows(seen[n]) for n in layer.norms)
            pairs = [(pre + attn, mid_in, mid_in), (mid + mlp, post_in, post_in)]
        else:
            pairs = [(pre + layer.scale * (attn + mlp), post, post - pre)]
        deviations = [_deviation(*pair) for pair in pairs]
        errors.append(max(e for e, _ in deviations))
        roundings.append(max(r for _, r in deviations))
    last = layers[-1].post
    weights = seen[reads[0].number] if inner.weightless(model) else next(iter(model._module.parameters()))
    return errors, roundings, (str(seen[last].dtype), str(weights.dtype)), copies(model, inputs, reads[0])


def copies(model: TracedModel, inputs: dict, read: Read) -> bool:
    """Whether the same value, read twice, is two tensors."""
    differ: list = []
    read = read._replace(place=read.place._replace(overwritten=False))  # as it is: no copy of ours
    rows = inputs["input_ids"].shape[0]

    def twice(number, value):
        differ.append(value.data_ptr() != places.fetch(read.place, None, rows).data_ptr())

    runs.capture(model, inputs, [read], twice)
    return bool(differ[0])


def _rows(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, value.shape[-1]).double().cpu()


def _deviation(got: torch.Tensor, want: torch.Tensor, like: torch.Tensor) -> tuple:
    size = float(like.abs().max()) or 1.0
    error = float((got - want).abs().max()) / size
    return (error if error == error else float("inf")), float(want.abs().max()) / size
