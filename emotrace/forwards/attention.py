"""Attention: grouped keys and values are attended to as they are, where transformers would first repeat them for every head.

With a mask it repeats them, as is right for CUDA: for every new token the cache of every layer is copied as often as heads share
it. On a CPU torch's own kernel takes grouped heads with a mask, and gives the same bits; what is differentiated is left as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from transformers.integrations import sdpa_attention

ASKED = "use_gqa_in_sdpa"
"""What transformers asks before it repeats them."""
_HERE = threading.local()


@contextmanager
def grouped() -> Iterator[None]:
    """Nothing is repeated on a CPU in what this thread runs meanwhile; elsewhere, and for others, transformers decides."""
    _installed()
    before, _HERE.on = getattr(_HERE, "on", False), True
    try:
        yield
    finally:
        _HERE.on = before


@cache
def _installed() -> None:
    given = getattr(sdpa_attention, ASKED, None)
    if given is None:  # of another release, which decides otherwise
        return

    def asked(attention_mask: torch.Tensor | None, key: torch.Tensor, *rest: torch.Tensor) -> bool:
        here = getattr(_HERE, "on", False) and key.device.type == "cpu" and not key.requires_grad
        if here and all(value.shape[-1] == key.shape[-1] for value in rest):
            return True
        return given(attention_mask, key, *rest)

    setattr(sdpa_attention, ASKED, asked)
