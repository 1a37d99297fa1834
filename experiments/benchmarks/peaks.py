"""Peaks: the most memory that one piece of work ever takes, in a process that does nothing else.

    python experiments/benchmarks/peaks.py generation 64        # prints the process's peak in MB

Started by ``spine.py``, with so many prompts and ten times as many. The prompts share no beginning: what is kept of them is as
much as it can be.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
import xarray as xr

import emotrace as et
from emotrace import scoring
from emotrace.sites import LanguageModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from experiments.benchmarks import work
from experiments.benchmarks.memory import peak_megabytes

LENGTH: Final = 64
"""Tokens of a prompt."""
NEW: Final = 8
"""Tokens of a reply."""
MOODS: Final = ("calm", "cross")
app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


def _labelled(ids: list[list[int]]) -> list[dict[str, Any]]:
    return [{"key": str(i), "token_ids": row, "emotion": MOODS[i % 2]} for i, row in enumerate(ids)]


def _directions(model: LanguageModel) -> xr.DataArray:
    shape = len(MOODS), model.sites.n_layers, 2, model.sites.d_model
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    dims = ("emotion", "layer", "sublayer", "dim")
    coords = {
        "emotion": list(MOODS),
        "layer": range(model.sites.n_layers),
        "sublayer": ["resid_mid", "resid_post"],
    }
    return xr.DataArray(values / np.linalg.norm(values, axis=-1, keepdims=True), dims=dims, coords=coords)


def capture(model: LanguageModel, ids: list[list[int]], folder: Path) -> None:
    """All positions of two sites, to disk."""
    et.capture(
        model, ids, ("resid_mid", "resid_post"), positions="all", out=folder / "peak.zarr", progress=False
    )  # fmt: skip


def generation(model: LanguageModel, ids: list[list[int]], folder: Path) -> None:
    """Steered replies, to a file."""
    vector = np.random.default_rng(1).standard_normal(model.sites.d_model).astype(np.float32)
    edits = [et.Add("resid_post", layers=range(model.sites.n_layers), vector=vector, scale="rms")]
    et.generate(model, ids, edits, max_new_tokens=NEW, min_new_tokens=NEW, out=folder / "rows.jsonl", progress=False)


def likelihood(model: LanguageModel, ids: list[list[int]], folder: Path) -> None:
    """Perplexity of replies."""
    scoring.perplexity(
        model, [{"key": str(i), "token_ids": row, "reply_ids": row[:NEW]} for i, row in enumerate(ids)]
    )  # fmt: skip


def heads(model: LanguageModel, ids: list[list[int]], folder: Path) -> None:
    """Scores of all heads, their sums on disk."""
    et.attribution.head_contributions(model, _labelled(ids), _directions(model), out=folder / "heads", progress=False)


def neurons(model: LanguageModel, ids: list[list[int]], folder: Path) -> None:
    """Scores of all neurons, their sums on disk."""
    et.attribution.neuron_contributions(
        model, _labelled(ids), _directions(model), out=folder / "neurons", progress=False
    )  # fmt: skip


WORKS: Final[dict[str, tuple[Callable[[LanguageModel, list[list[int]], Path], None], int]]] = {
    "capture": (capture, 256), "generation": (generation, 64), "likelihood": (likelihood, 64), "heads": (heads, 256),
    "neurons": (neurons, 256),
}  # fmt: skip
"""Name → work, and the prompts that it begins with: enough that buffers and allocator have settled."""


@app.command()
def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(WORKS)}")],
    prompts: int,
    quick: Annotated[bool, typer.Option("--quick", help="a tiny model")] = False,
) -> None:
    """Do one piece of work with so many prompts, and print the peak memory of this process in MB."""
    torch.set_num_threads(1)
    pair = work.llama(work.QUICK if quick else work.SMALL)
    with tempfile.TemporaryDirectory(prefix="emotrace-benchmark-") as folder:
        WORKS[name][0](pair.model, work.random_ids(prompts, LENGTH), Path(folder))
    print(peak_megabytes())


if __name__ == "__main__":
    app()
