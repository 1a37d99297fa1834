"""Finite: what a model makes of prompts is a number, or an error says where it first is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.edits import Edit
from emotrace.forwards import caches
from emotrace.forwards.entering import enter, inputs
from emotrace.labels import SITES, EmotraceError
from emotrace.sites import LanguageModel
from emotrace.traced import finite, requests

HALF = ("float16", "bfloat16")
_STOPPED = re.compile(finite.STOPPED + r": row (\d+) after (\[[\d, ]*\])?")


class Item(NamedTuple):
    """A sequence that a model is given.

    Attributes:
        key: of its prompt.
        ids: of the prompt.
        reply: ids that follow it.
        about: labels, by which payloads are gathered.
    """

    key: str
    ids: Sequence[int]
    reply: Sequence[int] = ()
    about: Mapping[str, Any] = {}


def refusal(what: str, model: LanguageModel, items: Iterable[Item], edits: Sequence[Edit] = ()) -> EmotraceError:
    """The error that says where a model's numbers first are not finite, prompt by prompt; made once something is lost.

    Args:
        what: what is not finite, for the message.
        model: from `emotrace.load`.
        items: sequences one of which is at fault.
        edits: under which it was.
    """
    items = list(items)
    place = located(model, items, edits)
    if place is not None:
        return EmotraceError(f"{what}: {place}")
    dtype = str(model._module.dtype).removeprefix("torch.")
    named = f"prompt {items[0].key!r}" if len(items) == 1 else f"each of {len(items)} prompts"
    advice = f" {dtype} may be too small: load it with dtype='float32', or take batch_size=1." if dtype in HALF else ""
    return EmotraceError(f"{what}: not finite in its batch, though every site of {named} alone is.{advice}")


def located(model: LanguageModel, items: Iterable[Item], edits: Sequence[Edit] = ()) -> str | None:
    """Where the numbers of a model first are not finite, in a sentence; None where they are, each sequence alone.

    Args:
        model: from `emotrace.load`.
        items: sequences, which run one by one until one is at fault.
        edits: under which they run.
    """
    dtype = str(model._module.dtype).removeprefix("torch.")
    for item in items:
        first = _first(model, item, edits)
        if first is None:
            continue
        site, layer, position = first
        at = site if layer is None else f"{site} of layer {layer}"
        advice = ""
        if edits and _first(model, item, ()) is None:
            advice = " Without the edits it is finite: take a smaller strength."
        elif dtype in HALF:
            advice = f" {dtype} may be too small for this model: load it with dtype='float32'."
        return f"{at} is not finite at position {position} of prompt {item.key!r}.{advice}"
    return None


def stopped(error: Exception) -> tuple[int, list[int]] | None:
    """Row and reply of a generation that `traced.finite.Watch` ended, here or on a server; None for another error."""
    said = _STOPPED.search(str(error))
    return None if said is None else (int(said[1]), ast.literal_eval(said[2] or "[]"))


def unless_finite(
    values: Any,
    what: str,
    model: LanguageModel,
    items: Iterable[Item],
    edits: Sequence[Edit] = (),
    *,
    free: bool = False,
) -> None:
    """Refuse results that are not finite; ``free`` allows −∞, the log-probability of a token that a model rules out.

    Raises:
        EmotraceError: of `refusal`.
    """
    if not finite.finite(torch.as_tensor(values), free):
        raise refusal(what, model, items, edits)


def _first(model: LanguageModel, item: Item, edits: Sequence[Edit]) -> tuple[str, int | None, int] | None:
    """Site, layer and position where a forward over one sequence first is not finite."""
    sites, sequence = model.sites, [*item.ids, *item.reply]
    reads = [
        (address.seen, site, layer)
        for site in SITES
        if site in sites.addresses and site != "attn_pattern"
        for layer, address in sites.addresses[site].items()
    ]
    reads.sort(key=lambda read: read[0].order)
    steps = [address.read(model, number) for number, (address, _, _) in enumerate(reads)]
    lowered = edits_.lower(
        edits, sites, [item.about], [len(item.ids)], [len(sequence)], len(sequence), sites.encoder.causal
    )
    free = [number for number, (_, site, _) in enumerate(reads) if site == "logits"]
    fed = inputs(model, [sequence]) | caches.options(model)
    lost_at = enter(model, requests.lost, fed, lowered.program(steps), lowered.count, free)
    if not lost_at:
        return None
    number, position = lost_at
    _, site, layer = reads[number]
    return site, layer, position


def lost(variables: Iterable[Any], arrays: Mapping[str, np.ndarray], free: Collection[str]) -> tuple | None:
    """The first ``(variable, cell, row)`` of captured arrays that is not finite; None where all are.

    Args:
        variables: of the plan.
        arrays: by variable, ``[…cells, row, …]``.
        free: variables in which −∞ is a number like others.
    """
    for v in variables:
        for cell in v.cells():
            values = arrays[v.name][cell]
            if not finite.finite(torch.from_numpy(values), v.name in free):
                wrong = ~np.isfinite(values) & ~(np.isneginf(values) & (v.name in free))
                return v, cell, int(np.argwhere(wrong)[0][0])
    return None
