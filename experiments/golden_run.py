"""Golden run: everything the package computes, once and small, to show that a change has changed no number.

Every study and every stage runs on the shipped model and data, one after the other in one process, with one thread and fixed
seeds; what each of them writes and prints lands under ``--out``. Made at two commits, the two trees are compared by what
they say (`golden_compare`): every number to the bit, every text, every label.

    python experiments/golden_run.py run --out runs/golden/before       # at the one commit
    python experiments/golden_run.py run --out runs/golden/after        # at the other
    python experiments/golden_run.py compare runs/golden/before runs/golden/after

A difference is an exit status of 1 and a line in the table: file, place, before, after.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import golden_compare
import typer

from emotrace.cli.guard import guarded
from emotrace.labels import EmotraceError, unknown

ROOT = Path(__file__).resolve().parent.parent
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
         "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
"""Read by libraries when they are imported, so set before this process begins."""
SAID = "Keep the reply to at most two sentences."
TALK = "Who is at the door?\n/mix anger=1\nThe bus was late again.\n/quit\n"
"""What is typed to ``emotrace chat``."""
FEW = "--model data/tiny_model --data data/sev.jsonl --limit 4"
SOME = f"{FEW} --directions directions"
VECTORS = "--emotions anger,joy,fear --max-new-tokens 12"
STEPS = {
    # The studies.
    "emotion_circuits": "emotion_circuits.py --limit 4 --sweep-limit 1 --finalists 1 --dose-step 11 --draws 1 --curve-draws 1 "
    "--max-new-tokens 14 --attn-implementation eager --out emotion_circuits",
    "emotion_vectors": "emotion_vectors.py --limit 2 --doses 0.5,1.5 --draws 1 --max-new-tokens 12 --out emotion_vectors",
    "goemotions_steering": "goemotions_steering.py --limit 6 --emotions anger,joy --doses 0.5,1 --draws 1 --keep 8 "
    "--max-new-tokens 12 --out goemotions_steering",
    "circuit_discovery": "circuit_discovery.py --limit 8 --pairs-per-skeleton 1 --exact-pairs 1 --layer 1 --edges 12 --nodes 4 "
    "--steps 2 "
    "--out circuit_discovery",
    "emotion_knowledge": "emotion_knowledge.py --model data/tiny_model --emotions joy,fear,anger,sadness --seeds 1,3 --k 0.1 "
    "--draws 2 --prompt-length 4 --epochs 1 --limit 6 --words bad,good --processes 1 --out emotion_knowledge",
    "remote_capture": "remote_capture.py --model data/tiny_model --data data/sev.jsonl --limit 1 --remote local --out remote",
    "measure_discovery": "measure_discovery.py --shapes direct,query --steps 2 --out measure_discovery.csv",
    # The stages of the main job.
    "sites": "emotrace sites data/tiny_model",
    "generate": f"emotrace generate {FEW} --max-new-tokens 20 --out rows.jsonl",
    "judge": "emotrace judge rows.jsonl --out judged.jsonl",
    "capture": f"emotrace capture {FEW} --sites resid_mid,resid_post,z,neuron,final_norm --out acts.zarr",
    "capture_replies": f"emotrace capture {FEW} --sites resid_post,attn_out,o_proj_out --positions steer --replies rows.jsonl "
    "--out replies.zarr",
    "info": "emotrace info acts.zarr",
    "directions": "emotrace directions acts.zarr --rows judged.jsonl --out directions",
    "neurons": f"emotrace neurons {SOME} --out neurons",
    "heads": f"emotrace heads {SOME} --head-readout normed --out heads",
    "influence": f"emotrace influence {SOME} --doses 0.3 --out influence",
    "circuit": f"emotrace circuit {SOME} --rows judged.jsonl --out circuit",
    "published": f"emotrace circuit {SOME} --preset emotion_circuits --influence influence --out published",
    "ablated": f"emotrace curves heads {SOME} --how resample --ks 1,2 --draws 2 --out ablated",
    "added": f"emotrace curves circuit/neuron {SOME} --what add --circuit circuit --ks 1,4 --draws 2 --out added",
    "steer": f"emotrace steer 'The bus was late again.' --system '{SAID}' --model data/tiny_model --directions directions "
    "--emotion anger --layers 0-3 --dose 0.12 --sample --seed 3",
    "modulate": f"emotrace modulate 'The bus was late again.' --system '{SAID}' --model data/tiny_model --circuit circuit "
    "--emotion fear --strength 0.25",
    "export": "emotrace export --model data/tiny_model --circuit circuit --emotion anger --strength 0.25 --out exported",
    # Those of vectors and of replies.
    "vectors": f"emotrace vectors --model data/tiny_model --queries data/emotion_query_sample.json --limit 3 {VECTORS} "
    "--out vectors",
    "text_vectors": "emotrace vectors --model data/tiny_model --texts data/goemotions_sample.csv --emotions anger,joy --limit 8 "
    "--method pca --keep 20 --out text_vectors",
    "arms": "emotrace arms --model data/tiny_model --queries data/emotion_query_sample.json --vectors vectors --limit 1 "
    "--controls random,wrong_emotion,shuffled --draws 1 --max-new-tokens 12 --out arms",
    "evaluate": "emotrace evaluate arms/rows.jsonl --model data/tiny_model --out evaluation",
    "truthfulqa": "emotrace truthfulqa --model data/tiny_model --data data/truthfulqa_mc_sample.json --vectors vectors "
    "--mix anger=1 --limit 4 --substring --out truthfulqa",
    "chat": f"emotrace chat data/tiny_model --vectors vectors --mix joy=1 --system '{SAID}' --max-new-tokens 20",
}  # fmt: skip
"""Name → command; the working directory is the folder of the run, in which ``data`` is the repository's."""


