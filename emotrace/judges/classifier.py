"""The classifier judge: any Hugging Face text classifier, with every one of its labels accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emotrace.judges.base import EMPTY, Verdict, texts_of
from emotrace.judges.text_classifier import TextClassifier
from emotrace.labels import ALIASES, ANSWERS, EmotraceError, emotion

LOST = "the classifier's scores are not finite"


class ClassifierJudge:
    """A judge that asks a sequence classifier and adds up its labels per answer.

    Formula: p = softmax(logits), or sigmoid where the checkpoint says ``multi_label_classification``;
    ``score[answer]`` = sum (sigmoid: maximum) of p over the labels that mean this answer; the answer is the argmax.
    Labels mapped to None take part in the softmax and in nothing else.

    Args:
        model: hub id or directory. Code that comes with a checkpoint is never run.
        label_map: label → one of the seven answers, or None to leave the label out. Labels that are an answer's name
            (``anger``, ``joy``, ``neutral`` …, in any case) need no entry.
        batch_size: texts per forward, sorted by length.
        device: ``auto`` (CUDA where there is one) or a torch device.
        revision: of a hub id.

    Raises:
        EmotraceError: for a missing directory, a checkpoint without a trained classification head, a label that is
            neither mapped nor known (the message lists all of them), or a map that names unknown labels or answers.
    """

    choices = ANSWERS

    def __init__(
        self,
        model: str | Path,
        *,
        label_map: Mapping[str, str | None] | None = None,
        batch_size: int = 32,
        device: str = "auto",
        revision: str | None = None,
    ) -> None:
        self._classifier = TextClassifier(model, batch_size=batch_size, device=device, revision=revision)
        self.name, self.labels = self._classifier.name, self._classifier.labels
        self._multi = self._classifier.multi
        self.answers = answers_of(self.labels, label_map or {}, self.name)  # before the weights are loaded
        self._classifier.load()

    @property
    def depends_on(self) -> dict[str, Any]:
        """The checkpoint, and which answer each of its labels means."""
        return {**self._classifier.depends_on, "answers": self.answers}

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """Judge each text; blank ones, and those whose scores are NaN, are unjudged. Texts beyond the model's length are cut."""
        texts = texts_of(self.name, texts)
        table = self._classifier.table(texts, desc=f"judge {self.name}", progress=progress)
        return [
            self._verdict(p.tolist())
            if text.strip() and not np.isnan(p).any()
            else {"predicted": None, "judge": self.name, "reason": LOST if text.strip() else EMPTY}
            for text, p in zip(texts, table, strict=True)
        ]

    def _verdict(self, p: list[float]) -> Verdict:
        parts = {a: [p[i] for i in self.answers if self.answers[i] == a] for a in ANSWERS}
        scores = {a: max(values) if self._multi else sum(values) for a, values in parts.items() if values}
        answer = max(scores, key=lambda a: scores[a])
        top = max(range(len(p)), key=lambda i: p[i])
        reason = f"{answer} {scores[answer]:.3f}; best label {self.labels[top]!r} {p[top]:.3f}"
        return {"predicted": answer, "judge": self.name, "reason": reason}


def answers_of(labels: Mapping[int, str], label_map: Mapping[str, str | None], name: str) -> dict[int, str]:
    """Label index → answer, for the labels that take part.

    Raises:
        EmotraceError: unless every label is known or mapped, and every entry of the map is a label and an answer.
    """
    everything = ", ".join(repr(label) for label in labels.values())
    if strangers := [key for key in label_map if key not in labels.values()]:
        raise EmotraceError(f"{name}: label_map names {strangers}, which the model has not. Its labels: {everything}.")
    known = {**{a: a for a in ANSWERS}, **ALIASES}
    found: dict[int, str] = {}
    unmapped: list[str] = []
    for index, label in labels.items():
        if label in label_map:
            value = label_map[label]
            if value is not None:
                found[index] = emotion(value, ANSWERS, f"label_map[{label!r}] of {name}")
        elif label.strip().lower() in known:
            found[index] = known[label.strip().lower()]
        else:
            unmapped.append(label)
    if unmapped:
        raise EmotraceError(
            f"{name}: no answer known for the labels {unmapped}. All its labels: {everything}. Give "
            f"label_map={{label: answer}} with one of {', '.join(ANSWERS)}, or None to leave a label out."
        )
    if len(set(found.values())) < 2:
        raise EmotraceError(
            f"{name}: its labels ({everything}) give {sorted(set(found.values()))}; at least two needed."
        )
    return found
