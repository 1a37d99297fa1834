"""A store of many rows: how long it takes to open it and to read a few of them, and the memory that this needs.

Method. A store of rows is made without a model, in a process of its own: prompts of 100 tokens with a key and three labels,
each row four numbers. A fresh process then opens it, reads ten rows by number with all their labels, and all rows of one
key; and the same again, of other rows, when prompts and vocabulary are known. Files go to a temporary folder.

    python experiments/benchmarks/rows.py                     # 10 million rows: some minutes, most of them to make the store
    python experiments/benchmarks/rows.py --rows 100000
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)
T = TypeVar("T")
LENGTH, DIM, WORDS = 100, 4, 50_000
"""Tokens of a prompt, numbers of a row, different tokens."""
REPETITIONS = 9
"""Times that each question is asked again, of other rows; their median is shown."""


class Figure(NamedTuple):
    """A figure and what it should be at most."""

    name: str
    value: float
    target: float | None
    unit: str

    def __str__(self) -> str:
        target = "–" if self.target is None else f"< {self.target:g}"
        met = "–" if self.target is None else "yes" if self.value < self.target else "**no**"
        return f"| {self.name} | {self.value:.3g} {self.unit} | {target} | {met} |"


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context, rows: Annotated[int, typer.Option(min=LENGTH, help="rows of the store")] = 10_000_000
) -> None:
    """Make a store, and print what reading it takes."""
    if context.invoked_subcommand is not None:
        return
    with tempfile.TemporaryDirectory(prefix="emotrace-benchmark-") as folder:
        path = Path(folder) / "rows.zarr"
        _run("make", str(path), str(rows))
        found = json.loads(_run("measure", str(path)))
    print("| reading a store of", f"{rows:,} rows | figure | target | met |\n|---|---|---|---|")
    for one in found:
        print(Figure(*one))


@app.command(hidden=True)
def make(path: Path, rows: int) -> None:
    """Make a store of so many rows."""
    from emotrace import store

    prompts = rows // LENGTH
    rng = np.random.default_rng(0)
    table = store.Rows.of(
        [f"{i:07d}__positive__anger" for i in range(prompts)],
        rng.integers(0, WORDS, (prompts, LENGTH)).tolist(),
        [LENGTH // 2] * prompts,
        [range(LENGTH)] * prompts,
        lambda i: f" tok{i}",
        [{"skeleton_id": f"s{i // 6}", "emotion": ["anger", "fear", "joy"][i % 3], "n": i % 7} for i in range(prompts)],
    )
    variable = store.Variable("residual", ("layer", "dim"), {"layer": [0]}, {"dim": DIM})
    with store.create_or_resume(path, store.Plan.make(table, [variable], {}, max_rows=1 << 20)) as writer:
        for group in writer.pending():
            buffers = writer.buffers(group)
            buffers["residual"][...] = np.arange(group.start, group.stop)[:, None]
            writer.commit(group, buffers)


@app.command(hidden=True)
def measure(path: Path) -> None:
    """Print the figures of a store as JSON."""
    from emotrace import store
    from experiments.benchmarks.memory import peak_megabytes

    base = peak_megabytes()
    acts, opened = _timed(lambda: store.open_activations(path))
    n = len(acts)
    rng = np.random.default_rng(1)

    def ten() -> None:
        rows = np.sort(rng.integers(0, n, 10))
        x = acts.residual.isel(token=rows).load()
        assert (x.values[0, :, 0] == rows).all()
        assert (x.position.values == rows % LENGTH).all()
        assert [str(c.values[0]) for c in x.coords.values()]

    def key() -> None:
        prompt = int(rng.integers(0, n // LENGTH))
        x = acts.sel(key=f"{prompt:07d}__positive__anger").load()
        assert (x.values[0, :, 0] == prompt * LENGTH + np.arange(LENGTH)).all()

    times = [_timed(work)[1] for work in (ten, key)]
    times += [statistics.median(_timed(work)[1] for _ in range(REPETITIONS)) for work in (ten, key)]
    names = ("ten rows by number, the first time", "one key, the first time", "ten rows by number", "one key")
    figures = [Figure("open", opened, 1, "s")]
    figures += [
        Figure(name, 1000 * t, target, "ms") for name, t, target in zip(names, times, (None, None, 50, 50), strict=True)
    ]
    figures += [
        Figure("peak memory", peak_megabytes(), 500, "MB"),
        Figure("of it Python and imports", base, None, "MB"),
    ]
    print(json.dumps(figures))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    app()