def run(
    out: Annotated[Path, typer.Option(help="folder for everything; must not exist")],
    only: Annotated[str | None, typer.Option(help="comma-separated steps, which need those before them; default all")] = None,
) -> None:  # fmt: skip
    """Run every study and every stage small, and keep what they write and print."""
    wanted = list(STEPS) if only is None else only.split(",")
    for name in wanted:
        if name not in STEPS:
            raise unknown("step", name, STEPS, "--only")
    if only is None and out.exists():
        raise EmotraceError(f"--out {out} exists; a golden run begins with nothing. Give a new folder.")
    if any(os.environ.get(name) != value for name, value in ALONE.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALONE})
    (out / "printed").mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    commit = _commit()
    with contextlib.chdir(out):
        data = Path("data")
        data.symlink_to(ROOT / "data")
        try:
            for name in wanted:
                began = time.process_time()
                _step(name)
                seconds[name] = round(time.process_time() - began, 1)
                print(f"{name:>20} {seconds[name]:6.1f} s", flush=True)
        finally:
            data.unlink()
        Path("golden.json").write_text(
            json.dumps({"commit": commit, "seconds": seconds, "steps": STEPS}, indent=1) + "\n"
        )
    print(f"{commit}: {sum(seconds.values()):.0f} s, in {out}")


def compare(
    before: Annotated[Path, typer.Argument(help="folder of a golden run")],
    after: Annotated[Path, typer.Argument(help="folder of another")],
    rows: Annotated[int, typer.Option(min=1, help="most differences shown of each file")] = 5,
    digits: Annotated[int | None, typer.Option(min=1, help="numbers agree in so many; default to the bit")] = None,
) -> None:
    """Every number, text and label of two golden runs; exit status 1 if any differs."""
    for folder in (before, after):
        if not folder.is_dir():
            raise EmotraceError(f"{folder} is no folder; give two that `golden_run.py run` wrote.")
    found = golden_compare.trees(before, after, digits)
    print(golden_compare.table(found, rows))
    if found.differences:
        raise typer.Exit(1)


def _step(name: str) -> None:
    """One command as a user would give it, in this process; what it prints goes to ``printed``."""
    program, *flags = shlex.split(STEPS[name])
    try:
        with _told(name):
            if program == "emotrace":
                sys.argv = [program, *flags]
                runpy.run_module("emotrace.cli", run_name="__main__")
            else:
                sys.argv = [str(ROOT / "experiments" / program), *flags]
                runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise EmotraceError(f"the step {name} ended with status {end.code}: {STEPS[name]}") from None


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Standard output into a file, and standard input from what is typed."""
    before = sys.argv, sys.stdin
    with (
        open(f"printed/{name}.txt", "w", encoding="utf-8") as said,
        contextlib.redirect_stdout(said),
        open(_typed(), encoding="utf-8") as typed,
    ):
        sys.stdin = typed
        try:
            yield
        finally:
            sys.argv, sys.stdin = before


def _typed() -> Path:
    path = Path("printed/typed")
    path.write_text(TALK, encoding="utf-8")
    return path


def _commit() -> str:
    """The commit of this checkout, and whether files differ from it."""
    said = [subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True).stdout.strip()
            for a in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))]  # fmt: skip
    return said[0] + (" with changes" if said[1] else "")


if __name__ == "__main__":
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, help="Golden runs, and what differs between two."
    )
    app.command()(run)
    app.command()(compare)
    guarded(lambda: app(standalone_mode=False))
