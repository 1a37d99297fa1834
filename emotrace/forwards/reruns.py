"""Reruns: the same prompts under many edits at their last token, each at the price of that token (`last`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.datasets import Prompts, PromptsLike
from emotrace.edits import Edit
from emotrace.forwards import beginnings, finite
from emotrace.forwards.entering import backend, enter
from emotrace.forwards.last import LastTokens
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.traced import requests
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

    def __init__(
        self, model: LanguageModel, prompts: PromptsLike, site: str = "resid_post", layer: int | None = None
    ) -> None:
        self.model, self.encoder = model, model.sites.encoder
        prompts = Prompts.of(prompts)
        self.labels = [p.about for p in prompts]
        self.ids = [list(i) for i in self.encoder.ids(prompts)]
        self.read = model.sites.address(site, layer).seen.read(model)
        self.last = LastTokens(model, self.ids, [self.read])

    def batches(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """Some of the prompts, by index, in batches of similar length; always the same for the same rows."""
        return beginnings.batches(self.model, [len(i) for i in self.ids], size, rows)

    def batch(self, rows: Sequence[int]) -> RerunBatch:
        """Prompts by index, ready to run."""
        return RerunBatch(self, rows)


class RerunBatch:
    """Some prompts of `Reruns`, with the keys and values of all their tokens but the last where that is allowed.

    Args:
        reruns: what they belong to.
        rows: their indices.

    Attributes:
        by_token: whether a forward computes the last token only.
    """

    def __init__(self, reruns: Reruns, rows: Sequence[int]) -> None:
        self.reruns, self.rows = reruns, list(rows)
        self.labels = [reruns.labels[i] for i in self.rows]
        ids = [reruns.ids[i] for i in self.rows]
        self.lengths = [len(i) for i in ids]
        self.width = max(self.lengths)
        self.fed = reruns.last.fed(ids)
        self.by_token = self.fed.recipe is not None

    def run(self, edits: Sequence[Edit]) -> np.ndarray:
        """What the site holds at the last token of each prompt under edits with positions ``last``: ``[row, width]``.

        The edits must have been checked (`emotrace.edits.check`); a payload may be gathered by ``key`` too.

        Raises:
            EmotraceError: for an edit at other positions, which the shared beginnings would not feel.
        """
        (values,), (fired,) = enter(self.reruns.model, requests.captured, *self._arguments([edits]))
        edits_.refuse_silent(edits, fired)
        return values[0].float().numpy()

    def scores(self, several: Sequence[Sequence[Edit]], v: np.ndarray) -> Iterator[np.ndarray]:
        """The same projected on a vector, ``[row]`` in float64, under one list of edits after the other.

        Raises:
            EmotraceError: as `run`; for a projection that is not finite.
        """
        model, vector = self.reruns.model, torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64))
        step = max(1, (backend(model).limit or 0) // self.fed.inputs["input_ids"].numel())
        for at in range(0, len(several), step):
            together = several[at : at + step]
            projection = (None, requests.projected, (vector, [len(self.rows)] * len(together)))
            projections, fired = enter(model, requests.reduced, *self._arguments(together), *projection)
            for edits, scores, counts in zip(together, projections, fired, strict=True):
                edits_.refuse_silent(edits, counts)
                items = (
                    finite.Item(str(a.get("key")), self.reruns.ids[i], about=a)
                    for i, a in zip(self.rows, self.labels, strict=True)
                )
                finite.unless_finite(scores, "the read-out", model, items, edits)
                yield scores.numpy()

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
        columns = (self.width - 1, self.width) if self.by_token else None
        spans = tuple(Span(row, at, at + 1) for row, at in enumerate(self.fed.at))
        program = lowered.program([reruns.read])
        return Forward(self.fed.inputs, spans, self.fed.recipe, columns, program, lowered.count)

    def _arguments(self, several: Sequence[Sequence[Edit]]) -> tuple:
        """What `requests.captured` takes."""
        last = self.reruns.last
        return [], [self._forward(edits) for edits in several], [[0]], last.setup, last.memo
