"""Caches: keys and values of what rows begin with, computed once where the model lives, and repeated.

A *recipe* says what the rows of a forward begin with, a *beginning* is what it makes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from emotrace.traced import runs
from emotrace.traced.model import TracedModel


class Level(NamedTuple):
    """Tokens that follow the rows of the level before.

    Attributes:
        inputs: (left-padded) ids and mask.
        behind: for each row, the row of the level before that it follows; empty for the first level.
    """

    inputs: dict
    behind: tuple = ()


class BeginningRecipe(NamedTuple):
    """What the rows of a forward begin with.

    Attributes:
        levels: each behind the one before; those that forwards that follow each other have in common are computed once.
        rows: for each row of the forward, the row of the last level that it begins with.
    """

    levels: tuple
    rows: tuple


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
        memo: keeps the levels made last.
    """
    return inputs if recipe is None else behind(beginning(model, recipe, setup, memo), inputs, setup)


def beginning(model: TracedModel, recipe: BeginningRecipe, setup: Setup, memo: dict) -> Beginning:
    """What a recipe makes, of which the levels made last are kept."""
    made = memo.setdefault("made", [])
    known = 0
    while known < min(len(made), len(recipe.levels)) and made[known][0] is recipe.levels[known]:
        known += 1
    del made[known:]
    for level in recipe.levels[known:]:
        if made:
            before = selected(made[-1][1], level.behind)
        else:
            before = Beginning(fresh(setup.empty), level.inputs["attention_mask"][:, :0])
        made.append((level, _grown(model, before, level.inputs, setup)))
    return selected(made[-1][1], recipe.rows)


def selected(one: Beginning, rows: tuple) -> Beginning:
    """Rows of a beginning, each as often as it is named; the one given stays as it is."""
    cache = fresh(one.cache)
    if list(rows) == list(range(one.mask.shape[0])):
        return Beginning(cache, one.mask)
    index = torch.tensor(list(rows), device=one.mask.device)
    cache.batch_select_indices(index)
    return Beginning(cache, one.mask[index])


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
