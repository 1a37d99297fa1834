"""Read-out: how much more a model says *yes* than *no* to texts under a prompt, with or without edits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.edits import Edit
from emotrace.forwards import beginnings, finite
from emotrace.forwards.entering import locked
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning.layout import Laid, Layout
from emotrace.prompt_tuning.prompts import SoftPrompt
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site
from emotrace.traced import soft_prompts


class Readout:
    """A model that answers with one of two tokens.

    Args:
        model: from `emotrace.load`; its weights must be on this computer.
        layout: of the sequences.
        answers: token ids of *no* and *yes*.

    Raises:
        EmotraceError: for a model whose weights are elsewhere, or without a proven token embedding.
    """

    def __init__(self, model: LanguageModel, layout: Layout, answers: Sequence[int]) -> None:
        refuse_remote(model)
        self.model, self.layout, self.answers = model, layout, list(answers)
        sites = model.sites
        address = sites.address("logits")
        plain = address.side == "output" and address.index is None and not address.flat
        head = sites.place(Site(address.path, "input")) if plain else None
        self._last = address.order
        self._stations = soft_prompts.Stations(sites.place("embed"), head, sites.place(Site("")))
        takes = inspect.signature(model._module.forward).parameters
        self._options = {"use_cache": False} if layout.causal and "use_cache" in takes else {}
        self.device = next(model._module.parameters()).device

    def logits(
        self, laid: Sequence[Laid], vectors: torch.Tensor, edits: Sequence[Edit] = (),
        about: Sequence[Mapping[str, Any]] | None = None, fired: list[int] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits of *no* and *yes*, ``[batch, 2]``; differentiable in the vectors under enabled gradients.

        In one forward, or where padding is not neutral in one for each length.

        Args:
            laid: sequences of `Layout`.
            vectors: ``[prompt, width]``, or one prompt for each sequence.
            edits: checked edits, applied in order.
            about: labels of each sequence, by which payloads are gathered.
            fired: how often each edit was carried out; counted up here.
        """
        batches = beginnings.batches(self.model, [len(s.ids) for s in laid], len(laid))
        if len(batches) > 1:
            found = [
                self.logits(
                    [laid[i] for i in rows], vectors if vectors.ndim == 2 else vectors[rows], edits,
                    None if about is None else [about[i] for i in rows], fired,
                )
                for rows in batches
            ]  # fmt: skip
            order = torch.tensor([i for rows in batches for i in rows], device=found[0].device)
            return torch.cat(found)[order.argsort()]
        batch = self.layout.batch(laid)
        program: list[Any] = []
        if edits:
            labels = [{} for _ in laid] if about is None else list(about)
            width = batch.inputs["input_ids"].shape[1]
            lowered = edits_.lower(
                edits, self.model.sites, labels, batch.lengths, batch.lengths, width, self.layout.causal
            )
            program = lowered.program()
        late = any(step.order >= self._last for step in program)
        stations = self._stations._replace(head=None) if late else self._stations
        inputs = {k: v.to(self.device) for k, v in batch.inputs.items()} | self._options
        with locked(self.model):
            found, counts = soft_prompts.scores(
                self.model, inputs, stations, vectors, batch.columns, batch.at, self.answers, program, len(edits)
            )
        for i, n in enumerate(counts):
            if fired is not None:
                fired[i] += n
        return found

    def margins(
        self, laid: Sequence[Laid], vectors: torch.Tensor, batch_size: int = 64, edits: Sequence[Edit] = (),
        about: Sequence[Mapping[str, Any]] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Logit of *yes* less that of *no* for every sequence, ``[n]`` float64; batched by length, returned in order.

        Raises:
            EmotraceError: for a logit that is not finite, or an edit that never fired.
        """
        out, fired = np.full(len(laid), np.nan), [0] * len(edits)
        with torch.no_grad():
            for rows in beginnings.batches(self.model, [len(s.ids) for s in laid], batch_size):
                labels = None if about is None else [about[i] for i in rows]
                found = self.logits([laid[i] for i in rows], vectors, edits, labels, fired).double().cpu()
                out[rows] = (found[:, 1] - found[:, 0]).numpy()
        if len(laid):
            edits_.refuse_silent(edits, fired)
        lost = [finite.Item(f"text {i}", laid[i].ids) for i in np.flatnonzero(~np.isfinite(out)).tolist()]
        if lost:
            raise finite.refusal("the model gives an answer no finite logit under this prompt", self.model, lost)
        return out


@typed
def readout(model: LanguageModel, prompt: SoftPrompt) -> tuple[Readout, torch.Tensor]:
    """The read-out of a tuned prompt, and its vectors as a tensor.

    Raises:
        EmotraceError: for a model that the prompt was not tuned for.
    """
    refuse_remote(model)
    prompt.check(model)
    r = prompt.recipe
    layout = Layout(model.sites.encoder, len(prompt.vectors), r.template, r.max_tokens)
    return Readout(model, layout, prompt.answers), torch.from_numpy(np.array(prompt.vectors))


@typed
def accuracy(margins: np.ndarray, labels: Sequence[bool], mean: str = "examples", batch_size: int = 256) -> float:
    """Share of right answers; a margin above 0 means *yes*, 0 itself *no*.

    Args:
        margins: yes − no, ``[n]``.
        labels: the truth.
        mean: ``examples``, or ``batches``: the mean of the accuracies of consecutive batches, in which an example of a short
            last batch counts more (as arXiv 2302.09582 reports).
        batch_size: of ``batches``.
    """
    right = (np.asarray(margins) > 0) == np.asarray(labels, dtype=bool)
    if mean == "examples":
        return float(right.mean())
    return float(np.mean([right[i : i + batch_size].mean() for i in range(0, len(right), batch_size)]))


def refuse_remote(model: LanguageModel) -> None:
    """Refuse a model whose weights are not on this computer.

    Raises:
        EmotraceError: for such a model.
    """
    backend = str(model.sites.identity.get("backend", "local"))
    if backend not in ("local", "simulated") or any(p.is_meta for p in model._module.parameters()):
        raise EmotraceError(
            f"soft prompts are tuned and measured where the weights are: {model.sites.identity.get('model_id')!r} is "
            "remote. Load it with its weights; under a tuned prompt, capture(edits=prompt_tuning.as_edits(…)) works remotely."
        )
