"""Soft prompts: tuned vectors with everything that says where they come from; as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import bundles, disk, provenance, shown
from emotrace.edits import Ablate
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning.recipe import Recipe
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

NAME: Final = "prompt"
LABEL: Final = "soft_prompt"
"""Label by which a capture knows the tuned prompt of a sequence (its key)."""


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A prompt that was tuned for one emotion with one seed.

    Attributes:
        vectors: ``[prompt, width]`` float32 in place of token embeddings; of the epoch that was best on dev.
        final: of the last epoch.
        emotion: what it asks for.
        seed: of its data, beginning and order.
        recipe: how it was tuned.
        answers: token ids of *no* and *yes*.
        model: identity of the model it was tuned for.
        scores: ``dev`` and ``test`` accuracies with their n, the number of epochs, the best of them.
        history: one entry per epoch: loss, dev loss, dev accuracy.
        task: digest of the texts.
    """

    vectors: np.ndarray
    final: np.ndarray
    emotion: str
    seed: int
    recipe: Recipe
    answers: tuple[int, int]
    model: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    task: str = ""
    __repr__ = shown.brief

    @property
    def key(self) -> str:
        """``{emotion}-{seed}``: its folder, and its name in tables."""
        return key_of(self.emotion, self.seed)

    @property
    def digest(self) -> str:
        """Hash of its vectors, recipe, answers and the texts of its task."""
        return disk.digest([self.vectors, self.recipe.record, self.answers, self.task])

    def check(self, model: LanguageModel) -> None:
        """Refuse a model that the prompt was not tuned for.

        Raises:
            EmotraceError: for another width or other weights.
        """
        width = model.sites.address("embed").width
        if self.vectors.shape[-1] != width:
            raise EmotraceError(
                f"prompt {self.key}: its vectors have width {self.vectors.shape[-1]}, the model's {width}."
            )
        provenance.check(self.model, model.sites, f"prompt {self.key}")

    def save(self, folder: str | Path) -> Path:
        """Write ``prompt.safetensors``, then ``prompt.json``, which carries the digest of the numbers.

        Returns:
            The path of the JSON file.
        """
        tensors = {n: np.ascontiguousarray(getattr(self, n), dtype=np.float32) for n in ("vectors", "final")}
        about = {
            "emotion": self.emotion, "seed": self.seed, "recipe": self.recipe.record, "answers": list(self.answers),
            "model": dict(self.model), "scores": dict(self.scores), "history": [dict(h) for h in self.history],
            "task": self.task,
        }  # fmt: skip
        return bundles.write(folder, NAME, tensors, about)

    @classmethod
    def load(cls, folder: str | Path) -> SoftPrompt:
        """The prompt that `save` wrote.

        Raises:
            EmotraceError: where a file is missing or damaged, or the numbers are not those that the JSON file describes.
        """
        about, tensors = bundles.read(folder, NAME, "a soft prompt")
        try:
            about["recipe"] = Recipe(**about["recipe"])
            about["answers"] = tuple(about["answers"])
            return cls(**tensors, **about)
        except (ValueError, KeyError, TypeError) as error:
            raise EmotraceError(f"{folder}/{NAME}.json describes no soft prompt ({error!r}).") from error


def key_of(emotion: str, seed: int) -> str:
    """``{emotion}-{seed}``."""
    return f"{emotion}-{seed}"


@typed
def as_edits(prompts: Sequence[SoftPrompt], first: int) -> list[Ablate]:
    """Prompts as edits: at each of their positions the embedding is replaced, gathered by the label `LABEL`.

    With these `emotrace.capture` reads any site under any number of tuned prompts at once.

    Args:
        prompts: of one length.
        first: position of the first vector (`Layout.bare`).

    Raises:
        EmotraceError: for none, or prompts of several lengths.
    """
    if len({p.vectors.shape for p in prompts}) != 1:
        raise EmotraceError(f"soft prompts of one shape are due, not {sorted({p.vectors.shape for p in prompts})}.")
    provenance.together("as_edits", **{p.key: p.model for p in prompts})
    keys, values = [p.key for p in prompts], np.stack([p.vectors for p in prompts])
    return [
        Ablate(
            "embed", positions=(first + i, first + i + 1),
            vector=xr.DataArray(values[:, i], dims=(LABEL, "dim"), coords={LABEL: keys}),
            origin=provenance.of(prompts[0].model),
        )
        for i in range(values.shape[1])
    ]  # fmt: skip


@typed
def tuned_prompts(out: str | Path) -> dict[tuple[str, int], SoftPrompt]:
    """Every prompt in the folders of a folder, by emotion and seed.

    Raises:
        EmotraceError: if there are none, or two of one emotion and seed; as `SoftPrompt.load`.
    """
    folders = [file.parent for file in sorted(Path(out).glob(f"*/{NAME}.json"))]
    if not folders:
        raise EmotraceError(f"{out} holds no soft prompts (folders with {NAME}.json).")
    found: dict[tuple[str, int], SoftPrompt] = {}
    where: dict[tuple[str, int], Path] = {}
    for folder in folders:
        prompt = SoftPrompt.load(folder)
        name = (prompt.emotion, prompt.seed)
        if name in where:
            raise EmotraceError(
                f"{where[name]} and {folder} both hold the prompt {prompt.key}: one is a copy of the other."
            )
        found[name], where[name] = prompt, folder
    return found
