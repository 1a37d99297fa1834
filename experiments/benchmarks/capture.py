"""Capture of a real model: the last position of SEV prompts, beside the bare forward, plain hooks and TransformerLens.

Method. The same prompts, in the same length-sorted batches of 32 where prompts are not shared; CPU seconds of one thread, the
works in turn with the bare forward (logits included, no cache), median / median. Hooks and TransformerLens read
``resid_mid`` and ``resid_post`` of every layer in the bare batches; emotrace writes them to a store. TransformerLens runs in an
environment of its own, beside a bare forward of the same versions there.

    python experiments/benchmarks/capture.py                                        # the shipped model
    python experiments/benchmarks/capture.py --model FOLDER --python LENS_ENV/bin/python
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer

import emotrace as et

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from experiments.benchmarks import work
from experiments.benchmarks.timing import Ratio

WORKER = Path(__file__).with_name("capture_lens_worker.py")
app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


def cpu(one: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    gc.collect()
    start = time.process_time()
    one()
    return time.process_time() - start


def in_turn(works: list[Callable[[], object]], repetitions: int) -> list[list[float]]:
    """CPU seconds of several works, one after the other, again and again: ``[repetition][work]``."""
    return [[cpu(one) for one in works] for _ in range(repetitions)]


def of(pairs: list[tuple[float, float]]) -> Ratio:
    """Of ``(bare, work)`` seconds."""
    base, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    each = [b / a for a, b in pairs]
    return Ratio(mine / base, min(each), max(each), mine, base)


@torch.no_grad()
def hooked(twin: Any, inputs: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """``resid_mid`` and ``resid_post`` of the last position, by hooks: ``[layer, site, prompt, dim]``, as the batches go."""
    found: dict[tuple[int, int], list[torch.Tensor]] = {}

    def keep(layer: int, site: int, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        found.setdefault((layer, site), []).append(value[:, -1].clone())

    handles = []
    for i, block in enumerate(twin.model.layers):
        handles.append(block.post_attention_layernorm.register_forward_pre_hook(lambda _, a, i=i: keep(i, 0, a)))
        handles.append(block.register_forward_hook(lambda _, __, out, i=i: keep(i, 1, out)))
    try:
        work.forward(twin, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return np.stack([[torch.cat(found[i, s]).numpy() for s in (0, 1)] for i in range(len(twin.model.layers))])


def lens(python: Path, folder: Path, model: Path, inputs: list[dict[str, torch.Tensor]], repetitions: int) -> list[Any]:
    """Name of the library, and ``(bare, work)`` seconds of each turn, in its own environment."""
    batches = [{name: value.tolist() for name, value in batch.items()} for batch in inputs]
    (folder / "batches.json").write_text(json.dumps(batches))
    done = subprocess.run(
        [str(python), str(WORKER), str(model), str(folder / "batches.json"), str(repetitions)], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="folder of a Llama-like model with a tokenizer")] = work.SHIPPED,
    scenarios: Annotated[int, typer.Option(min=1, help="scenarios of SEV, 18 prompts each")] = 4,
    python: Annotated[Path | None, typer.Option(help="interpreter of an environment with TransformerLens")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns")] = 3,
) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(1)
    ours = et.load(model)
    twin = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = work.sev_ids(ours, scenarios)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    inputs = work.batches(ids, 32, by_length=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="emotrace-benchmark-") as folder:

        def captured() -> et.Activations:
            out = Path(tempfile.mkdtemp(dir=folder)) / "sev.zarr"
            return et.capture(ours, ids, ("resid_mid", "resid_post"), positions="last", out=out, progress=False)

        bare, plain = partial(work.forward, twin, inputs), partial(hooked, twin, inputs)
        off = float(np.abs(captured().residual.values[:, :, order] - plain()).max())  # and the first, unmeasured turn
        turns = in_turn([bare, captured, plain], repetitions)
        for name, column in (("`emotrace.capture`, to a store", 1), ("plain hooks, the bare batches", 2)):
            rows.append((name, of([(turn[0], turn[column]) for turn in turns])))
        if python is not None:
            name, pairs = lens(python, Path(folder), model, inputs, repetitions)
            rows.append((f"{name} `run_with_cache`, the bare batches", of([tuple(p) for p in pairs])))
    mean = sum(map(len, ids)) / len(ids)
    print(f"\n{len(ids)} prompts of {mean:.0f} tokens; largest difference from hooks {off:.1e}.\n")
    print("| work | CPU seconds / bare forward (min – max) |\n|---|---|")
    for work_, r in rows:
        print(f"| {work_} | {r.median:.3f} ({r.low:.3f} – {r.high:.3f}) |")
    if python is None:
        print("\nTransformerLens was not run: name an environment that has it with --python.")


if __name__ == "__main__":
    app()
