"""Reduce: what a function makes of activations at the last token, chunk by chunk, where the model lives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.forwards.capturing import afar, memory
from emotrace.forwards.capturing.job import Job
from emotrace.forwards.capturing.prepare import planned
from emotrace.forwards.entering import enter
from emotrace.forwards.finite import refusal
from emotrace.sites import LanguageModel, Site
from emotrace.traced.finite import finite


def reduced(
    model: LanguageModel, chunks: Iterable[tuple[Prompts, tuple[Any, ...]]], sites: Sequence[str | Site] | str, function: Any, *,
    layers: Iterable[int] | int | None = None, edits: Sequence[Edit] | None = None, batch_size: int = 32,
) -> Iterator[Any]:  # fmt: skip
    """Chunks of prompts, and what a function makes of their activations at the last token, where the model lives.

    Args:
        model: from `emotrace.load`.
        chunks: prompts, and what else the function takes for them.
        sites: as `capture` takes them.
        function: of `emotrace.traced`: ``function(model, values, *args)`` with a tensor ``[cell, prompt, width]`` per
            variable, cells in the order of the store.
        layers: as of `capture`.
        edits: as of `capture`.
        batch_size: as of `capture`.
    """
    exact: bool | None = None
    jobs: list[Job] = []

    def prepared() -> Iterator[tuple[Job, Any, tuple[Any, ...]]]:
        nonlocal exact
        for prompts, args in chunks:
            job, plan = planned(model, prompts, sites, layers, "last", edits, batch_size, True, "none", 1 << 62, 0)
            job.exact, plan = exact, replace(plan, row_group=plan.n_rows)
            jobs.append(job)
            yield job, plan, args
            exact = job.exact

    remote = model.sites.remote
    if remote is not None:
        for _, (value, fired) in remote.results(model, afar.reductions(prepared(), function)):
            job = jobs.pop(0)
            for counts in fired:
                job.count(counts)
            edits_.refuse_silent(job.edits, job.fired)
            yield _checked(value, function, job)
        return
    for job, plan, args in prepared():
        arrays = {v.name: memory.empty(v.shape(plan.n_rows), v.dtype) for v in plan.variables}
        job.fill(plan.groups[0], arrays, _Silent())
        edits_.refuse_silent(job.edits, job.fired)
        found = enter(model, function, [_cells(v, arrays[v.name]) for v in plan.variables], *args)
        yield _checked(found, function, job)


def _cells(variable: Any, array: np.ndarray) -> torch.Tensor:
    """``[cell, row, width]``."""
    return torch.from_numpy(array.reshape(math.prod(variable.cell_shape), -1, math.prod(variable.rest_shape)))


def _checked(found: Any, function: Any, job: Job) -> Any:
    """What a function made of a chunk, if it is finite."""
    if not all(finite(x) for x in _tensors(found)):
        raise refusal(function.__name__, job.model, map(job.item, range(len(job.prompts))), job.edits)
    return found


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested containers."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (tuple, list, dict)):
        for part in found.values() if isinstance(found, dict) else found:
            yield from _tensors(part)


class _Silent:
    def update(self, n: int) -> None:
        """Nothing is shown."""
