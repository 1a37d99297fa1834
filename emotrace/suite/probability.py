"""Probability: how likely a text classifier finds each emotion in a reply, and that there is any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from emotrace.judges.classifier import ClassifierJudge
from emotrace.labels import ALIASES, ANSWERS, NEUTRAL, EmotraceError, unknown
from emotrace.runlog import progress as progress_bar


class EmotionClassifier:
    """Probabilities of any Hugging Face text classifier, on the text that it is given and nothing else.

    An emotion is asked for by a label of the classifier, in any case, by its alias (joy ↔ happiness), or by the name that
    ``label_map`` gives to labels, whose probabilities are added (sigmoid heads: the largest). What it has no label for is an
    error, never 0.

    Args:
        model: hub id or directory. Code that comes with a checkpoint is never run.
        label_map: label → emotion, for labels such as ``LABEL_0``; None leaves a label out.
        batch_size: texts per forward.
        device: ``auto`` or a torch device.
        revision: of a hub id.

    Raises:
        EmotraceError: as `emotrace.judges.classifier.ClassifierJudge`, but labels that are none of our answers are
            fine, as long as two others are.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        label_map: Mapping[str, str | None] | None = None,
        batch_size: int = 32,
        device: str = "auto",
        revision: str | None = None,
    ) -> None:
        given = dict(label_map or {})
        try:
            config = transformers.AutoConfig.from_pretrained(str(model), revision=revision, trust_remote_code=False)
            labels = [str(label) for label in (config.id2label or {}).values()]
        except (OSError, ValueError, KeyError) as error:
            raise EmotraceError(f"classifier:{model}: no model there that could be loaded: {error}") from error
        known = {*ANSWERS, *ALIASES}
        ours = {label: value if str(value).lower() in known else None for label, value in given.items()}
        mapped = {label: None for label in labels if label.strip().lower() not in known} | ours
        self._judge = ClassifierJudge(model, label_map=mapped, batch_size=batch_size, device=device, revision=revision)
        self.name, self.batch_size = self._judge.name, batch_size
        self.labels = [self._judge.labels[i] for i in sorted(self._judge.labels)]
        self._multi = self._judge._multi
        self._named = {label: value for label, value in given.items() if value}

    def columns(self, asked: str) -> list[int]:
        """The labels that mean an emotion.

        Raises:
            EmotraceError: if the classifier has none.
        """
        word = asked.strip().lower()
        names = {word, ALIASES.get(word, word), *(k for k, v in ALIASES.items() if v == word)}
        found = [
            i for i, label in enumerate(self.labels)
            if (self._named.get(label) or label).strip().lower() in names
        ]  # fmt: skip
        if not found:
            raise unknown("emotion", asked, self.labels, f"the labels of {self.name}")
        return found

    @property
    def has_neutral(self) -> bool:
        """Whether a label means that there is no emotion."""
        return any((self._named.get(label) or label).strip().lower() == NEUTRAL for label in self.labels)

    @torch.inference_mode()
    def table(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """``[text, label]`` float64: softmax over the labels, or sigmoids; NaN for an empty text."""
        judge = self._judge
        out = np.full((len(texts), len(self.labels)), np.nan)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        with progress_bar(total=len(order), desc=self.name, unit="text", enabled=progress) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                coded: Any = judge._tokenizer(
                    [texts[i] for i in batch],
                    padding=True,
                    truncation=True,
                    max_length=judge._limit,
                    return_tensors="pt",
                )
                logits = judge._model(**coded.to(judge.device)).logits.double().cpu()
                out[batch] = (logits.sigmoid() if self._multi else logits.softmax(-1)).numpy()
                bar.update(len(batch))
        return out

    def probability(self, texts: Sequence[str], emotions: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """``[text]``: of each text the probability of its own emotion; every emotion is looked up before anything runs.

        Raises:
            EmotraceError: for an emotion that no label means.
        """
        at = {name: self.columns(name) for name in dict.fromkeys(emotions)}
        p = self.table(texts, progress=progress)
        return np.array([self.picked(p[i], at[name]) for i, name in enumerate(emotions)])

    def picked(self, p: np.ndarray, columns: Sequence[int]) -> float:
        """Probability of some labels together: their sum, of sigmoids the largest."""
        return float(p[list(columns)].max() if self._multi else p[list(columns)].sum())
