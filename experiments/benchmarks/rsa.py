"""RSA's speed: τ-b of every neuron with every attribute, beside a loop over scipy.

Method. `searchlight` on activations of the published size, 12 seeds × 27 emotions × 36,864 neurons, against 14 attributes:
distances, ranks, τ-b and p. Beside it, on a sample of the same neurons drawn once: the distances of one neuron
after another from the formula, and `scipy.stats.kendalltau` for each neuron and attribute. The loop's cost per neuron does
not depend on how many there are, so its time is scaled from the sample to all neurons; `--sample 36864` runs all of
it (two minutes a turn). One thread; both take turns in one process. Every value of the sample is compared. Peak memory is
that of a process of its own, activations included.

    python experiments/benchmarks/rsa.py
    python experiments/benchmarks/rsa.py --only searchlight --sample 36864 --repetitions 1
    python experiments/benchmarks/rsa.py --quick                 # tiny sizes: only shows that all of it runs
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import threadpoolctl
import typer
import xarray as xr
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from emotrace import rsa
from experiments.benchmarks.timing import ratio

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)

FULL = (12, 27, 12, 3072)
"""Seeds, emotions, layers and units of arXiv 2302.09582."""
QUICK = (2, 6, 2, 20)
ATTRIBUTES = 14


@dataclass(frozen=True)
class Answer:
    """One line of the table, and what else was seen."""

    question: str
    result: str
    target: str
    met: bool
    note: str

    def __str__(self) -> str:
        return f"| {self.question} | {self.result} | {self.target} | {'yes' if self.met else '**no**'} |"


def case(size: tuple[int, int, int, int], ties: bool = False) -> tuple[xr.DataArray, xr.DataArray]:
    """Random activations after a GELU-like bend (``ties``: only whether they are positive), and RDMs of random ratings."""
    rng = np.random.default_rng(0)
    seeds, emotions, layers, units = size
    x = rng.normal(size=size).astype(np.float32)
    names = [f"emotion {i}" for i in range(emotions)]
    acts = xr.DataArray(
        (x > 0).astype(np.float32) if ties else np.where(x > 0, x, 0.1 * x),
        dims=("seed", "emotion", "layer", "unit"),
        coords={"seed": np.arange(seeds), "emotion": names, "layer": np.arange(layers), "unit": np.arange(units)},
    )
    ratings = xr.DataArray(
        rng.integers(10, 90, (emotions, ATTRIBUTES)) / 10,
        dims=("emotion", "attribute"),
        coords={"emotion": names, "attribute": [f"attribute {i}" for i in range(ATTRIBUTES)]},
    )
    return acts, rsa.attribute_rdms(ratings)


def loop(x: np.ndarray, references: np.ndarray) -> np.ndarray:
    """τ-b and p ``[2, neuron, reference]`` of ``x[seed, emotion, neuron]``, one at a time."""
    first, second = np.triu_indices(x.shape[1], 1)
    out = np.empty((2, x.shape[2], len(references)))
    for neuron in range(x.shape[2]):
        a = x[:, :, neuron].astype(np.float64)
        d = np.abs(a[:, first] - a[:, second]).mean(0)
        for k, reference in enumerate(references):
            found: Any = kendalltau(d, reference, method="asymptotic", alternative="greater")
            out[:, neuron, k] = found.statistic, found.pvalue
    return out


def searchlight(size: tuple[int, int, int, int], repetitions: int, sample: int, ties: bool = False) -> list[Answer]:
    """Speed-up over the loop, seconds, and the largest difference."""
    acts, references = case(size, ties)
    neurons = size[2] * size[3]
    chosen = np.sort(np.random.default_rng(1).choice(neurons, size=min(sample, neurons), replace=False))
    some = acts.values.reshape(size[0], size[1], neurons)[:, :, chosen]
    values: list[np.ndarray] = []

    def theirs() -> None:
        values[:] = [loop(some, references.values)]

    measured = ratio(lambda: rsa.searchlight(acts, references), theirs, repetitions)
    scale = neurons / len(chosen)
    found = rsa.searchlight(acts, references)
    gaps = [
        float(np.abs(found[name].values.reshape(ATTRIBUTES, neurons)[:, chosen].T - theirs_).max())
        for name, theirs_ in zip(("tau", "p"), values[0], strict=True)
    ]
    what = "indicators (ties)" if ties else "activations"
    note = f"{neurons} neurons × {ATTRIBUTES}; the loop over {len(chosen)} of them, its time × {scale:.3g}"
    speed, low, high = (scale / r for r in (measured.median, measured.high, measured.low))
    seconds, reference = measured.seconds, measured.reference * scale
    return [
        Answer(
            f"all-neuron τ-b, {what}", f"{speed:.0f} × ({low:.0f} – {high:.0f})", "≥ 40 ×", speed >= 40,
            f"[{seconds:.3g} s against {reference:.4g} s] {note}",
        ),
        Answer(f"its seconds, {what}", f"{seconds:.2f} s", "≤ 4 s", seconds <= 4, "distances, ranks and p included"),
        Answer(
            f"its largest error, {what}", f"τ {gaps[0]:.1e}, p {gaps[1]:.1e}", "≤ 1e-12", max(gaps) <= 1e-12,
            f"{2 * values[0].shape[1] * ATTRIBUTES} values compared with scipy's",
        ),
    ]  # fmt: skip


def peak(size: tuple[int, int, int, int]) -> list[Answer]:
    """Peak memory of a process that does nothing else, and ends with this one."""
    context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(size, theirs))
    process.start()
    theirs.close()
    before, after = answer.recv()
    process.join()
    note = f"{before:.0f} MB of them with the activations before the call"
    return [Answer("its peak memory", f"{after:.0f} MB", "< 1000 MB", after < 1000, note)]


def _peak(size: tuple[int, int, int, int], asked: Connection) -> None:
    """Megabytes before and after, in this process, to whoever asked."""
    threading.Thread(target=_end_with, args=(asked,), daemon=True).start()
    with threadpoolctl.threadpool_limits(1):
        acts, references = case(size)
        before = _resident()
        rsa.searchlight(acts, references)
        asked.send((before, _resident()))


def _end_with(asked: Connection) -> None:
    """End this process as soon as the other end is closed, by whatever ends it."""
    asked.poll(None)
    os._exit(0)


def _resident() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


QUESTIONS: dict[str, Callable[[tuple[int, int, int, int], int, int], list[Answer]]] = {
    "searchlight": lambda size, repetitions, sample: searchlight(size, repetitions, sample),
    "ties": lambda size, repetitions, sample: searchlight(size, repetitions, sample, ties=True),
    "peak": lambda size, *_: peak(size),
}


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(QUESTIONS)}; may be repeated")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns of each ratio")] = 3,
    sample: Annotated[int, typer.Option(min=1, help="neurons that the loop over scipy runs on")] = 3072,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, which only show that all of it runs")] = False,
) -> None:
    """Answer the questions and print a table."""
    wrong = [name for name in only or () if name not in QUESTIONS]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r}: choices are {', '.join(QUESTIONS)}.", param_hint="--only")
    size = QUICK if quick else FULL
    with threadpoolctl.threadpool_limits(1):
        answers = []
        for name in only or QUESTIONS:
            found = QUESTIONS[name](size, 1 if quick else repetitions, sample)
            answers += found
            for one in found:
                print(one, one.note, flush=True)
    print("\n| question | result (min – max) | target | met |\n|---|---|---|---|")
    for one in answers:
        print(one)
    if quick:
        print("\n--quick: these sizes are too small for the ratios to mean anything.")


if __name__ == "__main__":
    app()
