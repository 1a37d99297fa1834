"""Reduce: what a function makes of activations at the last token, chunk by chunk, where the model lives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.forwards.capturing import filling
from emotrace.forwards.capturing.job import CaptureJob
from emotrace.forwards.capturing.prepare import prepared
from emotrace.forwards.entering import backend
from emotrace.forwards.finite import refusal
from emotrace.sites import LanguageModel, Site
from emotrace.traced.finite import finite

R = TypeVar("R")


def reduced(
    model: LanguageModel, chunks: Iterable[tuple[Prompts, tuple[Any, ...]]], sites: Sequence[str | Site] | str | Site,
    function: Callable[...,R], *,
    layers: Iterable[int] | int | None = None, edits: Sequence[Edit] | None = None, batch_size: BatchSize = 32,
) -> Iterator[R]:  # fmt: skip
    """Chunks of prompts, and what a function makes of their activations at the last token, where the model lives.

    Args:
        model: from `emotrace.load`.
        chunks: prompts, and what else the function takes for them.
        sites: as `capture` takes them.
        function: of `emotrace.traced`: ``function(model, values, *args)`` with a tensor ``[cell, prompt, width]`` per
            variable, cells in the order of the store.
        layers: 0-based layers; None for every layer that has the sites.
        edits: applied in the same forward, before the reads of their site.
        batch_size: prompts per forward, or ``auto`` for what fits.
    """
    exact: bool | None = None

    def jobs() -> Iterator[tuple[CaptureJob, Any, tuple[Any, ...]]]:
        nonlocal exact
        for prompts, args in chunks:
            job, plan = prepared(
                model,
                prompts,
                sites,
                layers=layers,
                positions="last",
                edits=edits,
                batch_size=batch_size,
                row_group_bytes=1 << 62,
            )
            job.exact, plan = exact, replace(plan, row_group=plan.n_rows)
            yield job, plan, args
            exact = job.exact

    for request, (value, fired) in backend(model).results(model, filling.reductions(jobs(), function)):
        job = request.about
        for counts in fired:
            job.count(counts)
        edits_.refuse_silent(job.edits, job.fired)
        yield _checked(value, function, job)


def _checked(result: R, function: Callable[..., R], job: CaptureJob) -> R:
    """What a function made of a chunk, if it is finite."""
    if not all(finite(x) for x in _tensors(result)):
        raise refusal(function.__name__, job.model, map(job.item, range(len(job.prompts))), job.edits)
    return result


def _tensors(nested: object) -> Iterator[torch.Tensor]:
    """All tensors of nested containers."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, (tuple, list, dict)):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors(part)
