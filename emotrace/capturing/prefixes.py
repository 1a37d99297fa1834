"""Prefixes: which prompts of a batch share their first tokens, so that these are computed once."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers

from emotrace.model import locked
from emotrace.traced import runs

MIN_TOKENS = 8
"""A shared prefix is worth a pass of its own from this many tokens on …"""
MIN_PROMPTS = 4
"""… and this many prompts."""
PASS_COST = 64
"""What one more pass costs, in tokens: its own fixed time, and the smaller batches it leaves."""
MIN_DEEPER = 1
"""Tokens per prompt that splitting a stem must save beyond that: else its batches are cut for a single common word."""


class Stem(NamedTuple):
    """Prompts that share their first ``length`` tokens (0: nothing is shared)."""

    length: int
    members: tuple[int, ...]


def stems(sequences: Sequence[Sequence[int]], first_wanted: Sequence[int]) -> list[Stem]:
    """A partition of the prompts by shared prefixes, in the order of their first members.

    A prefix never reaches the first wanted position of any of its prompts, so every wanted activation is computed.
    Prompts split into deeper stems where that saves clearly more tokens than the extra pass costs.

    Args:
        sequences: token ids of each prompt.
        first_wanted: first position of each prompt whose activations are wanted.
    """

    def best(members: list[int], depth: int) -> tuple[int, list[Stem]]:
        """Tokens saved, and the stems that save them."""
        reach = _common(sequences, members, depth, min(first_wanted[i] for i in members))
        branches: dict[Any, list[int]] = defaultdict(list)
        for i in members:
            branches[sequences[i][reach] if reach < first_wanted[i] else None].append(i)
        saved, found, stay = 0, [], []
        for token, branch in branches.items():
            if token is not None and MIN_PROMPTS <= len(branch) < len(members):
                deeper, parts = best(branch, reach)
                if deeper > (reach + MIN_DEEPER) * len(branch):
                    saved, found = saved + deeper, found + parts
                    continue
            stay += branch
        worth = reach >= MIN_TOKENS and len(stay) >= MIN_PROMPTS
        if stay:
            found.append(Stem(reach if worth else 0, tuple(sorted(stay))))
        return saved + (reach * (len(stay) - 1) - PASS_COST if worth else 0), found

    found = best(list(range(len(sequences))), 0)[1] if sequences else []
    return sorted(found, key=lambda stem: stem.members[0])


def _common(sequences: Sequence[Sequence[int]], members: Sequence[int], start: int, limit: int) -> int:
    """Length of the common prefix of some sequences, at most ``limit``."""
    first = sequences[members[0]]
    reach = limit
    for i in members[1:]:
        other = sequences[i]
        n = start
        while n < reach and first[n] == other[n]:
            n += 1
        reach = n
    return reach


class PrefixCache:
    """Keys and values of one shared prefix, computed once and repeated for each batch.

    Args:
        model: the nnsight model.
        ids: the prefix.
        program: of the capture; layers after its last step are not computed here either.
    """

    def __init__(self, model: Any, ids: Sequence[int], program: list) -> None:
        module = model._module
        self.length = len(ids)
        self.takes_positions = "position_ids" in inspect.signature(module.forward).parameters
        self.cache = transformers.DynamicCache(config=module.config.get_text_config())
        tokens = torch.tensor([list(ids)], device=next(module.parameters()).device)
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        inputs |= {"past_key_values": self.cache, "use_cache": True}
        with locked(model):
            runs.capture(model, inputs, program, 1, (0, len(ids)), 0, None)

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Inputs of a forward over the suffixes of a (left-padded) batch, with the prefix in its cache."""
        rows = batch["input_ids"].shape[0]
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        mask = batch["attention_mask"]
        full = torch.cat([mask.new_ones((rows, self.length)), mask], dim=1)
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": full, "past_key_values": cache}
        if self.takes_positions:
            inputs["position_ids"] = (full.cumsum(1) - 1).clamp(min=0)[:, self.length :]
        return inputs
