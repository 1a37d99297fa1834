"""Caches: keys and values of what rows begin with, computed once where the model lives, and repeated.

A *recipe* says what the rows of a forward begin with, a *beginning* is what it makes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from emotrace.traced import runs
from emotrace.traced.model import TracedModel


class BeginningRecipe(NamedTuple):
    """What the rows of a forward begin with: a prefix, and behind it perhaps the rows of a batch.

    Attributes:
        prefix: token ids that all rows begin with; may be none.
        counts: how many rows each row of the batch is the beginning of; without a batch, how many the prefix is.
        batch: (left-padded) ids and mask of what follows the prefix, or None.
        kept: whether forwards that follow each other have the same beginning, which is made once.
    """

    prefix: tuple
    counts: tuple
    batch: Any = None
    kept: bool = False


class Beginning(NamedTuple):
    """What rows begin with.

    Attributes:
        cache: keys and values ``[row, head, column, head_dim]`` in each layer.
        mask: ``[row, column]``, 0 where a column is padding.
    """

    cache: Any
    mask: torch.Tensor


class Setup(NamedTuple):
    """What beginnings of a model are made with.

    Attributes:
        empty: a cache of nothing.
        program: the last step of the forwards; layers after it are not computed.
        positions: whether the model takes ``position_ids``.
    """

    empty: Any
    program: list
    positions: bool


def begun(model: TracedModel, inputs: dict, recipe: BeginningRecipe | None, setup: Setup, memo: dict) -> dict:
    """Inputs of a forward whose rows begin with what a recipe makes; those given without one.

    Args:
        model: an nnsight model.
        inputs: ids and mask of what follows, left-padded.
        recipe: of the beginning; None where there is none.
        setup: the empty cache, the last step, and whether the model takes positions.
        memo: keeps the prefix made last, and a beginning that is kept: recipes with the same follow each other.
    """
    return inputs if recipe is None else behind(beginning(model, recipe, setup, memo), inputs, setup)


def beginning(model: TracedModel, recipe: BeginningRecipe, setup: Setup, memo: dict) -> Beginning:
    """What a recipe makes."""
    if recipe.prefix not in memo:
        memo.clear()
        memo[recipe.prefix] = prefix(model, recipe.prefix, setup)
    if recipe.batch is None:
        return repeated(memo[recipe.prefix], recipe.counts[0])
    if not recipe.kept:
        return branched(model, memo[recipe.prefix], recipe, setup)
    if memo.get("recipe") is not recipe:
        memo["recipe"], memo["kept"] = recipe, branched(model, memo[recipe.prefix], recipe, setup)
    return memo["kept"]._replace(cache=fresh(memo["kept"].cache))


def prefix(model: TracedModel, ids: tuple, setup: Setup) -> Beginning:
    """One row: the tokens ``ids``, which may be none."""
    empty = Beginning(fresh(setup.empty), torch.ones((1, 0), dtype=torch.long))
    if not ids:
        return empty
    tokens = torch.tensor([list(ids)])
    return _grown(model, empty, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, setup)


def repeated(one: Beginning, rows: int) -> Beginning:
    """A beginning of one row for every row of a batch; the one given stays as it is."""
    cache = fresh(one.cache)
    cache.batch_repeat_interleave(rows)
    return Beginning(cache, one.mask.expand(rows, -1))


def branched(model: TracedModel, one: Beginning, recipe: BeginningRecipe, setup: Setup) -> Beginning:
    """Behind a beginning of one row, the rows of a recipe's batch, each ``counts`` times."""
    counts = recipe.counts
    cache, mask = _grown(model, repeated(one, len(counts)), recipe.batch, setup)
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts))).to(mask.device)
    cache.batch_select_indices(index)
    return Beginning(cache, mask[index])


def behind(before: Beginning, batch: dict, setup: Setup) -> dict:
    """Inputs of a forward over what follows: a (left-padded) batch with its beginnings in the cache."""
    cache, mask = before
    full = torch.cat([mask.to(batch["attention_mask"].device), batch["attention_mask"]], dim=1)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": full, "past_key_values": cache, "use_cache": True}
    if setup.positions:
        inputs["position_ids"] = (full.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] :]
    return inputs


def fresh(cache: Any) -> Any:
    """The same keys and values in a cache of its own: a forward joins its tokens to them in new tensors."""
    made = twin(cache)
    made.layers = [twin(layer) for layer in cache.layers]
    return made


def twin(thing: Any) -> Any:
    """Another of the same kind, with the same attributes."""
    kind: Any = type(thing)
    made = kind.__new__(kind)
    made.__dict__.update(thing.__dict__)
    return made


def _grown(model: TracedModel, before: Beginning, batch: dict, setup: Setup) -> Beginning:
    inputs = behind(before, batch, setup)
    runs.capture(model, inputs, setup.program)
    return Beginning(before.cache, inputs["attention_mask"])
