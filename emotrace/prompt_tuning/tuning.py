"""Tuning: a soft prompt of a frozen model, learnt from one binary task."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from emotrace import provenance
from emotrace.forwards import finite
from emotrace.identity import made_by
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning.answers import answer_ids
from emotrace.prompt_tuning.layout import Laid, Layout
from emotrace.prompt_tuning.optimizer import AdamW
from emotrace.prompt_tuning.prompts import SoftPrompt
from emotrace.prompt_tuning.readouts import Readout, accuracy, refuse_remote
from emotrace.prompt_tuning.recipe import Recipe
from emotrace.prompt_tuning.tasks import Items, Task
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel


@typed
def tune(model: LanguageModel, task: Task, recipe: Recipe | None = None, progress: bool = False) -> SoftPrompt:
    """Learn P vectors before a text such that a frozen model says whether the text holds an emotion.

    With m(x) the logit of *yes* less that of *no*, the loss of an example is ln(1 + exp(∓m)): the cross-entropy of the two
    logits. Nothing but the vectors changes; weights get no gradients. The epoch that is best on dev is kept, and measured
    once on test.

    Args:
        model: from `emotrace.load`, masked or causal.
        task: of `tasks.binary`; its seed is that of the beginning, the order of examples and the dropout.
        recipe: None takes the defaults.
        progress: show a bar of epochs.

    Returns:
        The prompt with its scores and history.

    Raises:
        EmotraceError: for a remote model, words that are no single tokens, a prompt that leaves no room for text, or a loss
            that is not finite.
    """
    refuse_remote(model)
    recipe = recipe or Recipe()
    sites, encoder = model.sites, model.sites.encoder
    answers = answer_ids(recipe.words, encoder.tokenizer, sites.vocab_size)
    layout = Layout(encoder, recipe.length, recipe.template, recipe.max_tokens)
    readout = Readout(model, layout, answers)
    laid = {part: layout.texts(items.texts) for part, items in _parts(task)}
    entropy = (task.seed, zlib.crc32(task.emotion.encode()))
    rng = np.random.default_rng(entropy)
    vectors = beginning(model, recipe, rng, layout).requires_grad_(True)
    optimizer = AdamW(vectors, recipe.learning_rate, recipe.weight_decay, recipe.correct_bias)
    best: tuple[float, float] | None = None
    kept, at, history = vectors.detach().clone(), 0, []
    with (
        torch.random.fork_rng(devices=[]),
        progress_bar(total=recipe.epochs, desc=task.emotion, enabled=progress) as bar,
    ):
        torch.manual_seed(int(rng.integers(2**31)))
        for epoch in range(recipe.epochs):
            with _training(model, recipe.dropout):
                loss = _epoch(readout, laid["train"], task.train, vectors, optimizer, recipe, rng)
            if not np.isfinite(loss):
                where = finite.located(model, (finite.Item(f"text {i}", x.ids) for i, x in enumerate(laid["train"])))
                why = where or f"learning_rate={recipe.learning_rate} is too high for this model."
                raise EmotraceError(f"{task.emotion}, seed {task.seed}: the loss is {loss} in epoch {epoch + 1}; {why}")
            margins = readout.margins(laid["dev"], vectors.detach(), recipe.eval_batch)
            now = _accuracy(margins, task.dev, recipe)
            dev_loss = _loss(margins, task.dev.labels)
            history.append({"loss": loss, "dev_loss": dev_loss, "dev_accuracy": now})
            bar.update(1)
            rank = (now, -dev_loss) if recipe.select == "accuracy" else (-dev_loss, now)
            if best is None or rank > best:
                best, kept, at = rank, vectors.detach().clone(), epoch
            elif recipe.patience is not None and epoch - at >= recipe.patience:
                break
    scores: dict[str, Any] = {"epochs": len(history), "best_epoch": at + 1, "n_train": len(task.train)}
    scores["dev"] = {"accuracy": history[at]["dev_accuracy"], "n": len(task.dev)}
    if task.test is not None:
        margins = readout.margins(laid["test"], kept, recipe.eval_batch)
        scores["test"] = {"accuracy": _accuracy(margins, task.test, recipe), "n": len(task.test)}
    identity = {**{name: sites.identity.get(name) for name in provenance.KEYS}, **made_by(model)}
    return SoftPrompt(
        kept.numpy(), vectors.detach().numpy().copy(), task.emotion, task.seed, recipe, answers, identity, scores, history,
        task.digest,
    )  # fmt: skip


def beginning(model: LanguageModel, recipe: Recipe, rng: np.random.Generator, layout: Layout) -> torch.Tensor:
    """What a prompt is before tuning, ``[prompt, width]`` float32 on the CPU.

    Raises:
        EmotraceError: for ``mask`` where the tokenizer has no mask token.
    """
    width, size = model.sites.address("embed").width, (recipe.length,)
    if recipe.init == "normal":
        return torch.from_numpy(rng.normal(0.0, recipe.init_std, (*size, width)).astype(np.float32))
    if recipe.init == "mask":
        if layout.mask_id is None:
            raise EmotraceError("Recipe(init='mask'): this tokenizer has no mask token; choices: vocabulary, normal.")
        ids = np.full(size, layout.mask_id)
    else:
        special = set(getattr(layout.encoder.tokenizer, "all_special_ids", ()))
        known = min(model.sites.vocab_size, len(layout.encoder.tokenizer))
        ids = rng.choice([i for i in range(known) if i not in special], size)
    embedding = model._module.get_input_embeddings()
    with torch.no_grad():  # the module, not its weight: some families scale what they look up
        found = embedding(torch.as_tensor(ids, device=embedding.weight.device))
    return found.detach().float().cpu().clone()


def _epoch(
    readout: Readout, laid: Sequence[Laid], items: Items, vectors: torch.Tensor, optimizer: AdamW, recipe: Recipe,
    rng: np.random.Generator,
) -> float:  # fmt: skip
    """One pass over shuffled examples; returns their mean loss."""
    order, total = rng.permutation(len(laid)), 0.0
    for start in range(0, len(order), recipe.batch_size):
        rows = order[start : start + recipe.batch_size]
        with torch.inference_mode(False), torch.enable_grad():
            logits = readout.logits([laid[i] for i in rows], vectors)
            truth = torch.tensor([int(items.labels[i]) for i in rows], device=logits.device)
            loss = torch.nn.functional.cross_entropy(logits, truth)
            (gradient,) = torch.autograd.grad(loss, [vectors])  # of the prompt only: weights are frozen
        optimizer.step(gradient)
        total += float(loss.detach()) * len(rows)
    return total / len(order)


def _loss(margins: np.ndarray, labels: Sequence[bool]) -> float:
    return float(np.logaddexp(0.0, np.where(np.asarray(labels, dtype=bool), -margins, margins)).mean())


def _accuracy(margins: np.ndarray, items: Items, recipe: Recipe) -> float:
    return accuracy(margins, items.labels, recipe.mean, recipe.eval_batch)


def _parts(task: Task) -> list[tuple[str, Items]]:
    return [(n, items) for n in ("train", "dev", "test") if (items := getattr(task, n)) is not None]


@contextmanager
def _training(model: LanguageModel, dropout: bool) -> Iterator[None]:
    """Dropout acts inside, if it should."""
    if not dropout:
        yield
        return
    model._module.train()
    try:
        yield
    finally:
        model._module.eval()
