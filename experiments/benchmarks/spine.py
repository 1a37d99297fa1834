"""The spine's speed: what capture, store and steering cost beside the bare model.

Method. Every question is a ratio: the work of emotrace against a plain transformers or numpy call that yields nothing
but the computation, on the same weights and the same batches. One torch thread. Both are repeated turn about in one
process, and the table shows median / median with the smallest and largest ratio of two neighbouring repetitions. Token
ids are given, so that no tokenizer is timed; the whole of `emotrace.capture` or `emotrace.generate` is. Files go to
a temporary folder.

    python experiments/benchmarks/spine.py
    python experiments/benchmarks/spine.py --only memory --only disk_last --repetitions 9
    python experiments/benchmarks/spine.py --quick                               # tiny sizes: only shows that all of it runs
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import emotrace as et

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

from experiments.benchmarks import peaks, work
from experiments.benchmarks.setting import Answer, Setting
from experiments.benchmarks.steered import alike, opening, steering
from experiments.benchmarks.timing import Ratio, ratio

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


BATCH, LENGTH = 8, 64
"""Prompts of a batch, tokens of a prompt."""


def _capture(setting: Setting, question: str, target: float, n_batches: int, **options: Any) -> Answer:
    """Capture of seven sites in all layers, several batches of 8 × 64 tokens, against the bare forwards of the same batches."""
    pair = work.llama(setting.large)
    ids = work.random_ids(BATCH * (2 if setting.quick else n_batches), LENGTH)
    inputs = work.batches(ids, BATCH)
    stored = options.pop("stored", False)

    def captured() -> object:
        out = setting.folder / "activations.zarr" if stored else None
        return et.capture(pair.model, ids, work.SITES, batch_size=BATCH, out=out, progress=False, **options)

    result = ratio(
        captured,
        lambda: work.forward(pair.twin, inputs),
        setting.repetitions,
        lambda: setting.fresh("activations.zarr"),
    )
    return Answer(question, result, target, f"{len(inputs)} batches of {BATCH} × {LENGTH}")


def memory(setting: Setting) -> Answer:
    """All positions in memory."""
    return _capture(setting, "all positions in memory / bare forward", 1.15, 4, positions="all")


def disk_last(setting: Setting) -> Answer:
    """The last position to disk."""
    return _capture(setting, "last position to disk / bare forward", 1.15, 12, positions="last", stored=True)


def disk_all(setting: Setting) -> Answer:
    """All positions to disk."""
    return _capture(setting, "all positions to disk / bare forward", 1.5, 8, positions="all", stored=True)


def sev_last(setting: Setting) -> Answer:
    """The main job's capture: last position of the SEV prompts in six emotions, on the shipped model."""
    pair = work.shipped()
    ids = work.sev_ids(pair.model, 8 if setting.quick else None)
    inputs = work.batches(ids, 32, by_length=True)

    def captured() -> object:
        out = setting.folder / "sev.zarr"
        return et.capture(pair.model, ids, ("resid_mid", "resid_post"), positions="last", out=out, progress=False)

    repetitions = max(2, setting.repetitions // 2)
    result = ratio(captured, lambda: work.forward(pair.twin, inputs), repetitions, lambda: setting.fresh("sev.zarr"))
    mean = sum(map(len, ids)) / len(ids)
    trained = "shipped model" if work.SHIPPED.exists() else "random model of the shipped size"
    note = f"{len(ids)} prompts of {mean:.0f} tokens, {trained}, batch 32"
    return Answer("last position of SEV prompts to disk / length-sorted bare forward", result, 0.75, note)


def journal(setting: Setting) -> list[Answer]:
    """Capture to disk that keeps its batches in a journal, against one that keeps nothing before a row group is whole."""
    from emotrace.store import journal as kept

    def captured(pair: work.Pair, ids: list[list[int]], positions: str, share: float, latest: float) -> object:
        rules = kept.SHARE, kept.LATEST
        kept.SHARE, kept.LATEST = share, latest
        try:
            out = setting.fresh("journal.zarr")
            return et.capture(
                pair.model, ids, work.SITES, batch_size=BATCH, positions=positions, out=out, progress=False
            )
        finally:
            kept.SHARE, kept.LATEST = rules

    found = []
    small, smol = work.shipped(), work.llama(work.QUICK if setting.quick else work.SMOL)
    for name, pair, n_batches in (("shipped size", small, 40), ("135 M", smol, 5)):
        ids = work.random_ids(BATCH * (2 if setting.quick else n_batches), LENGTH)
        for positions in ("last", "all"):
            given = pair, ids, positions
            result = ratio(
                lambda given=given: captured(*given, kept.SHARE, kept.LATEST),
                lambda given=given: captured(*given, -1, float("inf")),
                setting.repetitions,
            )
            note = f"{len(ids) // BATCH} batches of {BATCH} × {LENGTH}"
            found.append(Answer(f"capture with its journal / without ({name}, {positions})", result, 1.03, note))
    return found


def read(setting: Setting) -> Answer:
    """One (layer, sublayer) of an open store against the same array in a .npy file, both in the page cache."""
    rows, dim = (256, 64) if setting.quick else (8192, 768)
    store = et.store
    table = store.Rows.of([str(i) for i in range(rows)], [[5]] * rows, [1] * rows, [range(1)] * rows, str, [{}] * rows)
    coords = {"layer": [0, 1], "sublayer": ["resid_mid", "resid_post"]}
    variable = store.Variable("residual", ("layer", "sublayer", "dim"), coords, {"dim": dim})
    out, flat = setting.fresh("read.zarr"), setting.folder / "read.npy"
    rng = np.random.default_rng(0)
    with store.create_or_resume(out, store.Plan.make(table, [variable], {})) as writer:
        for group in writer.pending():
            buffers = writer.buffers(group)
            buffers["residual"][:] = rng.standard_normal(buffers["residual"].shape, dtype=np.float32)
            writer.commit(group, buffers)
    opened = et.open_activations(out)
    np.save(flat, opened.sel(layer=1, sublayer="resid_mid").values)
    assert (np.load(flat) == opened.sel(layer=1, sublayer="resid_mid").values).all()
    result = ratio(
        lambda: opened.sel(layer=1, sublayer="resid_mid").values, lambda: np.load(flat), 5 * setting.repetitions
    )
    return Answer(
        "one (layer, sublayer) of an open store / numpy.load", result, 2.0, f"{flat.stat().st_size / 1e6:.0f} MB"
    )


def peak(setting: Setting) -> list[Answer]:
    """Peak memory of a piece of work with 10 × the prompts, each in a process of its own."""
    found = []
    for name, (_, many) in peaks.WORKS.items():
        base = 8 if setting.quick else many
        few, more = (_peak_of(setting, name, n) for n in (base, 10 * base))
        result = Ratio(more / few, more / few, more / few, more, few)
        note = f"{few:.0f} MB with {base} prompts, {more:.0f} MB with {10 * base}, shipped size"
        found.append(Answer(f"peak memory with 10 × the prompts ({name})", result, 1.10, note))
    return found


def _peak_of(setting: Setting, name: str, prompts: int) -> float:
    command = [sys.executable, str(peaks.__file__), name, str(prompts), *(["--quick"] if setting.quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


QUESTIONS: dict[str, Callable[[Setting], Answer | list[Answer]]] = {
    "memory": memory,
    "disk_last": disk_last,
    "disk_all": disk_all,
    "sev_last": sev_last,
    "journal": journal,
    "read": read,
    "steering": steering,
    "alike": alike,
    "opening": opening,
    "peak": peak,
}


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(QUESTIONS)}; may be repeated")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns of each ratio")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, which only show that all of it runs")] = False,
) -> None:
    """Answer the questions and print a table."""
    torch.set_num_threads(1)
    wrong = [name for name in only or () if name not in QUESTIONS]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r}: choices are {', '.join(QUESTIONS)}.", param_hint="--only")
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory(prefix="emotrace-benchmark-") as folder:
        setting = Setting(quick, 2 if quick else repetitions, Path(folder))
        for name in only or QUESTIONS:
            answer = QUESTIONS[name](setting)
            for one in answer if isinstance(answer, list) else [answer]:
                answers.append(one)
                print(one, f"[{one.ratio.seconds:.3g} / {one.ratio.reference:.3g}] {one.note}", flush=True)
    print("\n| question | ratio (min – max) | target | met |\n|---|---|---|---|")
    for one in answers:
        print(one)
    if quick:
        print("\n--quick: these sizes are too small for the ratios to mean anything.")


if __name__ == "__main__":
    app()
