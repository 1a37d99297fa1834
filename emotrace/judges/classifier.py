"""The classifier judge: any Hugging Face text classifier, with every one of its labels accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from emotrace.judges.base import EMPTY, Verdict
from emotrace.labels import ALIASES, ANSWERS, EmotraceError, emotion

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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

    def __init__(
        self,
        model: str | Path,
        *,
        label_map: Mapping[str, str | None] | None = None,
        batch_size: int = 32,
        device: str = "auto",
        revision: str | None = None,
    ) -> None:
        self.name = f"classifier:{model}"
        if batch_size < 1:
            raise EmotraceError(f"{self.name}: batch_size={batch_size} must be at least 1.")
        self.batch_size = batch_size
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        source = _source(model, self.name)
        try:
            config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise EmotraceError(f"{self.name}: no model there that could be loaded: {error}") from error
        self.labels = {int(i): str(label) for i, label in (config.id2label or {}).items()}
        self.answers = answers_of(self.labels, label_map or {}, self.name)  # before the weights are loaded
        self._multi = config.problem_type == "multi_label_classification"
        self._tokenizer, self._model = self._load(source, revision)
        self._limit = _limit(self._tokenizer, config)

    def _load(self, source: str, revision: str | None) -> tuple[transformers.PreTrainedTokenizerBase, torch.nn.Module]:
        kwargs = {"revision": revision, "trust_remote_code": False}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **kwargs)
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, output_loading_info=True, dtype=torch.float32, **kwargs
            )
        except (OSError, ValueError, KeyError) as error:
            raise EmotraceError(f"{self.name}: not a text classifier with a tokenizer: {error}") from error
        if missing := sorted(info["missing_keys"]):
            raise EmotraceError(
                f"{self.name}: the checkpoint lacks {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}, so its "
                "classification head is untrained; name a model trained for text classification."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model.eval().to(self.device)

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """Judge each text; blank ones are unjudged. Texts beyond the model's length are cut."""
        verdicts: dict[int, Verdict] = {
            i: {"predicted": None, "judge": self.name, "reason": EMPTY}
            for i, text in enumerate(texts)
            if not text.strip()
        }
        order = sorted((i for i in range(len(texts)) if i not in verdicts), key=lambda i: len(texts[i]))
        with tqdm(total=len(order), desc=f"judge {self.name}", unit="text", disable=not progress) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                verdicts.update(zip(batch, self._batch([texts[i] for i in batch]), strict=True))
                bar.update(len(batch))
        return [verdicts[i] for i in range(len(texts))]

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> Iterator[Verdict]:
        encoded = self._tokenizer(texts, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        logits = self._model(**encoded.to(self.device)).logits.float().cpu()
        for row in logits.sigmoid() if self._multi else logits.softmax(-1):
            yield self._verdict(row.tolist())

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


def _source(model: str | Path, name: str) -> str:
    """The directory or hub id, refused where it can be neither."""
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    if isinstance(model, Path) or str(model).startswith((".", "/", "~")) or not _HUB_ID.fullmatch(str(model)):
        raise EmotraceError(f"{name}: no directory {str(model)!r}, and it cannot be a hub id (ORG/MODEL).")
    return str(model)


def _limit(tokenizer: transformers.PreTrainedTokenizerBase, config: transformers.PretrainedConfig) -> int:
    """Longest input in tokens: the tokenizer's, and the model's less the two positions some families keep back."""
    return max(2, min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 514) - 2))
