"""Circuit discovery beside TransformerLens: attribution patching on the same weights and pairs, in one run.

Method. The shipped model in float32, as a Hugging Face directory; pairs of ``data/sev.jsonl``, each prompt against the same
scenario with another emotion word; the metric is the logit of the one emotion word minus that of the other. Nodes are all
heads and MLPs. TransformerLens 4.3 scores no edges where query heads share keys and values, so edges are compared on a copy
whose keys and values are repeated for every query head, which computes the same. Each library runs in a process of its own
with one torch thread; they take turns after one unmeasured turn of each. Agreement is Pearson's and Spearman's correlation
of the mean scores; time is median / median, memory peak / peak of the whole process, so below 1 is better.

    python experiments/benchmarks/discovery.py --python LENS_ENV/bin/python      # an environment with transformer-lens 4.3
    python experiments/benchmarks/discovery.py --make-env FOLDER                 # makes one there first, with pip
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import pearsonr, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script from any folder

import emotrace as et
from emotrace import discovery
from emotrace.datasets import Prompt, Prompts
from experiments.benchmarks.lens_worker import serve

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ("transformer-lens==4.3.*", "torch==2.13.0")
WORKER = Path(__file__).with_name("lens_worker.py")
app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)


@dataclass
class Side:
    """One library in its process."""

    process: subprocess.Popen
    says: dict[str, Any]

    @classmethod
    def start(cls, command: list[str]) -> Side:
        """Start it and wait until it is ready."""
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return cls(process, cls._read(process, command))

    def turn(self) -> dict[str, Any]:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read(self.process, self.process.args)

    def stop(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    @staticmethod
    def _read(process: subprocess.Popen, command: Any) -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):  # libraries may print as well
                return json.loads(line)
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {process.wait()}; its reason is above.")


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    python: Annotated[Path | None, typer.Option(help="interpreter of an environment with transformer-lens 4.3")] = None,
    make_env: Annotated[Path | None, typer.Option(help="folder in which to make that environment, with pip")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="pairs")] = 24,
    batch_size: Annotated[
        int, typer.Option(min=1, help="pairs per batch of emotrace; the other takes one at a time")
    ] = 8,
    repetitions: Annotated[int, typer.Option(min=1, help="measured turns")] = 5,
) -> None:
    """Compare nodes, then edges, and print a table."""
    if context.invoked_subcommand is not None:
        return
    if (python is None) == (make_env is None):
        raise typer.BadParameter("give one of --python and --make-env.")
    interpreter = python or _environment(make_env)
    if not interpreter.is_file():
        raise typer.BadParameter(f"{interpreter} is no interpreter.", param_hint="--python")
    rows = []
    with tempfile.TemporaryDirectory(prefix="emotrace-benchmark-") as folder:
        write_pairs(Path(folder), pairs)
        for level in ("node", "edge"):
            write_model(Path(folder) / "model", repeated=level == "edge")
            rows += compare(interpreter, Path(folder), level, sorted({batch_size, 1}, reverse=True), repetitions)
    print("\n| scores | n | Pearson | Spearman | time | peak memory |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


def compare(python: Path, folder: Path, level: str, sizes: list[int], repetitions: int) -> list[str]:
    """Rows of the table: emotrace at each batch size against the other library."""
    theirs = Side.start([str(python), str(WORKER), str(folder), level])
    print(f"{level}s: {theirs.says['library']}", flush=True)
    wanted, rows = theirs.turn()["scores"], []
    for size in sizes:
        mine = Side.start([sys.executable, __file__, "ours", str(folder), level, str(size)])
        found = mine.turn()["scores"]
        if set(found) != set(wanted):
            odd = sorted(set(found) ^ set(wanted))
            raise SystemExit(f"{level}s are named differently: {len(odd)} are in one only, such as {odd[:5]}.")
        turns = [(theirs.turn(), mine.turn()) for _ in range(repetitions)]
        mine.stop()
        base, own = ([t[i]["seconds"] for t in turns] for i in (0, 1))
        peaks = [turns[-1][i]["megabytes"] for i in (0, 1)]
        each = [b / a for a, b in zip(base, own, strict=True)]
        a, b = (np.array([table[k] for k in wanted]) for table in (wanted, found))
        time = statistics.median(own) / statistics.median(base)
        rows.append(
            f"| {level}s, batch {size} | {len(a)} | {pearsonr(a, b)[0]:.6f} | {spearmanr(a, b)[0]:.6f} | "
            f"{time:.2f} ({min(each):.2f} – {max(each):.2f}) | {peaks[1] / peaks[0]:.2f} |"
        )
        print(
            f"  batch {size}: {statistics.median(own):.2f} s / {statistics.median(base):.2f} s, {peaks[1]:.0f} MB / "
            f"{peaks[0]:.0f} MB; largest difference {np.abs(a - b).max():.2g}, largest score {np.abs(a).max():.2g}",
            flush=True,
        )
    theirs.stop()
    return rows


def write_pairs(folder: Path, n: int) -> None:
    """``pairs.json``: token ids of both prompts, and of the emotion words whose logits the metric takes."""
    model = et.load(str(ROOT / "data" / "tiny_model"), device="cpu")
    prompts = et.datasets.sev(ROOT / "data" / "sev.jsonl", limit=-(-n // 18))
    found = discovery.other_emotion(model, prompts)[:n]
    coded = {e: model.sites.encoder.tokenizer(f" {e}", add_special_tokens=False)["input_ids"][-1] for e in et.EMOTIONS}
    rows = [
        {"key": p.key, "clean": p.clean, "counterfactual": p.counterfactual,
         "tokens": [coded[p.labels["emotion"]], coded[p.against["emotion"]]]}
        for p in found
    ]  # fmt: skip
    (folder / "pairs.json").write_text(json.dumps(rows))


def write_model(folder: Path, repeated: bool) -> None:
    """The shipped model as a directory; ``repeated`` gives every query head its own copy of its group's key and value."""
    import transformers

    source = ROOT / "data" / "tiny_model"
    module: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if repeated:
        config = module.config
        each = config.num_attention_heads // config.num_key_value_heads
        weights = module.state_dict()
        for name, w in weights.items():
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                weights[name] = w.unflatten(0, (-1, config.head_dim)).repeat_interleave(each, 0).flatten(0, 1)
        config.num_key_value_heads = config.num_attention_heads
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        module.load_state_dict(weights)
    module.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)


@app.command(hidden=True)
def ours(folder: Path, level: str, batch_size: int) -> None:
    """emotrace's side of it, one round for each line on stdin."""
    torch.set_num_threads(1)
    model = et.load(str(folder / "model"), device="cpu")
    rows = json.loads((folder / "pairs.json").read_text())
    clean, other = (
        Prompts([Prompt(r["key"], token_ids=tuple(r[s]), labels={"word": str(r["tokens"][i])}) for r in rows])
        for i, s in enumerate(("clean", "counterfactual"))
    )
    found = discovery.pairs(model, clean, other)
    words = {str(i): i for r in rows for i in r["tokens"]}
    metric = discovery.LogitDifference(words, label="word")

    def work() -> dict[str, float]:
        made = discovery.scores(
            model, found, metric, method="eap", level=level, batch_size=batch_size, progress=False  # pyright: ignore
        )  # fmt: skip
        scores = discovery.mean(made)
        return dict(zip(scores[level].values.tolist(), scores.values.tolist(), strict=True))

    serve({"library": "emotrace"}, work)


def _environment(folder: Path | None) -> Path:
    assert folder is not None
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


if __name__ == "__main__":
    app()
