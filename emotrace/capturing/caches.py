"""Caches: keys and values of what the prompts of a batch begin with, computed once and repeated."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers

from emotrace.model import locked
from emotrace.traced import runs


class Beginning(NamedTuple):
    """What rows begin with.

    Attributes:
        cache: keys and values, ``[row, head, column, head_dim]`` in each layer.
        mask: ``[row, column]``, 0 where a column is padding.
    """

    cache: Any
    mask: torch.Tensor


class Caches:
    """Makes the beginnings of one capture.

    Args:
        model: the nnsight model.
        program: of the capture; layers after its last step are not computed here either.
    """

    def __init__(self, model: Any, program: list) -> None:
        self.model = model
        self.last = program[-1:]
        self.takes_positions = "position_ids" in inspect.signature(model._module.forward).parameters

    def stem(self, ids: Sequence[int]) -> Beginning:
        """One row: the tokens ``ids``, which may be none."""
        device = next(self.model._module.parameters()).device
        mask = torch.ones((1, 0), dtype=torch.long, device=device)
        empty = Beginning(transformers.DynamicCache(config=self.model._module.config.get_text_config()), mask)
        if not ids:
            return empty
        tokens = torch.tensor([list(ids)], device=device)
        return self._grown(empty, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})

    def repeated(self, stem: Beginning, rows: int) -> Beginning:
        """A stem for every row of a batch; the stem itself stays as it is."""
        cache = copy.deepcopy(stem.cache)
        cache.batch_repeat_interleave(rows)
        return Beginning(cache, stem.mask.expand(rows, -1))

    def branched(self, stem: Beginning, batch: dict[str, torch.Tensor], counts: Sequence[int]) -> Beginning:
        """Behind a stem, the rows of a (left-padded) batch, each ``counts`` times."""
        grown = self._grown(self.repeated(stem, len(counts)), batch)
        index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(grown.mask.device)
        grown.cache.batch_select_indices(index)
        return Beginning(grown.cache, grown.mask[index])

    def inputs(self, beginning: Beginning, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Inputs of a forward over what follows: a (left-padded) batch with its beginnings in the cache."""
        full = torch.cat([beginning.mask, batch["attention_mask"]], dim=1)
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": full}
        inputs |= {"past_key_values": beginning.cache, "use_cache": True}
        if self.takes_positions:
            inputs["position_ids"] = (full.cumsum(1) - 1).clamp(min=0)[:, beginning.mask.shape[1] :]
        return inputs

    def _grown(self, beginning: Beginning, batch: dict[str, torch.Tensor]) -> Beginning:
        rows, width = batch["input_ids"].shape
        inputs = self.inputs(beginning, batch)
        with locked(self.model):
            runs.capture(self.model, inputs, self.last, rows, (0, width), 0, None)
        return Beginning(beginning.cache, inputs["attention_mask"])
