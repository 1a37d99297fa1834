"""Backward: how a read-out of the last layer changes where any sublayer is shifted, for a batch of prompts at a time.

A shift at the last prompt token reaches the read-out at that token through that token alone. So the tokens before it are
computed without a graph, and forward-with-graph and backward are those of one token per prompt, where the model allows it
(`emotrace.forwards.last`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emotrace.forwards import finite
from emotrace.forwards.entering import enter
from emotrace.forwards.last import LastTokens
from emotrace.labels import AFTER
from emotrace.sites import LanguageModel, Sites
from emotrace.traced import gradients
from emotrace.traced.steps import Rms, Shift, ordered

Names = Mapping[tuple[int, ...], str]
"""Token ids of a prompt → its key."""


@dataclass(frozen=True)
class Shifted:
    """One sublayer of one layer, and where it is shifted.

    Attributes:
        layer: 0-based.
        sublayer: ``attn_out`` or ``mlp_out``.
        site: where the shift is made: the sublayer's output, or (post-LN) the residual after it.
        factor: what is added there for a shift of 1 of the residual: 1/c.
        residual: the residual after the sublayer.
    """

    layer: int
    sublayer: str
    site: str
    factor: float
    residual: str


def cells(sites: Sites, layers: Sequence[int]) -> list[Shifted]:
    """Both sublayers of every layer, in the order attn0, mlp0, attn1, ….

    Raises:
        EmotraceError: for a layer that the model lacks, or whose residual was not proven.
    """
    wanted = []
    for layer in layers:
        for sublayer, mid in AFTER.items():
            sites.address(sublayer, layer)  # refuses what is not there
            residual = mid if sites.has(mid, layer) else "resid_post"
            proof = sites.proofs[layer]
            if proof.form == "post-ln":  # the norm stands between the sublayer's output and the residual
                wanted.append(Shifted(layer, sublayer, residual, 1.0, residual))
            else:
                wanted.append(Shifted(layer, sublayer, sublayer, 1.0 / proof.scale, residual))
    return wanted


def residuals(wanted: Sequence[Shifted]) -> list[tuple[int, str]]:
    """The residuals ``(layer, site)`` after some cells, each once, in the order of the cells."""
    return list(dict.fromkeys((cell.layer, cell.residual) for cell in wanted))


def refuse_lost(
    what: str, model: LanguageModel, batch: Sequence[Sequence[int]], names: Names, *values: Tensor | np.ndarray
) -> None:
    """Refuse what was made of a batch where it is not finite.

    Raises:
        EmotraceError: naming site, layer and prompt.
    """
    for value in values:
        items = (finite.Item(names.get(tuple(ids), str(list(ids))), ids) for ids in batch)
        finite.unless_finite(value, what, model, items)


class Backward:
    """Derivatives of ⟨read-out at the last prompt token, covector⟩ along shifts of all cells.

    Args:
        model: from `emotrace.load`.
        wanted: the cells, in any order.
        readout: ``(site, layer)`` at which the projection is read.
        covectors: ``[label, width]``.
        along: ``[cell, label, width]``, the direction of each shift.
        sequences: token ids of every prompt that will be asked.
        names: their keys, for messages.
    """

    @torch.inference_mode(False)  # what is made in that mode cannot be part of a graph
    def __init__(
        self, model: LanguageModel, wanted: Sequence[Shifted], readout: tuple[str, int | None], covectors: np.ndarray,
        along: np.ndarray, sequences: Sequence[Sequence[int]], names: Names | None = None,
    ) -> None:  # fmt: skip
        self.names = names or {}
        self.model = model
        table: Sites = model.sites
        at = [table.address(cell.site, cell.layer) for cell in wanted]
        self.order = sorted(range(len(wanted)), key=lambda i: at[i].order)
        shifts = [Shift(at[i].order, at[i].lower(model), wanted[i].factor) for i in self.order]
        after = [table.address(site, layer).seen for layer, site in residuals(wanted)]
        self.after = sorted(range(len(after)), key=lambda i: after[i].order)
        sizes = [Rms(after[i].order, after[i].lower(model)) for i in self.after]
        self.steps = ordered([*shifts, *sizes, table.address(*readout).read(model)])
        dtype = torch.float64 if model._module.dtype == torch.float64 else torch.float32
        self.covectors = torch.as_tensor(covectors, dtype=dtype)
        self.along = torch.as_tensor(along, dtype=dtype)[self.order]
        self.last = LastTokens(model, sequences, self.steps)

    @torch.inference_mode(False)
    def __call__(self, batch: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a batch: derivatives ``[label, cell, prompt]``, projections ``[label, prompt]``, RMS ``[residual, prompt]``.

        The residuals are in the order of `residuals`.

        Raises:
            EmotraceError: where a derivative is not finite, naming site, layer and prompt.
        """
        fed, last = self.last.fed(batch), self.last
        args = (fed.inputs, fed.recipe, last.setup, self.steps, fed.at, self.covectors, self.along, last.memo)
        slopes, scores, sizes = (x.double().numpy() for x in enter(self.model, gradients.behind, *args))
        refuse_lost("the gradient", self.model, batch, self.names, slopes, scores, sizes)
        return slopes[:, np.argsort(self.order)], scores, sizes[np.argsort(self.after)]
