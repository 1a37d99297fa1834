"""Layout: where a prompt, a text and the token that answers lie in a sequence.

A masked model gets ``mask, prompt, text`` with the text's own special tokens, and answers at the mask. A causal one gets
``BOS, prompt, text`` and answers at the last token. Where the vectors go stand placeholder ids, which are never padding, so
that positions, masks and token types come out as for any other token; the embedding of a placeholder is replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from emotrace.datasets import Prompt, Prompts
from emotrace.labels import EmotraceError


class Laid(NamedTuple):
    """One sequence.

    Attributes:
        ids: of the un-padded sequence, placeholders included.
        first: position of the first prompt vector.
        at: position of the token that answers.
    """

    ids: tuple[int, ...]
    first: int
    at: int


class PromptBatch(NamedTuple):
    """Padded sequences: what the model takes, columns of the prompt ``[batch, prompt]``, of the answer ``[batch]``, lengths."""

    inputs: dict[str, torch.Tensor]
    columns: torch.Tensor
    at: torch.Tensor
    lengths: list[int]


@dataclass(frozen=True)
class Layout:
    """Sequences for one model and one length of prompts.

    Args:
        encoder: of the model.
        length: vectors of a prompt.
        template: text around the example, with ``{text}`` in it.
        max_tokens: most tokens of a text; what is longer is cut before its closing special tokens.

    Raises:
        EmotraceError: for a masked model whose tokenizer has no mask, or a prompt that leaves the model no room for text.
    """

    encoder: Any
    length: int
    template: str = "{text}"
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if not self.causal and self.mask_id is None:
            raise EmotraceError("a masked model answers at its mask token, and this tokenizer has none.")
        if self.room < 1:
            raise EmotraceError(
                f"a prompt of {self.length} vectors leaves no room for text: the model takes {self.encoder.max_length} tokens."
            )

    @property
    def causal(self) -> bool:
        """Whether the model is a decoder."""
        return bool(self.encoder.causal)

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token."""
        return getattr(self.encoder.tokenizer, "mask_token_id", None)

    @property
    def room(self) -> int:
        """Most tokens of a text."""
        if self.encoder.max_length is None:
            return self.max_tokens
        return min(self.max_tokens, self.encoder.max_length - self.length - 1)

    @property
    def placeholder(self) -> int:
        """An id that is neither padding nor the end: some models make positions and masks of those."""
        if not self.causal and self.mask_id is not None:
            return self.mask_id
        avoid = {self.encoder.pad_id, getattr(self.encoder.tokenizer, "eos_token_id", None)}
        return next(i for i in range(len(avoid) + 1) if i not in avoid)

    def texts(self, texts: Sequence[str]) -> list[Laid]:
        """A sequence for each text."""
        encoder = copy.copy(self.encoder)
        encoder.max_length = None  # what is too long is cut here
        prompts = [Prompt(str(i), text=self.template.replace("{text}", t)) for i, t in enumerate(texts)]
        return [self._laid(self._cut(ids)) for ids in encoder.ids(Prompts(prompts))]

    def bare(self) -> Laid:
        """The sequence of a prompt alone: ``mask, prompt`` and the token that opens a text; causal: ``BOS, prompt``."""
        return self._laid(self.encoder.opening[:1])

    def batch(self, laid: Sequence[Laid]) -> PromptBatch:
        """Sequences padded as the model's encoder pads: decoders on the left, encoders on the right."""
        inputs = self.encoder.batch([s.ids for s in laid])
        longest = inputs["input_ids"].shape[1]
        offsets = [longest - len(s.ids) if self.causal else 0 for s in laid]
        columns = [[o + s.first + i for i in range(self.length)] for o, s in zip(offsets, laid, strict=True)]
        at = [o + s.at for o, s in zip(offsets, laid, strict=True)]
        return PromptBatch(inputs, torch.tensor(columns), torch.tensor(at), [len(s.ids) for s in laid])

    def _laid(self, ids: Sequence[int]) -> Laid:
        held = [self.placeholder] * self.length
        if not self.causal:
            return Laid((int(self.mask_id or 0), *held, *ids), 1, 0)
        opening = 1 if ids and ids[0] == getattr(self.encoder.tokenizer, "bos_token_id", None) else 0
        whole = (*ids[:opening], *held, *ids[opening:])
        return Laid(whole, opening, len(whole) - 1)

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.room:
            return ids
        special = set(getattr(self.encoder.tokenizer, "all_special_ids", ()))
        closing = next((i for i, token in enumerate(reversed(ids)) if token not in special), 0)
        return [*ids[: max(0, self.room - closing)], *ids[len(ids) - closing :]]
