"""Caches: keys and values of what rows begin with, computed once where the model lives, and repeated.

A *recipe* says what a forward's rows begin with: ``("repeated", ids, rows)`` is the stem ``ids`` for every row;
``("branched", ids, batch, counts)`` is, behind that stem, each row of a (left-padded) batch so many times; ``("kept", …)`` is
the same for forwards that follow each other, which is made once. A *beginning* is
what a recipe makes: ``(cache, mask)`` with keys and values ``[row, head, column, head_dim]`` in each layer, and ``[row,
column]`` with 0 where a column is padding. A *setup* is ``(an empty cache, the last step, whether the model takes
positions)``; layers after the last step are not computed.
"""

from __future__ import annotations

from typing import Any

import torch

from emotrace.traced import runs


def beginning(model: Any, recipe: tuple, setup: tuple, memo: dict) -> tuple:
    """What a recipe makes. ``memo`` keeps the stem made last: recipes with one stem follow each other."""
    ids = recipe[1]
    if ids not in memo:
        memo.clear()
        memo[ids] = stem(model, ids, setup)
    if recipe[0] == "repeated":
        return repeated(memo[ids], recipe[2])
    if recipe[0] == "branched":
        return branched(model, memo[ids], recipe[2], recipe[3], setup)
    if memo.get("kept", (None,))[0] is not recipe:
        memo["kept"] = (recipe, branched(model, memo[ids], recipe[2], recipe[3], setup))
    cache, mask = memo["kept"][1]
    return fresh(cache), mask


def stem(model: Any, ids: tuple, setup: tuple) -> tuple:
    """One row: the tokens ``ids``, which may be none."""
    empty = (fresh(setup[0]), torch.ones((1, 0), dtype=torch.long))
    if not ids:
        return empty
    tokens = torch.tensor([list(ids)])
    return _grown(model, empty, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, setup)


def repeated(begun: tuple, rows: int) -> tuple:
    """A beginning of one row for every row of a batch; the one given stays as it is."""
    cache = fresh(begun[0])
    cache.batch_repeat_interleave(rows)
    return cache, begun[1].expand(rows, -1)


def branched(model: Any, begun: tuple, batch: dict, counts: tuple, setup: tuple) -> tuple:
    """Behind a beginning of one row, the rows of a (left-padded) batch, each ``counts`` times."""
    cache, mask = _grown(model, repeated(begun, len(counts)), batch, setup)
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts))).to(mask.device)
    cache.batch_select_indices(index)
    return cache, mask[index]


def inputs(begun: tuple, batch: dict, setup: tuple) -> dict:
    """Inputs of a forward over what follows: a (left-padded) batch with its beginnings in the cache."""
    cache, mask = begun
    full = torch.cat([mask.to(batch["attention_mask"].device), batch["attention_mask"]], dim=1)
    found = {"input_ids": batch["input_ids"], "attention_mask": full, "past_key_values": cache, "use_cache": True}
    if setup[2]:
        found["position_ids"] = (full.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] :]
    return found


def fresh(cache: Any) -> Any:
    """The same keys and values in a cache of its own: a forward joins its tokens to them in new tensors."""
    twin = _twin(cache)
    twin.layers = [_twin(layer) for layer in cache.layers]
    return twin


def _twin(thing: Any) -> Any:
    kind: Any = type(thing)
    made = kind.__new__(kind)
    made.__dict__.update(thing.__dict__)
    return made


def _grown(model: Any, begun: tuple, batch: dict, setup: tuple) -> tuple:
    rows, width = batch["input_ids"].shape
    found = inputs(begun, batch, setup)
    runs.capture(model, found, setup[1], rows, (0, width), 0, None)
    return begun[0], found["attention_mask"]
