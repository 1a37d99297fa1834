"""Central: derivatives along shifts where the server keeps no graph: small finite shifts both ways.

::

    ds/dδ ≈ (s(+δ) − s(−δ)) / 2δ        δ = STEP · RMS of the residual after the sublayer, of each prompt

The error is of second order in STEP, plus what rounding leaves: about ε(dtype) · |s| / STEP.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from emotrace.attribution.backward import Names, Shifted, refuse_lost, residuals
from emotrace.forwards import caches, last
from emotrace.forwards.entering import backend, enter
from emotrace.sites import LanguageModel
from emotrace.traced import central
from emotrace.traced.steps import Shift, ordered

STEPS = {torch.float64: 0.01, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.25}
"""δ in units of the RMS, by the dtype of the weights."""


class Central:
    """Derivatives of ⟨read-out at the last prompt token, covector⟩ along shifts of all cells, as `Backward` gives them.

    Args:
        model: from `emotrace.load`.
        wanted: the cells, in any order.
        readout: ``(site, layer)`` at which the projection is read.
        covectors: ``[label, width]``.
        along: ``[cell, label, width]``, the direction of each shift.
        names: keys of the prompts, for messages.
    """

    def __init__(
        self,
        model: LanguageModel,
        wanted: Sequence[Shifted],
        readout: tuple[str, int | None],
        covectors: np.ndarray,
        along: np.ndarray,
        names: Names | None = None,
    ) -> None:
        self.names = names or {}
        self.model, sites = model, model.sites
        self.step = STEPS[model._module.dtype]
        self.covectors = torch.as_tensor(covectors, dtype=torch.float64)
        self.along = torch.as_tensor(along, dtype=torch.float64)
        at = [sites.address(cell.site, cell.layer) for cell in wanted]
        self.places = [Shift(a.order, a.lower(model), cell.factor) for a, cell in zip(at, wanted, strict=True)]
        after = residuals(wanted)
        self.size_of = [after.index((cell.layer, cell.residual)) for cell in wanted]
        sizes = [sites.address(site, layer).seen.read(model, number) for number, (layer, site) in enumerate(after)]
        self.read = sites.address(*readout).read(model, -1)
        self.program = ordered([*sizes, self.read])

    def __call__(self, batch: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a batch: derivatives ``[label, cell, prompt]``, projections ``[label, prompt]``, RMS ``[residual, prompt]``.

        Raises:
            EmotraceError: where a derivative is not finite, naming site, layer and prompt.
        """
        fed, _, at = last.whole(self.model, batch, caches.options(self.model))
        scores, sizes = enter(self.model, central.base, fed, self.program, at, self.covectors)
        work = [
            central.Nudge(*place, self.along[i, e], self.step * sizes[self.size_of[i]], e)
            for e in range(len(self.covectors))
            for i, place in enumerate(self.places)
        ]
        step = max(1, (backend(self.model).limit or 0) // (2 * fed["input_ids"].numel()))
        parts: list[torch.Tensor] = []
        for start in range(0, len(work), step):
            part = work[start : start + step]
            parts += enter(self.model, central.slopes, fed, part, self.read, at, self.covectors)
        slopes = torch.stack(parts).reshape(len(self.covectors), len(self.places), len(batch)).numpy()
        refuse_lost("the read-out", self.model, batch, self.names, slopes, scores, sizes)
        return slopes, scores.numpy(), sizes.numpy()
