"""Reruns: the same prompts under many edits at their last token, at the price of one token each.

In a causal model nothing before the last prompt token depends on an edit there, so keys and values of what comes before
are computed once and every further forward computes one token. Where a family's cache does not allow that (found by
comparing both ways on two of the prompts), in masked models and for prompts of one token, every forward is whole.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.capturing.caches import Beginning, Caches
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.labels import EmotraceError
from emotrace.model import locked
from emotrace.traced import runs

AGREEMENT = 1e-3
"""Largest relative deviation of the two ways; lower precision adds its own rounding."""
MIN_STEM = 8
"""A common beginning is worth a pass of its own from this many tokens on."""


class Reruns:
    """Prompts that will run many times, and the site that is read at their last token.

    Args:
        model: from `emotrace.load`.
        prompts: what runs; replies they carry are left out.
        site: what is read.
        layer: of the site; None for global sites.

    """

    def __init__(self, model: Any, prompts: Any, site: str = "resid_post", layer: int | None = None) -> None:
        self.model, self.encoder = model, model.sites.encoder
        prompts = Prompts.of(prompts)
        self.labels = [p.about for p in prompts]
        self.ids = [list(i) for i in self.encoder.ids(prompts)]
        address = model.sites.address(site, layer)
        address = address.mirror or address
        self.read = ("read", address.order, address.lower(model), 0)
        takes = inspect.signature(model._module.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in takes and self.encoder.causal else {}
        self.caches, self.stem, self.length = Caches(model, [self.read]), None, 0

    def batches(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """Some of the prompts, by index, in batches of similar length; always the same for the same rows."""
        order = sorted(rows, key=lambda i: (-len(self.ids[i]), i))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Prompts by index, ready to run."""
        return Batch(self, rows, self.by_token)

    @cached_property
    def by_token(self) -> bool:
        """Whether a rerun computes the last token only."""
        return bool(self.encoder.causal) and min(map(len, self.ids)) > 1 and self._by_token_is_exact()

    def _by_token_is_exact(self) -> bool:
        """Whether the longest and the shortest prompt, padded together, come out alike both ways, and twice; sets the stem."""
        order = sorted(range(len(self.ids)), key=lambda i: -len(self.ids[i]))
        pair = [order[0], order[-1]]
        first, last = min(self.ids), max(self.ids)  # what these two share all share
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
        shared = min(shared, len(self.ids[pair[1]]) - 2)
        self.length = shared if shared >= MIN_STEM else 0
        whole = Batch(self, pair, by_token=False).run([])
        try:
            self.stem = self.caches.stem(self.ids[pair[0]][: self.length])
            batch = Batch(self, pair, by_token=True)
            again = [batch.run([]) for _ in range(2)]
        except Exception:  # a family without a plain key-value cache: computing every prompt whole is always right
            return False
        tolerance = max(AGREEMENT, 4 * torch.finfo(self.model._module.dtype).eps) * float(np.abs(whole).max())
        return all(float(np.abs(whole - x).max()) <= tolerance for x in again)


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
        self.beginning: Beginning | None = None
        if by_token:
            assert reruns.stem is not None
            before = self._inputs([i[reruns.length : -1] for i in ids])
            self.beginning = reruns.caches.branched(reruns.stem, before, [1] * len(ids))
            self.inputs = self._inputs([i[-1:] for i in ids])
        else:
            self.inputs = self._inputs(ids)

    def run(self, edits: Sequence[Edit]) -> np.ndarray:
        """What the site holds at the last token of each prompt under edits with positions ``last``: ``[row, width]``.

        The edits must have been checked (`emotrace.edits.check`); a payload may be gathered by ``key`` too.

        Raises:
            EmotraceError: for an edit at other positions, which the shared beginnings would not feel.
        """
        for i, edit in enumerate(edits):
            if edit.positions != "last":
                raise EmotraceError(
                    f"edits[{i}] acts at positions {edit.positions!r}; reruns edit the last token only."
                )
        reruns = self.reruns
        lowered = edits_.lower(
            edits, reruns.model.sites, self.labels, self.lengths, self.lengths, self.width, reruns.encoder.causal
        )
        rank = {"edit": 0, "keep": 1, "read": 2}
        program = sorted([*lowered.program(), reruns.read], key=lambda step: (step[1], rank[step[0]]))
        if self.beginning is None:
            inputs, columns = self.inputs | reruns.options, (0, self.width)
        else:
            inputs = reruns.caches.inputs(_fresh(self.beginning), self.inputs)
            columns = (self.width - 1, self.width)
        last = [-1 if reruns.encoder.causal else n - 1 for n in self.lengths]
        found: list[np.ndarray] = []

        def keep(_: int, value: torch.Tensor) -> None:
            found.append(value[range(len(last)), last].float().cpu().numpy())

        with locked(reruns.model):
            fired = runs.capture(reruns.model, inputs, program, len(self.rows), columns, lowered.count, keep)
        edits_.refuse_silent(edits, fired)
        return found[0]

    def _inputs(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        device = next(self.reruns.model._module.parameters()).device
        return {k: v.to(device) for k, v in self.reruns.encoder.batch(ids).items()}


def _fresh(beginning: Beginning) -> Beginning:
    """The same keys and values in a cache of its own: a forward joins its token to them in new tensors."""
    cache = copy.copy(beginning.cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    return Beginning(cache, beginning.mask)
