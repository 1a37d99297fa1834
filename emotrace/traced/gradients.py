"""Gradients: one forward, and one backward pass per label, from a read-out at one token to the places before it.

A *program* has steps `Shift`, `Rms` and, last, `Read`. A shift adds ``factor · δ`` with δ = 0 at the token of each prompt;
what a backward pass leaves at δ is the derivative of the read-out along a shift of that place. Weights are not touched:
nothing is written to their ``.grad``, and no gradient of theirs is computed.
"""

from __future__ import annotations

import nnsight
import torch

from emotrace.traced import caches, inner, places
from emotrace.traced.caches import BeginningRecipe, Setup
from emotrace.traced.model import TracedModel
from emotrace.traced.precision import exactly


def slopes(
    model: TracedModel, inputs: dict, program: list, at: list, covectors: torch.Tensor, along: torch.Tensor
) -> tuple:
    """How fast projections of a read-out change where places are shifted along given directions.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        program: steps `Shift`, `Rms` and, last, `Read`.
        at: column of the token, one per row.
        covectors: ``[label, width]``, what the read-out is projected on.
        along: ``[shift, label, width]``, the direction of each shift.

    Returns:
        On the CPU: derivatives ``[label, shift, row]``, projections ``[label, row]``, RMS of the places ``[rms, row]``.
    """
    with torch.inference_mode(False), torch.enable_grad(), model.trace(inputs) as tracer:
        answer = nnsight.save(_slopes(program, at, covectors, along))
        inner.stop(model, tracer)
    return answer


def behind(
    model: TracedModel, inputs: dict, recipe: BeginningRecipe | None, setup: Setup, program: list, at: list,
    covectors: torch.Tensor, along: torch.Tensor, memo: dict,
) -> tuple:  # fmt: skip
    """As `slopes`, of rows that begin with what a recipe of `caches` makes."""
    return slopes(model, caches.begun(model, inputs, recipe, setup, memo), program, at, covectors, along)


def available(model: TracedModel, inputs: dict, program: list, width: int) -> bool:
    """Whether a trace can differentiate through the model, where it runs: one shift, one read-out, and a slope that is not 0.

    No graph crosses from a block to a model that runs apart from it; a value that is to be differentiated would only disturb it.
    """
    if inner.weightless(model):
        return False
    with torch.inference_mode(False), torch.enable_grad(), model.trace(inputs) as tracer:
        answer = nnsight.save([_sloping(program, inputs["input_ids"].shape[0], width)])
        inner.stop(model, tracer)
    return answer[0]


def _sloping(program: list, rows: int, width: int) -> bool:
    """Asked inside the trace: an error that leaves one puts a block and a model that run apart out of step."""
    ones = torch.ones((1, width))
    try:
        slope = _slopes(program, [0] * rows, ones, ones[None])[0]
    except Exception:  # in whatever words a server says that it keeps no graph
        return False
    return bool(torch.isfinite(slope).all()) and bool((slope != 0).any())


def _slopes(program: list, at: list, covectors: torch.Tensor, along: torch.Tensor) -> tuple:
    rows = torch.arange(len(at))
    shifts: list[torch.Tensor] = []
    sizes: list[torch.Tensor] = []
    out = torch.zeros(())
    for step in program:
        value = places.fetch(step.place, None, len(at))
        here = torch.tensor(at, device=value.device)
        if step.kind == "shift":
            zero = torch.zeros((len(at), 1, value.shape[-1]), dtype=value.dtype, device=value.device)
            shifts.append(zero.requires_grad_(True))
            delta = step.factor * shifts[-1]
            if value.shape[1] > 1:
                columns = torch.arange(value.shape[1], device=value.device)
                delta = delta * (columns[None, :] == here[:, None])[..., None]
            places.add(step.place, delta)
            continue
        token = _wide(value[rows.to(value.device), here])
        if step.kind == "rms":
            sizes.append(token.detach().square().mean(-1).sqrt())
        else:
            out = token
    with exactly(out):
        scores = out @ covectors.to(out.device, out.dtype).T
        slopes = _backward(scores, shifts, along)
    return slopes, scores.detach().T.cpu(), _stacked(sizes, out, len(at))


def _backward(scores: torch.Tensor, shifts: list, along: torch.Tensor) -> torch.Tensor:
    """Rows do not depend on each other, so the gradient of their sum holds each row's own."""
    by_label = []
    for label in range(scores.shape[1]):
        last = label == scores.shape[1] - 1
        grads = torch.autograd.grad(scores[:, label].sum(), shifts, retain_graph=not last)
        dots = []
        for grad, direction in zip(grads, along[:, label], strict=True):
            g = _wide(grad[:, 0])
            dots.append((g @ direction.to(g.device, g.dtype)).to(scores.device))
        by_label.append(torch.stack(dots))
    return torch.stack(by_label).cpu()


def _stacked(sizes: list, like: torch.Tensor, rows: int) -> torch.Tensor:
    if not sizes:
        return torch.zeros((0, rows))
    return torch.stack([size.to(like.device) for size in sizes]).cpu()


def _wide(value: torch.Tensor) -> torch.Tensor:
    """At least float32: products of half-precision numbers are summed in float32."""
    return value if value.dtype == torch.float64 else value.float()
