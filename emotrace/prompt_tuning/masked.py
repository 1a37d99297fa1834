"""Masked: how well a model still answers under its tuned prompts when neurons are masked, row by row, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, disk
from emotrace import edits as edits_
from emotrace.datasets.goemotions import LabelledText
from emotrace.files import to_folder
from emotrace.identity import made_by
from emotrace.labels import EmotraceError, unknown
from emotrace.prompt_tuning import workers
from emotrace.prompt_tuning.jobs import task_of
from emotrace.prompt_tuning.masking import DONOR, HOWS, mask_edits, reference_values
from emotrace.prompt_tuning.prompts import SoftPrompt
from emotrace.prompt_tuning.readouts import accuracy, readout, refuse_remote
from emotrace.prompt_tuning.recipe import Recipe
from emotrace.prompt_tuning.tasks import Items, Task
from emotrace.rsa.masks import Masks
from emotrace.runlog import Log
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

NAMED_BY: Final = ("emotion", "seed", "attribute", "k", "kind", "draw")
"""What tells rows apart; the un-masked accuracy has kind ``none``, attribute ``""``, k 0 and draw −1."""
PIECE: Final = 50
"""Masks between two commits of one prompt."""
REFERENCES: Final = 32
"""Most training texts whose activations replace masked ones."""


@dataclass(frozen=True)
class _Shared:
    """What every worker needs."""

    masked: xr.DataArray
    factors: xr.DataArray | None
    how: str
    part: str
    batch_size: int
    seed: int
    eval_batch: int | None
    settings: str


class MaskedTask(NamedTuple):
    """A prompt, its task, and some masks by number; −1 stands for none."""

    prompt: SoftPrompt
    task: Task
    numbers: list[int]


@typed
def masked_accuracy(
    model: LanguageModel | str | Path,
    prompts: Mapping[Any, SoftPrompt] | Sequence[SoftPrompt],
    texts: Mapping[str, Sequence[LabelledText]],
    masks: Masks,
    *,
    how: str = "zero",
    part: str = "test",
    out: str | Path,
    processes: int = 1,
    load: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    eval_batch: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Accuracy of every prompt on its task without a mask, and with each mask at every position.

    Args:
        model: directory or hub id; a loaded model for one process.
        prompts: tuned for it.
        texts: those that the prompts were tuned with; their tasks are drawn again and must be the same.
        masks: of `rsa.select_neurons`.
        how: ``zero``, ``mean``, ``resample`` or ``multiply``. ``mean`` and ``resample`` take their values from at most
            `REFERENCES` training texts of the task; ``multiply`` takes its factors from ``masks.multipliers(seed)``.
        part: ``test``, or ``dev`` (as published, although the prompts were chosen on it).
        out: folder of ``masked.jsonl`` and ``masked.json``; the same command continues.
        processes: side by side, over prompts.
        load: options of `emotrace.load` for a directory or hub id.
        batch_size: texts per forward.
        eval_batch: with masks, where the recipe of a prompt takes means over batches: their size; None: the recipe's.
        seed: of factors, reference tokens and donors.
        progress: show a bar.

    Returns:
        One row per prompt and mask, with `NAMED_BY`, ``accuracy`` (as the recipe of the prompt takes means), ``right`` and
        ``n``.

    Raises:
        EmotraceError: before anything runs, for prompts of another model or other texts, masks of layers or units that
            the model lacks, an unknown way or part, or a folder with rows of other settings.
    """
    if how not in HOWS:
        raise unknown("masking", how, HOWS, "masked_accuracy(how=…)")
    if part not in ("dev", "test"):
        raise unknown("part", part, ("dev", "test"), "masked_accuracy(part=…)")
    arguments.whole("masked_accuracy(batch_size)", batch_size, 1)
    arguments.seed("seed", seed)
    to_folder(out)
    workers.check(model, processes)
    loaded = workers.model_of(model, load)
    refuse_remote(loaded)
    tuned = list(prompts.values()) if isinstance(prompts, Mapping) else list(prompts)
    tasks = [_task(p, texts, part, loaded) for p in tuned]
    _check(masks, how, loaded)
    factors = masks.multipliers(seed) if how == "multiply" else None
    settings = {
        "how": how, "part": part, "seed": seed, "masks": disk.digest(masks.masked), "format": 3,
        "eval_batch": eval_batch, "model": disk.digest(made_by(loaded)),
    }  # fmt: skip
    shared = _Shared(masks.masked, factors, how, part, batch_size, seed, eval_batch, disk.digest(settings))
    folder = Path(out)
    disk.settle_file(folder / "masked.json", settings)
    names = [labels for labels, _ in masks]
    wanted = {_name(p, about): p for p in tuned for about in (None, *names)}
    with Log(folder / "masked.jsonl", NAMED_BY) as log:
        for row in log.rows():
            name = log.name_of(row)
            if name in wanted:
                disk.same_row(log.path, row, _made(wanted[name], shared), f"row {name}")
        pieces = list(_pieces(tuned, tasks, names, log))
        total = len(tuned) * (len(names) + 1)
        with progress_bar(total=total, desc="masked", unit="mask", enabled=progress) as bar:
            bar.update(total - sum(len(piece.numbers) for piece in pieces))
            for _, rows in workers.spread(_measured, pieces, shared, model, loaded, processes, load):
                log.append(rows)
                bar.update(len(rows))
        rows = [row for row in log.rows() if log.name_of(row) in wanted]
        return pd.DataFrame([{k: v for k, v in row.items() if k != "meta"} for row in rows])


