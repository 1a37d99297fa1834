"""Kept: keys and values of what prompts begin with, computed once, kept within so many bytes, and laid out for any batch.

Prompts are computed in *blocks*: rows that begin with the same tokens, the *prefix*, and in each of them what follows. What a
block holds depends on its tokens and the edits in it alone, never on what was computed before, nor on the batch that asks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch

from emotrace.traced import caches, leaving, runs
from emotrace.traced.caches import Beginning, Setup
from emotrace.traced.model import TracedModel
from emotrace.traced.runs import Generation

LATE = 8
"""Calls: a search's parts are asked for by each other one, or by every third."""


class Pass(NamedTuple):
    """One forward over some of the first tokens of rows.

    Attributes:
        key: what is computed, under which edits and weights.
        inputs: (left-padded) ids and mask.
        program: steps (`traced.steps`) in the order of execution; the last step reads behind the last keys and values.
        n_edits: how many edits to count.
        later: of the edits, those that act at these tokens too late in a forward to change keys and values.
    """

    key: str
    inputs: dict
    program: list
    n_edits: int = 0
    later: tuple = ()


class Block(NamedTuple):
    """Rows that begin with the same tokens.

    Attributes:
        prefix: these tokens, as one row; None for none.
        own: what follows in each row.
    """

    prefix: Any
    own: Pass


class BegunRow(NamedTuple):
    """What a row of a batch begins with.

    Attributes:
        block: number of its block.
        row: of the block.
        tokens: how many of the first tokens of that row.
        own: how many tokens that row has behind the prefix.
    """

    block: int
    row: int
    tokens: int
    own: int


class Wanted(NamedTuple):
    """What the rows of a batch begin with.

    Attributes:
        blocks: that they are taken from.
        rows: a `BegunRow` for each.
        columns: of the padded batch, the first so many.
        edits: of the edits counted in the blocks, their numbers among all edits.
    """

    blocks: list
    rows: list
    columns: int
    edits: tuple = ()


class Begun(NamedTuple):
    """What the rows of a batch begin with, and what it is made with.

    Attributes:
        wanted: which blocks and rows of them.
        setup: the empty cache, the last step, and whether the model takes positions.
        kept: `Kept`: what is known; grows.
    """

    wanted: Wanted
    setup: Setup
    kept: Any


class Part(NamedTuple):
    """What a `Pass` computes.

    Attributes:
        layers: of each layer, keys and values ``[row, head, column, head_dim]``; None where it has none of its own.
        fired: how often each edit was carried out.
    """

    layers: list
    fired: list

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(t.numel() * t.element_size() for pair in self.layers if pair is not None for t in pair)


