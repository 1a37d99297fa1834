"""Sizes: payloads without a direction, and strengths that are more than a model's numbers hold, refused before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emotrace.edits.kinds import Add, Edit
from emotrace.labels import EmotraceError
from emotrace.sites import Sites

SMALL, LARGE = 1e-18, 1e18
"""Lengths between which float32 squares a vector without losing it; others are brought to length 1 beforehand."""


def directed(
    tensor: torch.Tensor, edit: Edit, columns: list[int] | None, place: str, names: Sequence[Any] = ()
) -> torch.Tensor:
    """A payload of which only the direction counts, with a length that float32 can square.

    Args:
        tensor: ``[width]``, or one row for each value of a label.
        edit: whose payload it is; returned as it is where its length counts.
        columns: edited columns, of which alone the direction is taken; None for all.
        place: for the message.
        names: values of the label.

    Raises:
        EmotraceError: for a vector of zero in the edited columns.
    """
    if not edit.by_direction:
        return tensor
    whole = columns is None or len(columns) == tensor.shape[-1]
    norms = (tensor if whole else tensor[..., columns]).double().norm(dim=-1, keepdim=True)
    if bool((norms == 0).any()):
        row = int((norms.reshape(-1) == 0).nonzero()[0])
        of = f"the vector of {names[row]!r} is zero: " if tensor.ndim > 1 and len(names) else ""
        scaled = f"scale={edit.scale!r}" if isinstance(edit, Add) else type(edit).__name__
        raise EmotraceError(f"{place}: {of}a zero vector has no direction ({scaled}).")
    extreme = (norms < SMALL) | (norms > LARGE)
    return torch.where(extreme, (tensor.double() / norms).float(), tensor)


def largest(sites: Sites) -> tuple[float, str]:
    """The largest number that the activations of a model hold, and the name of their dtype; a server's are not known."""
    dtype = torch.float32
    if sites._model is not None:
        here = (p for p in sites._model._module.parameters() if p.is_floating_point() and not p.is_meta)
        dtype = next((p.dtype for p in here), dtype)
    return min(torch.finfo(dtype).max, torch.finfo(torch.float32).max), str(dtype).removeprefix("torch.")


def refuse_overflow(
    edit: Edit, payload: torch.Tensor | None, columns: list[int] | None, most: tuple[float, str], place: str
) -> None:
    """Refuse an edit that would write more than a model's numbers hold, whatever the activation is.

    Raises:
        EmotraceError: naming what is too large.
    """
    strength = abs(float(getattr(edit, "strength", 1.0)))
    size, what = strength, f"strength {strength:.3g}"
    if payload is not None and not edit.by_activation:
        v = (payload if columns is None or len(columns) == payload.shape[-1] else payload[..., columns]).double()
        v = v / v.norm(dim=-1, keepdim=True) if edit.by_direction else v
        size, what = strength * float(v.abs().max()), f"{what} times a payload of up to {float(v.abs().max()):.3g}"
    if size > most[0]:
        raise EmotraceError(f"{place}: {what} is more than {most[1]} holds ({most[0]:.3g}).")
