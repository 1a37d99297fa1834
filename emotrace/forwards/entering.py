"""Entering: where a model runs, and one trace at a time there, with the inputs that it takes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch

from emotrace.forwards import attention
from emotrace.identity import refuse_changed
from emotrace.remote import Backend, Request
from emotrace.sites import LanguageModel

R = TypeVar("R")

_LOCKS: weakref.WeakKeyDictionary[torch.nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def lock(model: LanguageModel) -> threading.RLock:
    """The lock of a model: nnsight's interleaver belongs to one thread."""
    return _LOCKS.setdefault(model._module, threading.RLock())


@contextmanager
def locked(model: LanguageModel) -> Iterator[None]:
    """One trace at a time per model."""
    with lock(model), attention.grouped():
        yield


class Here:
    """In this process: the `emotrace.remote.Backend` of a model that was loaded with its weights."""

    name, copies, streams, resumes, traffic = "local", False, True, False, "nothing left this computer"
    gradients: bool | None = True
    limit: int | None = None

    def holds(self, model: LanguageModel) -> bool:
        """Whether the weights were loaded."""
        return not any(p.is_meta for p in model._module.parameters())

    def call(self, model: LanguageModel, function: Callable[..., R], args: tuple) -> R:
        """``function(model, *args)``."""
        with locked(model):
            return function(model, *args)

    def keeping(self, model: LanguageModel, log: Path | None) -> AbstractContextManager[None]:
        """Nothing: what runs here ends with whoever asked for it."""
        return nullcontext()

    def results(
        self,
        model: LanguageModel,
        requests: Iterable[Request],
        log: Path | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[Request, Any]]:
        """Requests with their answers, one after the other."""
        for request in requests:
            if request.here is None:
                yield request, self.call(model, request.function, request.args())
                continue
            with locked(model):
                value = request.here()
            yield request, value


HERE = Here()


def backend(model: LanguageModel) -> Backend:
    """Where a model runs."""
    return HERE if model.sites.remote is None else model.sites.remote


def enter(model: LanguageModel, function: Callable[..., R], *args: object) -> R:
    """``function(model, *args)``, a function of `emotrace.traced`, where the model lives; one at a time."""
    return backend(model).call(model, function, args)


def keeping(model: LanguageModel, out: str | Path | None) -> AbstractContextManager[None]:
    """While it is open, jobs of a server are found again by the same call after a kill; their ids lie beside what it writes.

    Args:
        model: from `emotrace.load`.
        out: file or folder that is written; None where nothing is, and nothing is kept.

    Raises:
        EmotraceError: where something is written, for a model whose weights were changed since it was loaded.
    """
    if out is not None:
        refuse_changed(model)
    log = None if out is None else Path(out).with_name(f"{Path(out).name}.jobs")
    return backend(model).keeping(model, log)


def inputs(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Ids and mask of a padded batch, where the model takes them."""
    weights = next(model._module.parameters())
    device = torch.device("cpu") if weights.is_meta else weights.device
    return {name: value.to(device) for name, value in model.sites.encoder.batch(sequences).items()}
