"""Probability: how likely a text classifier finds each emotion in a reply, and that there is any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emotrace.judges.classifier import answers_of
from emotrace.judges.text_classifier import TextClassifier
from emotrace.labels import ALIASES, ANSWERS, NEUTRAL, EmotraceError, unknown


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
        self._classifier = TextClassifier(model, batch_size=batch_size, device=device, revision=revision)
        self.name, labels = self._classifier.name, self._classifier.labels
        self.labels = [labels[i] for i in sorted(labels)]
        known = {*ANSWERS, *ALIASES}
        ours = {label: value if str(value).lower() in known else None for label, value in given.items()}
        answers_of(
            labels, {label: None for label in self.labels if label.strip().lower() not in known} | ours, self.name
        )
        self._named = {label: value for label, value in given.items() if value}
        self._classifier.load()

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

    def table(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """``[text, label]`` float64: softmax over the labels, or sigmoids; NaN for an empty text.

        Raises:
            EmotraceError: for a classifier whose scores are not finite.
        """
        found = self._classifier.table(texts, progress=progress)
        lost = [text for text, p in zip(texts, found, strict=True) if text.strip() and np.isnan(p).any()]
        if lost:
            raise EmotraceError(f"{self.name}: the classifier's scores of {lost[0][:60]!r} are not finite.")
        return found

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
        return float(p[list(columns)].max() if self._classifier.multi else p[list(columns)].sum())
