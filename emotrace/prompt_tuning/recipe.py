"""Recipe: everything a soft prompt depends on besides the model, the data and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from emotrace.labels import EmotraceError, unknown
from emotrace.presets import preset
from emotrace.prompt_tuning.tasks import NEGATIVES

INITS: Final = ("vocabulary", "mask", "normal")
SELECTIONS: Final = ("accuracy", "loss")
MEANS: Final = ("examples", "batches")


@dataclass(frozen=True)
class Recipe:
    """How prompts are tuned and measured.

    Attributes:
        length: vectors of a prompt.
        words: the answers *no* and *yes*: single tokens, as words or ids.
        template: text around the example, with ``{text}`` in it.
        init: ``vocabulary`` (embeddings of random tokens), ``mask`` (that of the mask token) or ``normal`` (0, `init_std`).
        init_std: of ``normal``.
        epochs: at most.
        patience: epochs without a better one before it stops; None never stops early.
        select: what makes an epoch the best on dev: ``accuracy`` (ties by loss) or ``loss``.
        batch_size: of training.
        learning_rate: of AdamW, constant.
        weight_decay: decoupled.
        correct_bias: of AdamW; the published one does not.
        dropout: whether the model's own dropout acts in training.
        max_tokens: most tokens of a text, specials included; what is longer is cut before its closing specials.
        negatives: ``clean`` (texts without the emotion), or ``contaminated`` (drawn among all texts, as published).
        ratio: negatives per positive.
        limit: most positives of a part.
        mean: of accuracies: over ``examples``, or over ``batches`` (the last, shorter one counts as much).
        eval_batch: of measuring; part of the number where ``mean`` is ``batches``.
    """

    length: int = 20
    words: tuple[str | int, str | int] = ("negative", "positive")
    template: str = "{text}"
    init: str = "vocabulary"
    init_std: float = 0.02
    epochs: int = 20
    patience: int | None = 5
    select: str = "accuracy"
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    correct_bias: bool = True
    dropout: bool = False
    max_tokens: int = 256
    negatives: str = "clean"
    ratio: float = 1.0
    limit: int | None = None
    mean: str = "examples"
    eval_batch: int = 64

    def __post_init__(self) -> None:
        for name in ("length", "epochs", "batch_size", "max_tokens", "eval_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise EmotraceError(f"Recipe({name}={value!r}): an integer from 1.")
        for name, choices in (
            ("init", INITS), ("select", SELECTIONS), ("negatives", NEGATIVES), ("mean", MEANS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices, "Recipe")
        if "{text}" not in self.template:
            raise EmotraceError(f"Recipe(template={self.template!r}) has no {{text}} in it.")
        if isinstance(self.words, (str, int)) or len(self.words) != 2:
            raise EmotraceError(f"Recipe(words={self.words!r}): two answers, the one for no first.")
        object.__setattr__(self, "words", tuple(self.words))
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.init_std >= 0):
            raise EmotraceError(
                f"Recipe(learning_rate={self.learning_rate}, weight_decay={self.weight_decay}, "
                f"init_std={self.init_std}): a positive rate, the others from 0."
            )
        if self.patience is not None and self.patience < 1:
            raise EmotraceError(f"Recipe(patience={self.patience}): at least 1 epoch, or None.")

    @classmethod
    def of(cls, name: str | None = None, **changes: object) -> Recipe:
        """The recipe of a preset with changes.

        Raises:
            EmotraceError: for an unknown preset or setting, or a value out of range.
        """
        if name is not None and name not in RECIPES:
            raise unknown("preset", name, RECIPES, "Recipe.of")
        for key in changes:
            if key not in cls.__dataclass_fields__:
                raise unknown("setting", key, cls.__dataclass_fields__, "Recipe.of")
        return replace(cls() if name is None else RECIPES[name], **changes)

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _published() -> Recipe:
    """arXiv 2302.09582: dropout acts, AdamW is not corrected for its bias, the last epoch is as good as the first."""
    p = preset("model_emotion")
    training, optimizer = p["training"], p["optimizer"]
    return Recipe(
        length=p["prompt_length"], words=(p["verbalizer"]["negative"], p["verbalizer"]["positive"]), init="normal",
        epochs=training["epochs"], patience=None, batch_size=training["batch_size"], learning_rate=optimizer["lr"],
        weight_decay=optimizer["weight_decay"], correct_bias=optimizer["correct_bias"], dropout=True,
        max_tokens=training["max_length"], negatives="contaminated", mean="batches",
        eval_batch=p["accuracy"]["batch_size"],
    )  # fmt: skip


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType({"model_emotion": _published()})
"""Preset → recipe. Two things of the original are left out: it gave RoBERTa position ids from 0 instead of from 2, and no
token-type embedding to the prompt (a constant, which the prompt learns)."""
