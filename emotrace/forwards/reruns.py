"""Reruns: the same prompts under many edits at their last token, at the price of one token each.

In a causal model nothing before the last prompt token depends on an edit there, so keys and values of what comes before
are computed once and every further forward computes one token. Where a family's cache does not allow that
(`emotrace.forwards.beginnings`), in masked models and for prompts of one token, every forward is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.forwards import beginnings, caches, finite
from emotrace.forwards.capturing.afar import REQUEST_TOKENS
from emotrace.forwards.entering import enter, inputs, locked
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.traced import requests
from emotrace.traced.caches import Recipe
from emotrace.traced.programs import Span
from emotrace.traced.requests import Forward


class Reruns:
    """Prompts that will run many times, and the site that is read at their last token.

    Args:
        model: from `emotrace.load`.
        prompts: what runs; replies they carry are left out.
        site: what is read.
        layer: of the site; None for global sites.

    """

    def __init__(self, model: LanguageModel, prompts: Any, site: str = "resid_post", layer: int | None = None) -> None:
        self.model, self.encoder = model, model.sites.encoder
        prompts = Prompts.of(prompts)
        self.labels = [p.about for p in prompts]
        self.ids = [list(i) for i in self.encoder.ids(prompts)]
        self.read = model.sites.address(site, layer).seen.read(model)
        self.setup, self.options, self.memo = caches.setup(model, [self.read]), caches.options(model), {}
        self.stem = beginnings.common(self.ids)

    def batches(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """Some of the prompts, by index, in batches of similar length; always the same for the same rows."""
        return beginnings.batches(self.model, [len(i) for i in self.ids], size, rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Prompts by index, ready to run."""
        return Batch(self, rows, self.by_token)

    @cached_property
    def by_token(self) -> bool:
        """Whether a rerun computes the last token only."""
        lengths = [len(i) for i in self.ids]
        return bool(self.encoder.causal) and min(lengths) > 1 and max(lengths) <= beginnings.shared_up_to(self.model)


class Batch:
    """Some prompts of `Reruns`, with the keys and values of all their tokens but the last.

    Args:
        reruns: what they belong to.
        rows: their indices.
        by_token: compute the last token only.
    """

    def __init__(self, reruns: Reruns, rows: Sequence[int], by_token: bool) -> None:
        self.reruns, self.rows = reruns, list(rows)
        self.labels = [reruns.labels[i] for i in self.rows]
        ids = [reruns.ids[i] for i in self.rows]
        self.lengths = [len(i) for i in ids]
        self.width = max(self.lengths)
        self.beginning: Recipe | None = None
        if by_token:
            before = inputs(reruns.model, [i[len(reruns.stem) : -1] for i in ids])
            self.beginning = Recipe(reruns.stem, (1,) * len(ids), before, kept=True)
            self.inputs = inputs(reruns.model, [i[-1:] for i in ids])
        else:
            self.inputs = inputs(reruns.model, ids) | reruns.options

    def run(self, edits: Sequence[Edit]) -> np.ndarray:
        """What the site holds at the last token of each prompt under edits with positions ``last``: ``[row, width]``.

        The edits must have been checked (`emotrace.edits.check`); a payload may be gathered by ``key`` too.

        Raises:
            EmotraceError: for an edit at other positions, which the shared beginnings would not feel.
        """
        reruns, found = self.reruns, []
        if reruns.model.sites.remote is not None:
            (values, (fired,)) = enter(reruns.model, requests.captured, *self._arguments([edits]))
            edits_.refuse_silent(edits, fired)
            return values[0][0].float().numpy()

        def keep(_: int, value: torch.Tensor) -> None:
            rows, at = self._last()
            found.append(value[rows, at].float().cpu().numpy())

        with locked(reruns.model):
            fired = requests.forward(reruns.model, [], self._forward(edits), reruns.setup, reruns.memo, keep)
        edits_.refuse_silent(edits, fired)
        return found[0]

    def scores(self, several: Sequence[Sequence[Edit]], v: np.ndarray) -> Iterator[np.ndarray]:
        """The same projected on a vector, ``[row]`` in float64, under one list of edits after the other.

        Raises:
            EmotraceError: as `run`; for a projection that is not finite.
        """
        model, vector = self.reruns.model, torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64))
        step = max(1, REQUEST_TOKENS // self.inputs["input_ids"].numel())
        for at in range(0, len(several), step):
            some = several[at : at + step]
            if model.sites.remote is None:
                found = ((torch.from_numpy(self.run(edits)).double() @ vector) for edits in some)
            else:
                reduce = (None, requests.projected, (vector, [len(self.rows)] * len(some)))
                found, fired = enter(model, requests.reduced, *self._arguments(some), *reduce)
                for edits, counts in zip(some, fired, strict=True):
                    edits_.refuse_silent(edits, counts)
            for edits, scores in zip(some, found, strict=True):
                items = (
                    finite.Item(str(a.get("key")), self.reruns.ids[i], about=a)
                    for i, a in zip(self.rows, self.labels, strict=True)
                )
                finite.unless_finite(scores, "the read-out", model, items, edits)
                yield scores.numpy()

    def _last(self) -> tuple[list[int], list[int]]:
        """Row and column of every prompt's last token, in the columns of a forward."""
        width = self.inputs["input_ids"].shape[1]
        return list(range(len(self.rows))), [width - 1 if self.reruns.encoder.causal else n - 1 for n in self.lengths]

    def _forward(self, edits: Sequence[Edit]) -> Forward:
        """One forward under edits."""
        for i, edit in enumerate(edits):
            if edit.positions != "last":
                raise EmotraceError(
                    f"edits[{i}] acts at positions {edit.positions!r}; reruns edit the last token only."
                )
        reruns = self.reruns
        lowered = edits_.lower(
            edits, reruns.model.sites, self.labels, self.lengths, self.lengths, self.width, reruns.encoder.causal
        )
        columns = None if self.beginning is None else (self.width - 1, self.width)
        spans = tuple(Span(row, at, at + 1) for row, at in zip(*self._last(), strict=True))
        return Forward(self.inputs, spans, self.beginning, columns, lowered.program([reruns.read]), lowered.count)

    def _arguments(self, several: Sequence[Sequence[Edit]]) -> tuple:
        """What `requests.captured` takes."""
        return [], [self._forward(edits) for edits in several], [[0]], self.reruns.setup