def _measured(model: LanguageModel, shared: _Shared, piece: MaskedTask) -> list[dict[str, Any]]:
    """Rows of one prompt and some masks; −1 stands for none."""
    prompt, task, numbers = piece
    reader, vectors = readout(model, prompt)
    items: Items = getattr(task, shared.part)
    laid = reader.layout.texts(items.texts)
    reference, about = _reference(model, shared, prompt, task, len(laid))
    rows = []
    for i in numbers:
        edits: list[edits_.Edit] = []
        names = None
        if i >= 0:
            mask = shared.masked[i]
            names = {n: mask[n].item() for n in ("attribute", "k", "kind", "draw")}
            mask = mask.drop_vars(list(names))
            factors = None if shared.factors is None else shared.factors[i].drop_vars(list(names))
            edits = mask_edits(mask, shared.how, reference=reference, factors=factors)
        margins = reader.margins(laid, vectors, shared.batch_size, edits, about)
        batch = prompt.recipe.eval_batch if names is None or shared.eval_batch is None else shared.eval_batch
        rows.append(
            dict(zip(NAMED_BY, _name(prompt, names), strict=True))
            | _score(margins, items, prompt.recipe, batch)
            | {"meta": {"made": _made(prompt, shared)}}
        )
    return rows


def _made(prompt: SoftPrompt, shared: _Shared) -> dict[str, str]:
    """What made a row, beside the mask that its name says."""
    return {"soft_prompt": prompt.digest, "settings": shared.settings}


def _score(margins: np.ndarray, items: Items, recipe: Recipe, batch: int) -> dict[str, Any]:
    right = int(((margins > 0) == np.asarray(items.labels)).sum())
    return {"accuracy": accuracy(margins, items.labels, recipe.mean, batch), "right": right, "n": len(items)}


def _reference(model: LanguageModel, shared: _Shared, prompt: SoftPrompt, task: Task, n: int) -> tuple[Any, Any]:
    """Values for ``mean`` and ``resample``, and each sequence's donor; the same for every mask of a prompt."""
    if shared.how not in ("mean", "resample"):
        return None, None
    entropy = (shared.seed, prompt.seed)
    rng = np.random.default_rng(entropy)
    chosen = rng.permutation(len(task.train))[:REFERENCES]
    values = reference_values(model, prompt, [task.train.texts[i] for i in chosen], shared.seed)
    donors = rng.integers(len(chosen), size=n)
    return values, [{DONOR: int(d)} for d in donors]


def _pieces(
    prompts: Sequence[SoftPrompt], tasks: Sequence[Task], names: Sequence[Mapping[str, Any]], log: Log
) -> Iterator[MaskedTask]:
    """What is not yet measured, a few masks of one prompt at a time."""
    for prompt, task in zip(prompts, tasks, strict=True):
        numbers = [i for i in range(-1, len(names)) if _name(prompt, names[i] if i >= 0 else None) not in log.done]
        for start in range(0, len(numbers), PIECE):
            yield MaskedTask(prompt, task, numbers[start : start + PIECE])


def _name(prompt: SoftPrompt, about: Mapping[str, Any] | None) -> tuple[Any, ...]:
    if about is None:
        return prompt.emotion, prompt.seed, "", 0, "none", -1
    return prompt.emotion, prompt.seed, str(about["attribute"]), int(about["k"]), str(about["kind"]), int(about["draw"])


def _task(prompt: SoftPrompt, texts: Mapping[str, Sequence[LabelledText]], part: str, model: LanguageModel) -> Task:
    """The task that a prompt was tuned on.

    Raises:
        EmotraceError: if the texts give another one, or have no such part.
    """
    prompt.check(model)
    task = task_of(texts, prompt.emotion, prompt.seed, prompt.recipe)
    if prompt.task and task.digest != prompt.task:
        raise EmotraceError(f"prompt {prompt.key} was tuned on other texts than these; give the same files.")
    if getattr(task, part) is None:
        raise EmotraceError(f"masked_accuracy(part={part!r}): the texts have no such part ({', '.join(texts)}).")
    return task


def _check(masks: Masks, how: str, model: LanguageModel) -> None:
    """Refuse masks that the model cannot have."""
    if not len(masks):
        raise EmotraceError("masked_accuracy(masks=…): there are no masks.")
    every = masks.masked.any("mask")
    values = xr.ones_like(every, dtype=np.float32)
    reference = xr.Dataset({"mean": values, "values": values.expand_dims({DONOR: [0]})})
    edits_.check(mask_edits(every, how, reference=reference, factors=values), model.sites, [{DONOR: 0}])
