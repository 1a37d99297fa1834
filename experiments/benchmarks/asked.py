"""Asked: what scores of a whole training set out of an open store cost beside reading the bytes.

Method. A store of SmolLM2-135M's shape (30 layers, 9 heads of 64, 1,536 neurons, width 576) holds ``z``, ``neuron`` and
``resid_mid`` of 2,880 prompts in six emotions, random numbers. The work is `head_contributions` and `neuron_contributions` of all
of it with random covectors. It is measured against reading the same bytes in two ways: each variable and layer by
``acts.sel(…).values``, which is how they are read by name and checked, and which the target is set for; and each chunk's file by
``numpy.fromfile``, a bare copy out of the page cache. Below these stands what the sums alone take of that copy, however they are
read: a block that lies in memory, ordered by label, added up, made absolute and added up again (neurons), multiplied with the
covectors (heads) and added up (the residual stream), by numpy and nothing else. Work and reading take turns in one process; the
table shows median / median of CPU seconds, and the smallest and largest ratio of two neighbouring turns. One thread; the store
has been read once, so that its checksums are known.

    python experiments/benchmarks/asked.py
    python experiments/benchmarks/asked.py --quick               # tiny sizes: only shows that all of it runs
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
import xarray as xr

import emotrace as et

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from emotrace import attribution, store
from emotrace.attribution.chunked import METHOD, RUN
from emotrace.labels import EMOTIONS
from experiments.benchmarks.timing import Ratio, ratio

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)

SHAPE = {"layers": 30, "head": 9, "head_dim": 64, "unit": 1536, "dim": 576}
QUICK = {"layers": 2, "head": 3, "head_dim": 4, "unit": 12, "dim": 12}
TARGET = 1.5


def written(folder: Path, shape: dict[str, int], prompts: int) -> et.Activations:
    """A store of random numbers, one row a prompt."""
    labels = [{"emotion": EMOTIONS[i % len(EMOTIONS)]} for i in range(prompts)]
    ones = [[1]] * prompts
    rows = store.Rows.of([f"p{i}" for i in range(prompts)], ones, [1] * prompts, [range(1)] * prompts, str, labels)
    layers = {"layer": range(shape["layers"])}
    variables = [
        store.Variable(
            "residual", ("layer", "sublayer", "dim"), {**layers, "sublayer": ["resid_mid"]}, {"dim": shape["dim"]}
        ),
        store.Variable("z", ("layer", "head", "head_dim"), layers, {k: shape[k] for k in ("head", "head_dim")}),
        store.Variable("neuron", ("layer", "unit"), layers, {"unit": shape["unit"]}),
    ]
    plan = store.Plan.make(rows, variables, {"model_id": "random"}, row_group_bytes=256 << 20)
    rng = np.random.default_rng(0)
    with store.create_or_resume(folder / "a.zarr", plan) as writer:
        for group in writer.pending():
            buffers = writer.buffers(group)
            for array in buffers.values():
                array[...] = rng.random(array.shape, dtype=np.float32) - 0.5
            writer.submit(group, buffers)
    return et.open_activations(folder / "a.zarr")


def covectors(shape: dict[str, int]) -> xr.Dataset:
    """Random ones, as a sequential model without norms behind its branches has them."""
    rng, layers = np.random.default_rng(1), list(range(shape["layers"]))
    sizes = {"emotion": len(EMOTIONS), "layer": len(layers), **{k: v for k, v in shape.items() if k != "layers"}}
    dims: dict[str, tuple[str, ...]] = {"z": ("head", "head_dim"), "read": ("dim",), "neuron": ("unit",)}
    dims |= dict.fromkeys(("z_bias", "z_added", "read_bias", "neuron_bias", "neuron_added"), ())
    data = {
        name: (("emotion", "layer", *d), rng.normal(size=[sizes[x] for x in ("emotion", "layer", *d)]))
        for name, d in dims.items()
    }
    coords: dict[str, Any] = {"emotion": list(EMOTIONS), "layer": layers}
    coords |= {"head": np.arange(shape["head"]), "unit": np.arange(shape["unit"])}
    attrs = {
        "method": METHOD, "label": "emotion", "readout": "residual", "readout_site": "resid_mid", "head_sublayer": "resid_mid",
        "form": "sequential", "residual_scale": 1.0, "directions_digest": "", "z_layers": layers, "neuron_layers": layers,
        "z_after": [], "z_reads": [], "neuron_after": [], "residual": ["resid_mid"] * len(layers),
    }  # fmt: skip
    return xr.Dataset(data, coords, attrs)


def sums(shape: dict[str, int], prompts: int) -> Callable[[], None]:
    """The least that numpy does for these scores, of blocks in memory, ordered by label."""
    rng, labels, layers = np.random.default_rng(2), len(EMOTIONS), shape["layers"]

    def block(width: int, numbers: int) -> tuple[int, np.ndarray]:
        rows = max(1, min(prompts, RUN // (8 * numbers)) // labels)
        return layers * -(-prompts // (labels * rows)), rng.normal(size=(labels, rows, width)).astype(np.float32)

    n, neuron = block(shape["unit"], shape["unit"])
    m, residual = block(shape["dim"], 2 * shape["dim"])
    size = np.empty_like(neuron[0])
    z = residual.reshape(-1, shape["head"], shape["head_dim"]).transpose(1, 0, 2)
    u = rng.normal(size=(shape["head"], shape["head_dim"], labels)).astype(np.float32)

    def work() -> None:
        for _ in range(n):
            for rows in neuron:
                np.add.reduce(rows, axis=0)
                np.add.reduce(np.abs(rows, out=size), axis=0)
        for _ in range(m):
            np.matmul(z, u)
            for rows in residual:
                np.add.reduce(rows, axis=0)

    return work


class Measured(NamedTuple):
    """Work over each way of reading, the sums alone over reading files, and the bytes read."""

    ways: dict[str, Ratio]
    sums: Ratio
    size: int


def scores(folder: Path, quick: bool, repetitions: int) -> Measured:
    """CPU times of both scores, of reading, and of the sums alone."""
    shape, prompts = (QUICK, 24) if quick else (SHAPE, 2880)
    acts, vectors = written(folder, shape, prompts), covectors(shape)
    here = Path(str(acts.path))
    files = [here / v.chunk(cell, g) for v in acts.described for cell in v.cells() for g in range(acts.n_groups)]

    def ours() -> None:
        attribution.head_contributions(acts, vectors)
        attribution.neuron_contributions(acts, vectors)

    def raw() -> int:
        return sum(np.fromfile(file, np.float32).nbytes for file in files)

    def labelled() -> int:
        return sum(acts.sel(v, layer=layer).values.nbytes for v in acts.variables for layer in range(shape["layers"]))

    def timed(work: Callable[[], object], read: Callable[[], object]) -> Ratio:
        return ratio(work, read, repetitions, clock=time.process_time)

    ways = {"`acts.sel(…).values`": timed(ours, labelled), "its files": timed(ours, raw)}
    return Measured(ways, timed(sums(shape, prompts), raw), labelled())


@app.command()
def main(
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes: only shows that all of it runs")] = False,
) -> None:
    """Scores of a whole training set from an open store, over reading the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        found = scores(Path(folder), quick, 1 if quick else repetitions)
    typer.echo(f"head and neuron scores from an open store of {found.size / 1e6:.0f} MB, over reading\n")
    typer.echo("| | ratio | target | met | CPU seconds |\n|---|---|---|---|---|")
    for way, one in found.ways.items():
        met = "yes" if one.median <= TARGET else "**no**"
        spread, seconds = f"{one.low:.2f} – {one.high:.2f}", f"{one.seconds:.2f} over {one.reference:.2f}"
        typer.echo(f"| {way} | {one.median:.2f} ({spread}) | ≤ {TARGET} | {met} | {seconds} |")
    one = found.sums
    typer.echo(
        f"\nThe sums alone, of blocks in memory, take {one.median:.2f} ({one.low:.2f} – {one.high:.2f}) × reading its files: "
        f"{one.seconds:.2f} over {one.reference:.2f} s."
    )


if __name__ == "__main__":
    app()
