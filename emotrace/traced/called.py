"""Called: weights of modules that a block holds without them, taken by calls of the modules where the model lives.

A linear map of the rows of the identity is its matrix; so it comes in blocks of rows. What it is given has the dtype of what it
is given in a forward: that of the block's own, weightless modules is another. What comes is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emotrace.traced.model import TracedModel

BLOCK_BYTES = 16 << 20
"""Of the rows that come at a time."""
LIFT = 1024.0
"""By which rows are enlarged where a bias is added to them, so that its rounding does not reach them."""


def taken(model: TracedModel) -> int:
    """Bytes of weights that came by calls in this job."""
    return model.__dict__.get("emotrace_taken", 0)


def each(model: TracedModel, envoy: Any, width: int, d_model: int, keep: Callable[[Tensor], None]) -> None:
    """Hand on the rows of a map ``x·matrix + bias``, without the bias, ``[row, d_model]`` at a time.

    Args:
        model: an nnsight model.
        envoy: of the map.
        width: of its input.
        d_model: of its output.
        keep: takes the rows, in order.
    """
    added = bias(model, envoy, width)
    lift = 1.0 if added is None else LIFT
    with torch.no_grad(), model.trace(_inputs()):
        like = envoy.input
        step = max(1, BLOCK_BYTES // (4 * max(width, d_model)))
        for at in range(0, width, step):
            rows = torch.zeros((min(step, width - at), width), dtype=like.dtype, device=like.device)
            rows[torch.arange(len(rows)), torch.arange(at, at + len(rows))] = lift
            found = _counted(model, envoy(rows))
            keep(found if added is None else (found.double() - added.double()).div(lift).float())


def bias(model: TracedModel, envoy: Any, width: int) -> Tensor | None:
    """What a map adds, ``[d_model]`` float32; None where it has none."""
    if getattr(envoy._module, "bias", None) is None:
        return None
    return through(model, envoy, torch.zeros((1, width)))[0].float()


def through(model: TracedModel, envoy: Any, x: Tensor) -> Tensor:
    """What a module makes of rows ``[row, width]``, in its own dtype."""
    with torch.no_grad(), model.trace(_inputs()):
        like = envoy.input
        step = max(1, BLOCK_BYTES // (4 * x.shape[-1]))
        parts = [_counted(model, envoy(part.to(like.device, like.dtype))) for part in x.split(step)]
        made = [torch.cat(parts), like.dtype]
    return made[0]


def _inputs() -> dict:
    """The least that any model runs on."""
    return {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones((1, 2), dtype=torch.long)}


def _counted(model: TracedModel, found: Tensor) -> Tensor:
    object.__setattr__(model, "emotrace_taken", taken(model) + found.numel() * found.element_size())
    return found
