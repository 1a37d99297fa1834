"""Finite doses: the original's sublayer importance, one forward per sublayer, dose and label, through edits and `capture`.

Also the literal twin of the derivative: what `finite` gives for a vanishing dose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from emotrace.attribution.backward import Shifted
from emotrace.datasets import Prompt, Prompts
from emotrace.edits import Add
from emotrace.forwards.streams import reductions
from emotrace.forwards.sums import Sums
from emotrace.runlog import progress as progress_bar
from emotrace.sites import LanguageModel
from emotrace.traced import contributions

CHUNK = 1024
"""Prompts held, and prompts between two commits: only the read-out is kept of each."""


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
    label, values, counts = uses.label, uses.values, uses.counts
    pairs = [(i, e) for i in range(len(uses.sequences)) for e in range(len(values)) if counts[e, i]]
    prompts = Prompts(
        Prompt(f"{i}__{e}", token_ids=tuple(uses.sequences[i]), labels={label: values[e]}) for i, e in pairs
    )
    at = np.array([e for _, e in pairs])
    weights = np.array([counts[e, i] for i, e in pairs], dtype=np.float64)
    jobs = [(0, 0.0), *((number, dose) for dose in doses for number in range(len(shifts.cells)))]
    with progress_bar(total=len(jobs) * len(prompts), desc="finite doses", unit="prompt", enabled=progress) as bar:
        bar.update(sums.done)
        for number in range(sums.done // len(prompts), len(jobs)):
            edits = shifts.edits(*jobs[number], uses)
            passed = number * len(prompts)
            chunks = reductions(
                model, prompts, [readout.site], contributions.dotted,
                lambda rows: (torch.from_numpy(readout.covectors[at[rows]].astype(np.float64)),),
                layers=None if readout.layer is None else [readout.layer], edits=edits, batch_size=batch_size,
                prompts_per_chunk=CHUNK, start=sums.done - passed, progress=False,
            )  # fmt: skip
            for rows, dots in chunks:
                scores = dots.numpy()
                found = np.zeros((len(jobs), len(values)))
                np.add.at(found[number], at[rows], scores * weights[rows])
                sums.add("score", found)
                sums.commit(passed + rows.stop)
                bar.update(len(rows))
    return sums["score"]
