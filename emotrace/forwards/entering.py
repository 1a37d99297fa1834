"""Entering: one trace at a time, here or on a server, with the inputs that a model takes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from emotrace.sites import LanguageModel

_LOCKS: weakref.WeakKeyDictionary[torch.nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def lock(model: LanguageModel) -> threading.RLock:
    """The lock of a model: nnsight's interleaver belongs to one thread."""
    return _LOCKS.setdefault(model._module, threading.RLock())


@contextmanager
def locked(model: LanguageModel) -> Iterator[None]:
    """One trace at a time per model."""
    with lock(model):
        yield


def enter(model: LanguageModel, function: Callable[..., Any], *args: Any) -> Any:
    """``function(model, *args)``, a function of `emotrace.traced`, where the model lives; one at a time."""
    remote = model.sites.remote
    if remote is not None:
        return remote.call(model, function, args)
    with locked(model):
        return function(model, *args)


def inputs(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Ids and mask of a padded batch, where the model takes them."""
    weights = next(model._module.parameters())
    device = torch.device("cpu") if weights.is_meta else weights.device
    return {name: value.to(device) for name, value in model.sites.encoder.batch(sequences).items()}
