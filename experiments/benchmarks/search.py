"""A search for a dose: generation and likelihood, now and in another checkout of this project.

Method. The same few-shot prompts, edits and doses go to `emotrace.generate` and `emotrace.scoring` of both checkouts, each
turn in a process of its own that begins with nothing kept; the checkouts take turns. One torch thread, CPU seconds. A model of
SmolLM2-135M's shape with random weights. Below 1 is faster than the other checkout; replies must be equal token by token.

    git worktree add OTHER 60b512f
    python experiments/benchmarks/search.py --against OTHER
    python experiments/benchmarks/search.py --against OTHER --quick          # tiny sizes: only shows that it runs
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import typer

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("search_worker.py")
SMOL: Final = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
QUICK: Final = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "vocab_size": 160, "tie_word_embeddings": True, "max_position_embeddings": 256,
}  # fmt: skip
AGREE: Final = {"perplexity": 1e-3, "kl": 1e-3}
"""Largest relative difference of a score; KL of nearly 0 is rounding, and compared with the largest."""

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


def turn(checkout: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One search in a process of its own."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(settings)], capture_output=True, text=True, check=False,
        env={**os.environ, **single, "PYTHONPATH": str(checkout)}, cwd=checkout,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    if Path(found["where"]) != checkout.resolve():
        raise SystemExit(f"the emotrace of {found['where']} ran, not that of {checkout}.")
    return found


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What both found otherwise than the other."""
    wrong = [] if mine["replies"] == theirs["replies"] else ["the replies differ"]
    for name, most in AGREE.items():
        a, b = (np.array(found[name], dtype=float) for found in (mine, theirs))
        off = float(np.abs(a - b).max() / np.abs(b).max())
        if off > most:
            wrong.append(f"{name} differs by {off:.1e} of its largest value")
    return wrong


@app.command()
def main(
    against: Annotated[Path, typer.Option(help="folder of the other checkout")],
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns")] = 3,
    prompts: Annotated[int, typer.Option(min=1, help="few-shot prompts, each in six emotions")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, which only show that it runs")] = False,
) -> None:
    """Compare the checkouts and print a table."""
    sizes: dict[str, Any] = {"prompts": prompts, "shared": 260, "own": [30, 60], "new": 24, "doses": [0.5, 1.0, 2.0]}
    if quick:
        sizes, repetitions = {"prompts": 2, "shared": 20, "own": [4, 8], "new": 4, "doses": [0.5, 1.0]}, 1
    settings = {"shape": QUICK if quick else SMOL, "sizes": sizes}
    pairs = []
    for number in range(repetitions):
        theirs, mine = turn(against, settings), turn(ROOT, settings)
        wrong = differences(mine, theirs)
        if wrong:
            raise SystemExit(f"not the same: {'; '.join(wrong)}.")
        pairs.append((mine, theirs))
        seconds = [", ".join(f"{n} {s:.1f} s" for n, s in found["seconds"].items()) for found in (theirs, mine)]
        print(f"turn {number + 1}: {against.name} {seconds[0]}; here {seconds[1]}", flush=True)
    shape = f"{sizes['prompts']} prompts × 6 emotions × {len(sizes['doses'])} doses, {sizes['new']} new tokens"
    print(f"\n{shape}; same replies.\n\n| work | here / {against.name} (min – max) | times faster |\n|---|---|---|")
    for name in ("generation", "likelihood"):
        each = [m["seconds"][name] / t["seconds"][name] for m, t in pairs]
        both = [median(found["seconds"][name] for found in side) for side in zip(*pairs, strict=True)]
        print(f"| {name} | {both[0] / both[1]:.3f} ({min(each):.3f} – {max(each):.3f}) | {both[1] / both[0]:.2f} |")
    peaks = [max(found["megabytes"] for found in side) for side in zip(*pairs, strict=True)]
    print(f"| peak memory | {peaks[0] / peaks[1]:.3f} | |")


if __name__ == "__main__":
    app()
