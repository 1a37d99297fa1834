"""Precision: our own arithmetic is done in the numbers that we say, whatever a server does to the model's."""

from __future__ import annotations

import torch


def exactly(like: torch.Tensor) -> torch.autocast:
    """A context without autocast for a tensor's device."""
    return torch.autocast(like.device.type, enabled=False)
