"""Finite doses: the original's sublayer importance, each prompt rerun for every sublayer, dose and label (last token only).

Also the literal twin of the derivative: what `finite` gives for a vanishing dose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace.attribution.backward import Shifted
from emotrace.datasets import Prompt, Prompts
from emotrace.edits import Add, check
from emotrace.forwards.reruns import Reruns
from emotrace.forwards.sums import Sums
from emotrace.shown import progress as progress_bar
from emotrace.sites import LanguageModel


class Uses(NamedTuple):
    """Different prompts, and for which values of a label they count.

    Attributes:
        sequences: token ids, longest first.
        counts: ``[label, prompt]``, how often each counts for each value.
        label: its name.
        values: of the label.
    """

    sequences: list[list[int]]
    counts: np.ndarray
    label: str
    values: Sequence[Any]


class DosedShifts(NamedTuple):
    """What is shifted, along what, and what a dose of 1 is.

    Attributes:
        cells: that are shifted, each alone.
        along: ``[cell, label, dim]``, unit directions of the shifts.
        sigmas: ``[cell]``, what a dose of 1 is in each.
    """

    cells: Sequence[Shifted]
    along: np.ndarray
    sigmas: np.ndarray

    def edits(self, number: int, dose: float, uses: Uses) -> list[Add]:
        """One dose at one cell, along the direction of each prompt's own label.

        The base has the dose 0, not no edit: so it is computed in the same way, and rounding does not look like an effect.
        """
        cell = self.cells[number]
        vector = xr.DataArray(self.along[number], dims=(uses.label, "dim"), coords={uses.label: list(uses.values)})
        strength = float(dose * self.sigmas[number] * cell.factor)
        return [Add(cell.site, layers=[cell.layer], positions="last", vector=vector, strength=strength)]


class ReadAlong(NamedTuple):
    """Where a projection is read, and on what: ``covectors [label, dim]``."""

    site: str
    layer: int | None
    covectors: np.ndarray


def finite_sums(
    model: LanguageModel, uses: Uses, shifts: DosedShifts, readout: ReadAlong, doses: Sequence[float], sums: Sums,
    batch_size: int, progress: bool,
) -> np.ndarray:  # fmt: skip
    """Σ over prompts of the projected read-out, without a shift and with each dose at each cell alone.

    Args:
        model: from `emotrace.load`.
        uses: which prompts count for what.
        shifts: what is shifted.
        readout: what the read-out is projected on.
        doses: in units of σ.
        sums: the running sums, continued.
        batch_size: prompts per forward.
        progress: show a bar.

    Returns:
        ``[1 + dose · cell, label]``: the base, then cells within doses.
    """
    counts = uses.counts
    pairs = [(i, e) for e in range(len(uses.values)) for i in range(len(uses.sequences)) if counts[e, i]]
    prompts = Prompts(
        Prompt(f"{i}__{e}", token_ids=tuple(uses.sequences[i]), labels={uses.label: uses.values[e]}) for i, e in pairs
    )
    reruns = Reruns(model, prompts, readout.site, readout.layer)
    jobs = [(0, 0.0), *((number, dose) for dose in doses for number in range(len(shifts.cells)))]
    edits = [shifts.edits(number, dose, uses) for number, dose in jobs]
    for one in edits:
        check(one, model.sites, reruns.labels)
    of = [[row for row, (_, e) in enumerate(pairs) if e == value] for value in range(len(uses.values))]
    parts = [(e, rows) for e, some in enumerate(of) for rows in reruns.batches(some, batch_size)]
    ends = np.cumsum([len(rows) for _, rows in parts]).tolist()
    pieces = {range(end - len(rows), end): (e, rows) for end, (e, rows) in zip(ends, parts, strict=True)}
    with progress_bar(total=len(jobs) * len(pairs), desc="finite doses", unit="prompt", enabled=progress) as bar:
        bar.update(len(jobs) * sums.done)
        for piece in sums.left(pieces):
            e, rows = pieces[piece]
            weights = np.array([counts[e, pairs[row][0]] for row in rows], dtype=np.float64)
            found = np.zeros((len(jobs), len(uses.values)))
            for number, scores in enumerate(reruns.batch(rows).scores(edits, readout.covectors[e])):
                found[number, e] = scores @ weights
                bar.update(len(rows))
            sums.add("score", found)
            sums.commit(piece.stop)
    return sums["score"]
