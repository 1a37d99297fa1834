"""Jobs: one soft prompt per emotion and seed, many in one run, side by side; the same command continues."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from emotrace import arguments, disk
from emotrace.datasets.goemotions import LabelledText
from emotrace.files import to_folder
from emotrace.identity import made_by
from emotrace.labels import filenames
from emotrace.planned import Steps, planned
from emotrace.prompt_tuning import workers
from emotrace.prompt_tuning.answers import answer_ids
from emotrace.prompt_tuning.layout import Layout
from emotrace.prompt_tuning.prompts import NAME, SoftPrompt, key_of
from emotrace.prompt_tuning.readouts import refuse_remote
from emotrace.prompt_tuning.recipe import Recipe
from emotrace.prompt_tuning.tasks import Task, binary
from emotrace.prompt_tuning.tuning import tune
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.texts import as_bytes

TABLE: Final = "jobs.csv"
STATES: Final = ("waiting", "done")
COLUMNS: Final = (
    "emotion", "seed", "state", "n_train", "epochs", "best_epoch", "dev_accuracy", "n_dev", "test_accuracy", "n_test",
    "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class TuningJob:
    """One prompt to be tuned."""

    emotion: str
    seed: int

    @property
    def key(self) -> str:
        """Name of its folder."""
        return key_of(self.emotion, self.seed)


class Todo(NamedTuple):
    """A job that waits: its task, and the folder in which the folders of all jobs lie."""

    job: TuningJob
    task: Task
    out: Path


def task_of(texts: Mapping[str, Sequence[LabelledText]], emotion: str, seed: int, recipe: Recipe) -> Task:
    """The task of one job."""
    return binary(texts, emotion, seed, negatives=recipe.negatives, ratio=recipe.ratio, limit=recipe.limit)


@planned
@typed
def tune_all(
    model: LanguageModel | str | Path,
    texts: Mapping[str, Sequence[LabelledText]],
    emotions: Sequence[str],
    seeds: Iterable[int],
    recipe: Recipe | None = None,
    *,
    out: str | Path,
    processes: int = 1,
    load: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Steps[pd.DataFrame, pd.DataFrame]:
    """Tune a prompt for every emotion and seed.

    Each job writes its folder ``{emotion}-{seed}`` whole or not at all; a job whose folder is there is not done again. After
    every job the table ``jobs.csv`` is written anew: what is done, with which accuracy, and what waits.
    ``tune_all.plan(…)`` gives it as it is now.

    Args:
        model: directory or hub id; a loaded model for one process.
        texts: part → labelled texts, e.g. ``tasks.parted(datasets.read_goemotions(…))``.
        emotions: labels of the texts.
        seeds: of the jobs.
        recipe: None takes the defaults.
        out: folder of the prompts.
        processes: side by side, with one torch thread each.
        load: options of `emotrace.load` for a directory or hub id.
        progress: show a bar with the time left and the last job.

    Returns:
        One row per job, as in ``jobs.csv``: `COLUMNS`.

    Raises:
        EmotraceError: before anything is tuned, for an emotion without texts, words that will not do, a prompt too long, a
            remote model, or a folder with prompts of other settings (which differ is said).
    """
    recipe, out = recipe or Recipe(), Path(out)
    workers.check(model, processes)
    emotions, seeds = arguments.names("tune_all(emotions)", emotions), arguments.wholes("tune_all(seeds)", seeds, 0)
    to_folder(out)
    jobs = [TuningJob(e, s) for e in emotions for s in seeds]
    filenames({job.emotion: None for job in jobs}, "tune_all(emotions=…)")
    tasks = {job: task_of(texts, job.emotion, job.seed, recipe) for job in jobs}
    loaded = workers.model_of(model, load)
    refuse_remote(loaded)
    encoder = loaded.sites.encoder
    answer_ids(recipe.words, encoder.tokenizer, loaded.sites.vocab_size)
    Layout(encoder, recipe.length, recipe.template, recipe.max_tokens)
    rows = {job: _row(job, tasks[job]) for job in jobs}
    seconds = _seconds(out / TABLE)
    waiting = []
    for job in jobs:
        prompt = _finished(out / job.key, loaded, tasks[job], recipe)
        if prompt is None:
            waiting.append(job)
        else:
            rows[job] = _row(job, tasks[job], prompt, seconds.get((job.emotion, job.seed)))
    table = _table(rows.values())
    yield lambda: table
    _write(out, table)
    with progress_bar(total=len(jobs), desc="prompts", unit="prompt", enabled=progress) as bar:
        bar.update(len(jobs) - len(waiting))
        done = workers.spread(_tuned, [Todo(j, tasks[j], out) for j in waiting], recipe, model, loaded, processes, load)
        for (job, task, _), took in done:
            folder = out / job.key  # where another process may have written with other settings meanwhile
            prompt = _finished(folder, loaded, task, recipe) or SoftPrompt.load(folder)
            rows[job] = _row(job, task, prompt, took)
            table = _table(rows.values())
            _write(out, table)
            bar.set_postfix_str(f"{job.key}: dev {prompt.scores['dev']['accuracy']:.3f}")
            bar.update(1)
    return table


def _tuned(model: LanguageModel, recipe: Recipe, todo: Todo) -> float:
    """One job in a worker; returns the seconds that it took."""
    begun = time.monotonic()
    tune(model, todo.task, recipe).save(todo.out / todo.job.key)
    return round(time.monotonic() - begun, 2)


def _finished(folder: Path, model: LanguageModel, task: Task, recipe: Recipe) -> SoftPrompt | None:
    """The prompt of a job that is done already.

    Raises:
        EmotraceError: if it was tuned with other settings.
    """
    if not (folder / f"{NAME}.json").is_file():
        return None
    prompt = SoftPrompt.load(folder)
    now = {"emotion": task.emotion, "seed": task.seed, "recipe": recipe.record, **made_by(model), "task": task.digest}
    was = {
        **prompt.model,
        "emotion": prompt.emotion,
        "seed": prompt.seed,
        "recipe": prompt.recipe.record,
        "task": prompt.task,
    }
    disk.settle(folder, was, now, may_differ=set(was) - set(now))
    return prompt


def _row(job: TuningJob, task: Task, prompt: SoftPrompt | None = None, seconds: float | None = None) -> dict[str, Any]:
    scores = {} if prompt is None else prompt.scores
    sizes = {f"n_{n}": None if (p := getattr(task, n)) is None else len(p) for n in ("train", "dev", "test")}
    accuracies = {f"{n}_accuracy": scores.get(n, {}).get("accuracy") for n in ("dev", "test")}
    return {
        "emotion": job.emotion, "seed": job.seed, "state": STATES[prompt is not None], **sizes, **accuracies,
        "epochs": scores.get("epochs"), "best_epoch": scores.get("best_epoch"), "seconds": seconds,
    }  # fmt: skip


def _table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    whole = ("n_train", "epochs", "best_epoch", "n_dev", "n_test")
    return table.astype(
        dict.fromkeys(whole, "Int64") | dict.fromkeys(("dev_accuracy", "test_accuracy", "seconds"), float)
    )


def _write(out: Path, table: pd.DataFrame) -> None:
    disk.replace_file(out / TABLE, as_bytes(table.to_csv(index=False)))


def _seconds(file: Path) -> dict[tuple[str, int], float]:
    """How long finished jobs took, as an earlier run of the same command noted."""
    if not file.is_file():
        return {}
    try:
        before = pd.read_csv(io.BytesIO(file.read_bytes())).dropna(subset=["seconds"])
        columns = (before[name].tolist() for name in ("emotion", "seed", "seconds"))
        return {(str(e), int(s)): float(t) for e, s, t in zip(*columns, strict=True)}
    except (ValueError, KeyError, TypeError):
        return {}  # a damaged table only costs these times
