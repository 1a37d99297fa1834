"""Two worlds of a server: what an ordinary key and a trusted one give of a model, held against the same model here.

With an ordinary key a block runs in a process without weights, with a trusted one beside them; the loopback server imitates both.

```
python experiments/remote_worlds.py --out runs/worlds                       # a table of tiny families
python experiments/remote_worlds.py --out runs/worlds --main-job --limit 4  # the main job, too: here, and with either key
```

The table has the largest deviation of every function, relative to its largest value; of replies the share that differ. Zeros
are equal to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from emotrace import model as model_
from emotrace.cli.guard import experiment
from emotrace.cli.options import names
from emotrace.disk import write_json
from emotrace.remote import Server
from emotrace.testing import tiny
from emotrace.testing.ndif import LoopbackServer, loopback
from emotrace.testing.worlds import TOLERANCES, measured

FAMILIES = "llama,qwen2,gemma2,olmo2,gpt2,gpt-neox,falcon,opt,granite,bert"
WORLDS = ("ordinary", "trusted")
TINY = "data/tiny_model"
SEARCH = ("--sweep-limit", "1", "--finalists", "1", "--dose-step", "3", "--draws", "1", "--curve-draws", "1", "--arms",
          "prefill_1,random_circuit,ablate")  # fmt: skip
"""The main job as small as its stages allow."""


def main(
    out: Annotated[Path, typer.Option(help="folder of the tables")] = Path("runs/worlds"),
    families: Annotated[str, typer.Option(help="of tiny models, comma-joined; none leaves them out")] = FAMILIES,
    keys: Annotated[str, typer.Option(help="of ordinary and trusted, comma-joined")] = ",".join(WORLDS),
    main_job: Annotated[
        bool, typer.Option("--main-job", help="carry out emotion_circuits.py with either key, and here")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="skeletons of the main job")] = 4,
) -> None:
    """Functions of tiny families, and the main job, with either key of a server against here."""
    out.mkdir(parents=True, exist_ok=True)
    if families != "none":
        table = pd.DataFrame([row for name in names(families) for row in _family(name, names(keys))])
        table.to_csv(out / "families.csv", index=False)
        print(table.to_string(index=False, float_format=lambda x: f"{x:.1e}" if x else "0", na_rep="–"))
        beyond = [f"{row['family']}: {name} {row[name]:.1e}" for row in table.to_dict("records")
                  for name, most in TOLERANCES.items() if name in row and row[name] > most]  # fmt: skip
        print("within the tolerances" if not beyond else "BEYOND: " + "; ".join(beyond))
    if main_job:
        told = _main_job(out, limit, names(keys))
        write_json(out / "main_job.json", told)
        for name, row in told.items():
            print(f"{name}: {row}")


def _family(name: str, keys: list[str]) -> list[dict[str, Any]]:
    """A row for each key."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole, bare = Path(folder, name), Path(folder, "client", name)
        tiny.save(name, whole)
        shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
        here = model_.load(whole)
        with loopback({f"tiny/{name}": whole}) as server:
            for world in keys:
                began = time.perf_counter()
                there = model_.load(bare, remote=Server(server.url, _key(server, world)))
                found = measured(here, there, lambda edit: world == "ordinary" or edit.startswith("changed"))  # noqa: B023
                jobs = server.log()
                where = there.sites.remote
                rows.append(
                    {"family": name, "key": world, **found, "requests": where.requests, "weights kB": where.weights / 1e3,
                     "crossed MB": sum(job["crossed"] for job in jobs) / 1e6, "s": time.perf_counter() - began}
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def _key(server: LoopbackServer, world: str) -> str:
    return server.key if world == "ordinary" else server.trusted_key


def _main_job(out: Path, limit: int, keys: list[str]) -> dict[str, dict[str, Any]]:
    """The main job here and with either key: seconds, what went to and fro, and the share of replies that are those of here."""
    told: dict[str, dict[str, Any]] = {"here": _carried_out(out / "here", limit, {})}
    want = _replies(out / "here")
    for world in keys:
        with loopback({TINY: TINY}) as server:
            told[world] = _carried_out(
                out / world, limit, {"NDIF_HOST": server.url, "NDIF_API_KEY": _key(server, world)}
            )
            jobs = server.log()
        got = _replies(out / world)
        told[world] |= {
            "requests": len(jobs), "MB sent": sum(job["bytes_in"] for job in jobs) / 1e6,
            "MB received": sum(job["bytes_out"] for job in jobs) / 1e6,
            "MB of weights by calls": sum(job["called"] for job in jobs) / 1e6,
            "MB between block and model": sum(job["crossed"] for job in jobs) / 1e6,
            "rows": len(got), "rows of here": len(want), "equal": sum(got.get(k) == v for k, v in want.items()) / len(want),
        }  # fmt: skip
    return told


def _carried_out(out: Path, limit: int, environment: dict[str, str]) -> dict[str, Any]:
    script = Path(__file__).with_name("emotion_circuits.py")
    command = [sys.executable, str(script), "--model", TINY, "--limit", str(limit), "--out", str(out), *SEARCH]
    command += ["--remote", environment["NDIF_HOST"]] if environment else []
    began = time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    report = json.loads((out / "report.json").read_text())
    accuracy = {m: round(v["overall"]["value"], 4) for m, v in report["accuracy"].items() if "overall" in v}
    return {"seconds": round(time.perf_counter() - began, 1), "accuracy": accuracy}


def _replies(out: Path) -> dict[tuple[str, str, int], list[int]]:
    rows = map(json.loads, (out / "generations.jsonl").read_text().splitlines())
    return {(row["key"], row["method"], row["draw"]): row["token_ids"] for row in rows}


if __name__ == "__main__":
    experiment(main)
