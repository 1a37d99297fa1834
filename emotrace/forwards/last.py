"""Last: prompts that run many times and are read at their last token, at the price of one token each.

In a causal model nothing before the last prompt token depends on what is done there, and the last token sees the others
through their keys and values alone. So these are computed once, and every further forward computes one token. Where a
family's cache does not allow that (`emotrace.forwards.beginnings`), in masked models and for prompts of one token, every
forward is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from emotrace.forwards import beginnings, caches
from emotrace.forwards.entering import inputs
from emotrace.sites import LanguageModel
from emotrace.traced.caches import BeginningRecipe, Level


class Fed(NamedTuple):
    """A batch of prompts, ready to run.

    Attributes:
        inputs: ids, mask and options.
        recipe: what its rows begin with; None where the prompts are whole.
        at: column of each prompt's last token, in the columns of the forward.
    """

    inputs: dict[str, Any]
    recipe: BeginningRecipe | None
    at: list[int]


class LastTokens:
    """Prompts that are read at their last token.

    Args:
        model: from `emotrace.load`.
        sequences: token ids of every prompt that will be asked.
        program: of the forwards; layers after its last step are not computed.

    Attributes:
        setup: the empty cache, the last step, and whether the model takes positions.
        memo: keeps the levels of beginnings made last; starts empty, and is the same for forwards that follow each other.
    """

    def __init__(self, model: LanguageModel, sequences: Sequence[Sequence[int]], program: list[Any]) -> None:
        self.model, self.sequences = model, sequences
        self.setup, self.options = caches.setup(model, program), caches.options(model)
        self.memo: dict[Any, Any] = {}
        self.prefix = beginnings.common(sequences)

    @cached_property
    def alone(self) -> bool:
        """Whether a forward computes the last token only."""
        lengths = [len(ids) for ids in self.sequences]
        causal = bool(self.model.sites.encoder.causal)
        return causal and min(lengths) > 1 and max(lengths) <= beginnings.shared_up_to(self.model)

    @cached_property
    def _trunk(self) -> tuple[Level, ...]:
        """What all prompts begin with, in one row."""
        return (Level(inputs(self.model, [self.prefix])),) if self.prefix else ()

    def fed(self, batch: Sequence[Sequence[int]]) -> Fed:
        """Some of the prompts; while the same ones run in a row, what they begin with is computed once."""
        if self.alone:
            before = inputs(self.model, [ids[len(self.prefix) : -1] for ids in batch])
            level = Level(before, (0,) * len(batch) if self._trunk else ())
            recipe = BeginningRecipe((*self._trunk, level), tuple(range(len(batch))))
            return Fed(inputs(self.model, [ids[-1:] for ids in batch]), recipe, [0] * len(batch))
        return whole(self.model, batch, self.options)


def whole(model: LanguageModel, batch: Sequence[Sequence[int]], options: dict[str, Any]) -> Fed:
    """Prompts of which every token is computed."""
    fed = inputs(model, batch)
    width = fed["input_ids"].shape[1]
    at = [width - 1 if model.sites.encoder.causal else len(ids) - 1 for ids in batch]
    return Fed(fed | options, None, at)
