"""Is emotrace right, or does it refuse, on every model class of the installed transformers?

Each causal and masked class that can be built tiny gets random weights and is read and changed by emotrace, against plain torch
hooks on one un-padded prompt at a time (`family_checks`): every site at every position, alone, in a padded batch and with
beginnings shared; the names of places, by the model's own hidden states, the sum of a layer, and what is left where ``z`` or
``neuron`` is zero; logits under an edit; greedy tokens under an edit, with a cache and without; log-probabilities of replies.

A class is ``proven`` (with its sites), ``refused`` (by `emotrace.load`, with its reason), ``wrong`` (what, and by how much; there
should be none) or ``not built`` (why). What a single function refuses by name is listed with a proven class.

    python experiments/sweep_families.py --out runs/sweep [--only REGEX] [--jobs 2]
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any

import families
import family_checks
import pandas as pd
import torch
import typer

from emotrace.cli import experiment
from emotrace.disk import write_json
from emotrace.identity import versions
from emotrace.labels import EmotraceError
from emotrace.runlog import Log
from emotrace.shown import progress

FRESH = 25
"""Classes after which a worker process is replaced, so that memory does not grow."""
OUTCOMES = ("proven", "refused", "wrong", "not built")


def main(
    out: Annotated[Path, typer.Option(help="folder for the table; the same command again continues")],
    only: Annotated[str, typer.Option(help="regular expression that the name of a class holds")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="processes, one torch thread each")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="time limit of a class")] = 300,
) -> None:
    """Try every causal and masked class, and write which are proven, refused, wrong or not built."""
    try:
        wanted = [(kind, name) for kind, name in families.names() if re.search(only, name)]
    except re.error as error:
        raise EmotraceError(f"--only {only!r} is no regular expression: {error}.") from None
    if not wanted:
        raise EmotraceError(f"--only {only!r}: no causal or masked class of transformers has it in its name.")
    now = versions()
    with Log(out / "classes.jsonl", ("class", "made")) as log:
        made = " ".join(f"{name}={now[name]}" for name in ("emotrace", "nnsight", "torch", "transformers"))
        todo = [(k, n) for k, n in wanted if {"class": n, "made": made} not in log]
        with progress(total=len(todo), desc="classes", unit="class") as bar:
            for name, kind, found in tried(todo, jobs, seconds):
                log.append({"class": name, "made": made, "model_type": kind, **found})
                bar.set_postfix_str(f"{name}: {found['outcome']}")
                bar.update(1)
        names = {n for _, n in wanted}
        rows = [row for row in log.rows() if row["made"] == made and row["class"] in names]
    table: Any = pd.DataFrame(
        [flat(row) for row in sorted(rows, key=lambda r: (OUTCOMES.index(r["outcome"]), r["class"]))]
    )
    table.to_csv(out / "families.csv", index=False)
    counts = {outcome: int((table["outcome"] == outcome).sum()) for outcome in OUTCOMES}
    write_json(out / "families.json", {"versions": now, "counts": counts, "classes": rows})
    shown = table[table["outcome"] != "proven"][["class", "outcome", "why"]]
    print(shown.to_string(index=False) if len(shown) else "")
    print(
        ", ".join(f"{n} {outcome}" for outcome, n in counts.items()), f"of {len(table)} classes: {out / 'families.csv'}"
    )


def tried(
    todo: list[tuple[str, str]], jobs: int, seconds: float, work: Any = None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(class, model type, what was found) as it becomes known, each within its time limit.

    Args:
        todo: (model type, class).
        jobs: worker processes.
        seconds: a class that takes longer is wrong, and its worker is ended.
        work: what a worker does with a class; None for `attempt`.
    """
    waiting, running = list(reversed(todo)), list[_Worker]()
    try:
        while waiting or any(w.job for w in running):
            running = [w for w in running if w.job or w.fit]
            while waiting and len([w for w in running if w.job]) < jobs:
                worker = next((w for w in running if not w.job), None)
                if worker is None:
                    worker = _Worker(work or attempt)
                    running.append(worker)
                worker.give(waiting.pop())
            wait([w.pipe for w in running if w.job], timeout=1)
            for worker in running:
                if worker.job:
                    found = worker.answer(seconds)
                    if found is not None:
                        (kind, name), worker.job = worker.job, None
                        yield name, kind, found
    finally:
        for worker in running:
            worker.end()


class _Worker:
    """A process that tries one class after the other."""

    def __init__(self, work: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.job: tuple[str, str] | None = None
        self.given, self.since = 0, 0.0

    @property
    def fit(self) -> bool:
        """Whether it may take another class."""
        if self.given < FRESH and self.process.is_alive():
            return True
        self.end()
        return False

    def give(self, job: tuple[str, str]) -> None:
        self.job, self.since, self.given = job, time.monotonic(), self.given + 1
        self.pipe.send(job)

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """What it found, if it has; a worker that is too slow or died says so."""
        if self.pipe.poll():
            try:
                return self.pipe.recv()
            except EOFError:
                self.process.join()
                return _bare("wrong", "", process=f"ended with status {self.process.exitcode}")
        if time.monotonic() - self.since < seconds:
            return None
        self.given = FRESH
        self.end()
        return _bare("wrong", "", time=f"took longer than {seconds:g} s")

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(pipe: Connection, work: Any) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            kind, name = pipe.recv()
        except EOFError:  # the parent is gone
            return
        pipe.send(work(kind, name))


def attempt(kind: str, name: str) -> dict[str, Any]:
    """One class, built and checked."""
    began = time.monotonic()
    try:
        module = families.build(kind, name)
        family_checks.plain_forward(module)
    except Exception as error:  # whatever a class says of a configuration that is too small for it, or of text
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return _bare("not built", f"{type(error).__name__}: {first}")
    found = asdict(family_checks.check(module, generates=hasattr(module, "generate")))
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _bare(outcome: str, reason: str, **wrong: str) -> dict[str, Any]:
    return {**asdict(family_checks.Found(outcome, reason, wrong=wrong)), "seconds": None}


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: lists and mappings as text."""
    why = row["reason"] or "; ".join(f"{what}: {how}" for what, how in row["wrong"].items())
    return {
        "class": row["class"], "model_type": row["model_type"], "outcome": row["outcome"], "why": why, "form": row["form"],
        "sites": " ".join(row["sites"]), "passed": " ".join(row["passed"]),
        "refused": "; ".join(f"{what}: {how}" for what, how in row["refused"].items()), "seconds": row["seconds"],
    }  # fmt: skip


if __name__ == "__main__":
    experiment(main)
