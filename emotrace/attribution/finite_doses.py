"""Finite doses: the original's sublayer importance, one forward per sublayer, dose and label, through edits and `capture`.

Also the literal twin of the derivative: what `finite` gives for a vanishing dose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def finite_sums(
    model: LanguageModel, sequences: Sequence[Sequence[int]], counts: np.ndarray, label: str, values: Sequence[Any],
    cells: Sequence[Shifted], along: np.ndarray, covectors: np.ndarray, readout: tuple[str, int | None],
    sigmas: np.ndarray, doses: Sequence[float], settings: dict[str, Any], batch_size: int, out: str | Path | None, progress: bool,
) -> np.ndarray:  # fmt: skip
    """Σ over prompts of the projected read-out, without a shift and with each dose at each cell alone.

    Args:
        model: from `emotrace.load`.
        sequences: token ids of the different prompts.
        counts: ``[label, prompt]``, how often each counts for each label.
        label: name of the label that the shifts differ by.
        values: its values.
        cells: what is shifted.
        along: ``[cell, label, dim]``, unit directions of the shifts.
        covectors: ``[label, dim]``, what the read-out is projected on.
        readout: ``(site, layer)``.
        sigmas: ``[cell]``, what a dose of 1 is in each.
        doses: in units of σ.
        settings: of the running sums.
        batch_size: prompts per forward.
        out: folder of the running sums, or None.
        progress: show a bar.

    Returns:
        ``[1 + dose · cell, label]``: the base, then cells within doses.
    """
    pairs = [(i, e) for i in range(len(sequences)) for e in range(len(values)) if counts[e, i]]
    prompts = Prompts(Prompt(f"{i}__{e}", token_ids=tuple(sequences[i]), labels={label: values[e]}) for i, e in pairs)
    at = np.array([e for _, e in pairs])
    weights = np.array([counts[e, i] for i, e in pairs], dtype=np.float64)
    jobs = [(0.0, 0), *((dose, number) for dose in doses for number in range(len(cells)))]
    sums = Sums(out, {**settings, "doses": list(doses), "sigma": sigmas}, "finite_sums")
    site, layer = readout
    with progress_bar(total=len(jobs) * len(prompts), desc="finite doses", unit="prompt", enabled=progress) as bar:
        bar.update(sums.done)
        for number in range(sums.done // len(prompts), len(jobs)):
            edits = _edits(jobs[number], cells, along, sigmas, label, values)
            passed = number * len(prompts)
            chunks = reductions(
                model, prompts, [site], contributions.dotted,
                lambda rows: (torch.from_numpy(covectors[at[rows]].astype(np.float64)),),
                layers=None if layer is None else [layer], edits=edits, batch_size=batch_size,
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


def _edits(
    job: tuple[float, int], cells: Sequence[Shifted], along: np.ndarray, sigmas: np.ndarray, label: str,
    values: Sequence[Any],
) -> list[Add]:  # fmt: skip
    """One dose at one cell, along the direction of each prompt's own label.

    The base has the dose 0, not no edit: so it is computed in the same way, and rounding does not look like an effect.
    """
    dose, number = job
    cell = cells[number]
    vector = xr.DataArray(along[number], dims=(label, "dim"), coords={label: list(values)})
    strength = float(dose * sigmas[number] * cell.factor)
    return [Add(cell.site, layers=[cell.layer], positions="last", vector=vector, strength=strength)]
