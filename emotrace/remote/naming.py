"""Naming: what tells a request from all others: a digest of all that it depends on, the same in every process.

It depends on a function and its arguments (`name_of`), and on the model and the code that are sent with them (`settled`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from emotrace import traced
from emotrace.traced.inner import Envoy


def name_of(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The name of ``function(model, *args)``.

    Args:
        function: of `emotrace.traced`.
        args: plain values, tensors, places of a model, and objects of a few attributes.
    """
    digest = hashlib.sha256()
    for part in _parts((function, args)):
        digest.update(part)
    return f"{function.__name__}:{digest.hexdigest()[:24]}"


def settled(model_key: str) -> str:
    """What all requests of a model have in common: the model, and the code that makes and answers them."""
    return hashlib.sha256(f"{model_key} {version('emotrace')} {_code()}".encode()).hexdigest()[:16]


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(traced.__path__[0]).glob("*.py")):
        digest.update(f"{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()


def _parts(value: object) -> Iterator[bytes]:
    """A value as bytes, each of them with its kind before it."""
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu().contiguous()
        yield f"tensor {held.dtype} {tuple(held.shape)} ".encode()
        yield held.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Envoy):
        yield f"module {value.path} ".encode()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)} ".encode()
        for key in sorted(value, key=repr):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, (tuple, list)):
        yield f"{type(value).__name__} {len(value)} ".encode()
        for part in value:
            yield from _parts(part)
    elif isinstance(value, (set, frozenset)):
        yield from _parts(sorted(value, key=repr))
    elif value is None or isinstance(value, (str, bytes, int, float, complex, torch.dtype, torch.device)):
        yield f"{type(value).__name__} {value!r} ".encode()
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"function {value.__module__}.{value.__qualname__} ".encode()
    else:
        yield f"object {type(value).__qualname__} ".encode()
        held = value.to_dict() if isinstance(value, GenerationConfig) else getattr(value, "__dict__", repr(value))
        yield from _parts(held)