class Kept:
    """Parts within a limit: what comes makes only those go that no call has used of late.

    A study asks for the same parts again and again, all in turn. If the part used longest ago went for each that comes, each
    would be gone when its turn comes.

    Args:
        limit: most bytes that are kept.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.size, self.made, self.calls = limit, 0, 0, 0
        self.parts: OrderedDict = OrderedDict()
        self.used: dict[str, int] = {}

    def get(self, key: str) -> Part | None:
        """A part, now the one used last; None where it is not kept."""
        part = self.parts.get(key)
        if part is not None:
            self.parts.move_to_end(key)
            self.used[key] = self.calls
        return part

    def put(self, key: str, part: Part, prefix: bool = False) -> None:
        """Keep a part, where it fits beside those that were used of late; of the others those used longest ago go.

        A prefix is the beginning of whole blocks: whatever was used longest ago goes for it.
        """
        self.made += 1
        late = 0 if prefix else sum(p.size for k, p in self.parts.items() if self.calls - self.used[k] < LATE)
        if late + part.size > self.limit:
            return
        self.size += part.size
        self.parts[key], self.used[key] = part, self.calls
        self.within(self.limit)

    def call(self, limit: float) -> None:
        """Another call begins, with its limit."""
        self.calls += 1
        self.within(limit)

    def within(self, limit: float) -> None:
        """Set the limit."""
        self.limit = limit
        while self.size > limit:
            key, part = self.parts.popitem(last=False)
            self.size -= part.size
            del self.used[key]


def cache_of(model: TracedModel, begun: Begun) -> tuple:
    """A cache of the first columns of a batch, and how often each edit was carried out in them."""
    wanted, setup, kept = begun
    pairs = [_block(model, block, setup, kept) for block in wanted.blocks]
    rows = [(*pairs[row.block], row) if row.tokens else None for row in wanted.rows]
    fired = [0] * len(wanted.edits)
    for prefix, own in pairs:
        for part in (prefix, own):
            if part is not None:
                fired = [a + b for a, b in zip(fired, part.fired, strict=True)]
    cache = caches.fresh(setup.empty)
    for number, first in enumerate(pairs[0][1].layers):
        if first is not None:
            cache.update(*(_laid(rows, number, side, wanted.columns, first[side]) for side in (0, 1)), number)
    return cache, fired


def follow(model: TracedModel, inputs: dict, n_edits: int, begun: Begun | None) -> tuple:
    """Inputs of a forward over a batch, behind what its rows begin with.

    Args:
        model: an nnsight model.
        inputs: (left-padded) ids and mask of all tokens, and options.
        n_edits: how many edits there are.
        begun: what the rows begin with; None for nothing.

    Returns:
        ``(inputs, columns, fired)``: the columns that the forward computes, and how often each edit was carried out before
        them.
    """
    ids, mask, fired = inputs["input_ids"], inputs["attention_mask"], [0] * n_edits
    if begun is None:
        return inputs, (0, ids.shape[1]), fired
    cache, counts = cache_of(model, begun)
    at = begun.wanted.columns
    rest = {"input_ids": ids[:, at:], "attention_mask": mask[:, at:]}
    fed = caches.behind(Beginning(cache, mask[:, :at]), rest, begun.setup)
    return fed, (at, ids.shape[1]), _added(fired, begun.wanted, counts)


def generate(model: TracedModel, begun: Begun, one: Generation) -> tuple:
    """As `runs.generate`, behind what the rows begin with.

    Args:
        model: an nnsight model.
        begun: what the rows begin with.
        one: of `runs`.
    """
    cache, counts = cache_of(model, begun)
    one = one._replace(before=begun.wanted.columns)
    if one.ends and one.seed is None:
        ids, fired = leaving.generate(model, one, cache)
    else:
        ids, fired = runs.generate(model, one._replace(options=one.options | {"past_key_values": cache}))
    return ids, _added(fired, begun.wanted, counts)


def _added(fired: list, wanted: Wanted, counts: list) -> list:
    total = list(fired)
    for number, count in zip(wanted.edits, counts, strict=True):
        total[number] += count
    return total


def _block(model: TracedModel, block: Block, setup: Setup, kept: Kept) -> tuple:
    """Parts of a block: of its prefix, if it has one, and of what follows."""
    own = kept.get(block.own.key)
    before = Beginning(caches.fresh(setup.empty), torch.ones((1, 0), dtype=torch.long))
    prefix = None if block.prefix is None else _part(model, block.prefix, before, setup, kept, True)
    if own is None:
        rows = block.own.inputs["input_ids"].shape[0]
        cache, length = caches.fresh(setup.empty), 0
        for number, pair in enumerate([] if prefix is None else prefix.layers):
            if pair is not None:
                cache.update(*(t.expand(rows, -1, -1, -1) for t in pair), number)
                length = pair[0].shape[2]
        own = _part(model, block.own, Beginning(cache, torch.ones((rows, length), dtype=torch.long)), setup, kept)
    return prefix, own


def _part(
    model: TracedModel, one: Pass, before: Beginning, setup: Setup, kept: Kept, prefix: bool = False
) -> Part:  # fmt: skip
    found = kept.get(one.key)
    if found is None:
        start, width = before.mask.shape[1], one.inputs["input_ids"].shape[1]
        inputs = caches.behind(before, one.inputs, setup)
        fired = list(runs.capture(model, inputs, one.program, None, one.n_edits, (start, start + width)))
        for number in one.later:
            fired[number] += 1
        layers = [
            None if layer.keys is None else tuple(t[:, :, start:].clone() for t in (layer.keys, layer.values))
            for layer in before.cache.layers
        ]
        found = Part(layers, fired)
        kept.put(one.key, found, prefix)
    return found


def _laid(rows: list, layer: int, side: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """Keys or values of one layer, every row's at the right end of the columns; zero where there is padding."""
    heads, width = like.shape[1], like.shape[3]
    out = like.new_zeros((len(rows), heads, columns, width))
    for number, of in enumerate(rows):
        if of is None:
            continue
        prefix, own, row = of
        at = columns - row.tokens
        if prefix is not None:
            shared = prefix.layers[layer][side]
            stop = min(shared.shape[2], row.tokens)
            out[number, :, at : at + stop] = shared[0, :, :stop]
            at += stop
        if at < columns:
            values = own.layers[layer][side]
            first = values.shape[2] - row.own
            out[number, :, at:] = values[row.row, :, first : first + columns - at]
    return out
