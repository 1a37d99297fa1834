"""Two ranks on two cores against one process, both of one thread a process: the same capture into a store.

Method. A random model (llama, width 512, 8 layers) is captured at every position of 192 prompts of 40 to 120 tokens into a new
store, by one process, and by two processes that take rank 0 and 1 of 2. The times begin when the model is loaded, before the
processes are forked, and end with the last of them. Both are done in turns, 5 times; the median of the ratios is shown with the
load of the machine, and the two trees are compared byte by byte. The wish is 1.7 on a quiet machine of two cores. On one that is
not quiet the ratio of CPU seconds says what two free cores would give: those of the one process over those of the busier rank.

    python experiments/benchmarks/ranks.py
    python experiments/benchmarks/ranks.py --repetitions 1 --prompts 32
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


@app.callback(invoke_without_command=True)
def main(
    repetitions: Annotated[int, typer.Option(min=1, help="of which the median is shown")] = 5,
    prompts: Annotated[int, typer.Option(min=4, help="that are captured")] = 192,
) -> None:
    """Print the ratio."""
    import torch

    torch.set_num_threads(1)
    from emotrace import model as model_
    from emotrace.testing import tiny

    model = model_.load(
        tiny.build("llama", hidden_size=512, intermediate_size=1408, num_hidden_layers=8),
        tokenizer=tiny.tiny_tokenizer(),
    )
    rng = np.random.default_rng(0)
    ids = [rng.integers(len(tiny.SPECIALS), tiny.VOCAB, rng.integers(40, 121)).tolist() for _ in range(prompts)]
    ratios, free = [], []
    with tempfile.TemporaryDirectory(prefix="emotrace-benchmark-") as folder:
        for turn in range(repetitions):
            one = _timed(model, ids, Path(folder) / f"one{turn}.zarr", 1)
            two = _timed(model, ids, Path(folder) / f"two{turn}.zarr", 2)
            same = _tree(Path(folder) / f"one{turn}.zarr") == _tree(Path(folder) / f"two{turn}.zarr")
            ratios.append(one.seconds / two.seconds)
            free.append(one.cpu[0] / max(two.cpu))
            print(f"one process {one}, two ranks {two}; same bytes: {same}; load {_load()}", flush=True)
    faster, would = statistics.median(ratios), statistics.median(free)
    print(f"\nmedian of {repetitions}: two ranks are {faster:.2f} times as fast (wish: 1.7) on {os.cpu_count()} cores;")
    print(f"by CPU seconds they would be {would:.2f} times as fast on two free ones")


class Taken(NamedTuple):
    """What a capture takes: seconds, and CPU seconds of each of its processes."""

    seconds: float
    cpu: list[float]

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({' + '.join(f'{x:.2f}' for x in self.cpu)} CPU s)"


def _timed(model: object, ids: list[list[int]], out: Path, ranks: int) -> Taken:
    """What a capture by so many processes takes."""
    import emotrace as et

    options = {"positions": "all", "row_group_bytes": 4 << 20, "batch_size": 8, "progress": False}
    begun, children = time.perf_counter(), []
    for index in range(ranks):
        child = os.fork()
        if not child:
            status = 1
            try:
                et.capture(model, ids, out=out, rank=(index, ranks), **options)  # type: ignore[arg-type]
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    ended = [os.wait4(child, 0) for child in children]
    if any(status for _, status, _ in ended):
        raise SystemExit("a process failed")
    return Taken(time.perf_counter() - begun, [used.ru_utime + used.ru_stime for _, _, used in ended])


def _tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _load() -> str:
    return " ".join(f"{x:.1f}" for x in os.getloadavg())


if __name__ == "__main__":
    app()
