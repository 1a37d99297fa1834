"""Unembedding: the final norm and some rows of the unembedding, and what a model makes of them in one small forward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from emotrace.traced import called, inner, places, weights
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place


class End(NamedTuple):
    """The end of a model.

    Attributes:
        state: ``resid_post`` of the last layer.
        norm: envoy of the final norm.
        head: input of the unembedding.
    """

    state: Place
    norm: Any
    head: Place


def unembedded(model: TracedModel, inputs: dict, end: End, ids: list) -> tuple:
    """Rows of the unembedding, the norm before it, and values of a forward of one row to hold them against.

    Args:
        model: an nnsight model with weights.
        inputs: ids and mask of one row.
        end: where the end of the model is.
        ids: tokens.

    Returns:
        On the CPU: states ``[token, d]``, what the unembedding was given ``[token, d]``, the model's logits ``[token, id]``; rows
        ``[id, d]`` and biases ``[id]`` of the unembedding, gain and bias of the norm ``[d]``, all float64; eps, and whether the
        norm takes the mean away.

    Raises:
        ValueError: for a norm that is neither RMSNorm nor LayerNorm, or an unembedding without one row per token.
    """
    chosen = torch.tensor(ids)
    found: dict = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.detach().double().cpu()

    with torch.no_grad(), model.trace(inputs):
        keep("state", places.fetch(end.state, None, 1)[0])
        keep("given", places.fetch(end.head, None, 1)[0])
        whole: Any = model.output
        keep("logits", whole.logits[0][:, chosen.to(whole.logits.device)])
    d = found["state"].shape[-1]
    norm = weights.norm_at(model, end.norm, d)
    matrix = getattr(end.head.envoy._module, "weight", None)
    if norm is None or not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.shape[-1] != d:
        raise ValueError("its final norm or its unembedding is no norm and one row per token")
    rows, added = _rows(model, end.head.envoy, matrix, chosen)
    values = (found["state"], found["given"], found["logits"], rows, added, norm.gain.cpu(), norm.bias.cpu())
    return (*values, float(norm.eps), bool(norm.centred))


def _rows(model: TracedModel, envoy: Any, matrix: Tensor, chosen: Tensor) -> tuple:
    """Rows and biases of the unembedding, float64; by calls where its weights are not beside the block."""
    if inner.weightless(model):
        columns: list = []
        called.each(
            model, envoy, matrix.shape[1], matrix.shape[0], lambda block: columns.append(block[:, chosen].double())
        )
        bias = called.bias(model, envoy, matrix.shape[1])
        rows = torch.cat(columns).T
        return rows, torch.zeros(len(chosen)).double() if bias is None else bias[chosen].double()
    here = chosen.to(matrix.device)
    bias = getattr(envoy._module, "bias", None)
    added = bias.detach()[here].double().cpu() if isinstance(bias, Tensor) else torch.zeros(len(here)).double()
    return matrix.detach()[here].double().cpu(), added
