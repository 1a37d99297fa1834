"""The text classifier: probabilities of any Hugging Face sequence classifier, shared by the judge and the suite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from emotrace.identity import identity
from emotrace.labels import EmotraceError
from emotrace.shown import progress as progress_bar
from emotrace.templates import tokenizer_hash
from emotrace.texts import whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class TextClassifier:
    """A sequence classifier; its labels are known at once, its weights after `load`.

    Args:
        model: hub id or directory. Code that comes with a checkpoint is never run.
        batch_size: texts per forward, sorted by length.
        device: ``auto`` (CUDA where there is one) or a torch device.
        revision: of a hub id.

    Attributes:
        name: ``classifier:MODEL``, for messages and verdicts.
        labels: index → label.
        multi: whether the checkpoint says ``multi_label_classification``: sigmoids instead of a softmax.

    Raises:
        EmotraceError: for a missing directory, or nothing there that could be loaded.
    """

    def __init__(
        self, model: str | Path, *, batch_size: int = 32, device: str = "auto", revision: str | None = None
    ) -> None:
        self.name = f"classifier:{model}"
        if batch_size < 1:
            raise EmotraceError(f"{self.name}: batch_size={batch_size} must be at least 1.")
        self.batch_size = batch_size
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._source, self._revision = _source(model, self.name), revision
        try:
            self._config = transformers.AutoConfig.from_pretrained(
                self._source, revision=revision, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise EmotraceError(f"{self.name}: no model there that could be loaded: {error}") from error
        self.labels = {int(i): str(label) for i, label in (self._config.id2label or {}).items()}
        self.multi = self._config.problem_type == "multi_label_classification"
        self._loaded: tuple[Any, torch.nn.Module] | None = None

    def load(self) -> None:
        """Load tokenizer and weights.

        Raises:
            EmotraceError: for a checkpoint without a tokenizer, or without a trained classification head.
        """
        kwargs = {"revision": self._revision, "trust_remote_code": False}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._source, **kwargs)
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                self._source, output_loading_info=True, dtype=torch.float32, **kwargs
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
        self._loaded = (tokenizer, model.eval().to(self._device))

    @cached_property
    def depends_on(self) -> dict[str, Any]:
        """What probabilities depend on: configuration, tokenizer and the numbers of the weights."""
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        tokenizer, model = self._loaded
        known = identity(model, self._source, self._revision)
        return {n: known[n] for n in ("config_hash", "weights_hash")} | {"tokenizer_hash": tokenizer_hash(tokenizer)}

    @torch.inference_mode()
    def table(self, texts: Sequence[str], *, desc: str | None = None, progress: bool = False) -> np.ndarray:
        """``[text, label]`` float64: softmax over the labels, or sigmoids; NaN for a text without a token, long ones are cut."""
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        tokenizer, model = self._loaded
        limit = _limit(tokenizer, self._config)
        out = np.full((len(texts), len(self.labels)), np.nan)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        with progress_bar(total=len(order), desc=desc or self.name, unit="text", enabled=progress) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                coded = tokenizer(
                    [whole(texts[i]) for i in batch],
                    padding=True,
                    truncation=True,
                    max_length=limit,
                    return_tensors="pt",
                )
                some = [i for i, row in enumerate(coded["attention_mask"]) if row.any()]  # others hold no token at all
                if some:
                    coded = coded.to(self._device)
                    logits = model(**{name: values[some] for name, values in coded.items()}).logits.double().cpu()
                    probabilities = logits.sigmoid() if self.multi else logits.softmax(-1)
                    out[[batch[i] for i in some]] = probabilities.numpy()
                bar.update(len(batch))
        return out


def _source(model: str | Path, name: str) -> str:
    """The directory or hub id, refused where it can be neither."""
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    if isinstance(model, Path) or str(model).startswith((".", "/", "~")) or not _HUB_ID.fullmatch(str(model)):
        raise EmotraceError(f"{name}: no directory {str(model)!r}, and it cannot be a hub id (ORG/MODEL).")
    return str(model)


def _limit(tokenizer: PreTrainedTokenizerBase, config: object) -> int:
    """Longest input in tokens: the tokenizer's, and the model's less the two positions some families keep back."""
    return max(2, min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 514) - 2))
