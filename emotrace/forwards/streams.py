"""Streams: activations of many prompts at their last token, chunk by chunk, so that memory is bounded by one chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from emotrace import disk
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.directions import groups
from emotrace.edits import Edit, check
from emotrace.forwards.capturing import capture, reduced
from emotrace.forwards.entering import backend
from emotrace.labels import EmotraceError, unknown
from emotrace.planned import DryRows
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site
from emotrace.store import Activations

T = TypeVar("T")
CHUNK_BYTES = 64 << 20
"""Activations that `fitting` allows in one chunk."""


@typed
def stream(
    model: LanguageModel,
    prompts: PromptsLike,
    sites: Sequence[str | Site] | str | Site,
    *,
    layers: Iterable[int] | int | None = None,
    edits: Sequence[Edit] | None = None,
    prompts_per_chunk: int = 256,
    batch_size: BatchSize = 32,
    start: int = 0,
    progress: bool = True,
    desc: str = "capture",
) -> Iterator[tuple[range, Activations]]:
    """Activations at the last prompt token, ``prompts_per_chunk`` prompts at a time, in the order of the prompts.

    The chunks are a function of the whole prompt set, never of what remains, so sums over them can be continued
    (`emotrace.forwards.sums`) with the same bits.

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes.
        sites: as `capture` takes them.
        layers: 0-based layers; None for every layer that has the sites.
        edits: applied in the same forwards.
        prompts_per_chunk: prompts held at a time.
        batch_size: prompts per forward, or ``auto`` for what fits.
        start: prompts already done: a multiple of ``prompts_per_chunk``, or all of them.
        progress: show one bar for all chunks.
        desc: its name.

    Yields:
        ``(range of prompts, their activations)``; row i of the activations is prompt ``range[i]``.

    Raises:
        EmotraceError: before anything runs, for prompts or edits that do not fit the model, or a ``start`` inside a chunk.
    """
    coded, ranges = _chunked(model, prompts, edits, prompts_per_chunk, start)

    found = (
        capture(
            model, coded[rows.start : rows.stop], sites, layers=layers, positions="last", edits=edits,
            batch_size=batch_size, progress=False,
        ) for rows in ranges
    )  # fmt: skip
    return _shown(ranges, found, start, desc, progress)


def reductions(
    model: LanguageModel,
    prompts: PromptsLike,
    sites: Sequence[str | Site] | str | Site,
    function: Callable[..., Any],
    args: Callable[[range], tuple[Any, ...]],
    *,
    layers: Iterable[int] | int | None = None,
    prompts_per_chunk: int = 256,
    batch_size: BatchSize = 32,
    left: Callable[[list[range]], Iterable[range]] | None = None,
    apart: bool = False,
    progress: bool = True,
    desc: str = "capture",
) -> Iterator[tuple[range, Any]]:
    """As `stream`, but of each chunk only what a function makes of it, where the model lives.

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes.
        sites: as `capture` takes them.
        function: of `emotrace.traced`: ``function(model, values, *args)``, see `emotrace.forwards.capturing.reduced`.
        args: what else it takes for a range of prompts.
        layers: 0-based layers; None for every layer that has the sites.
        prompts_per_chunk: prompts held at a time.
        batch_size: prompts per forward, or ``auto`` for what fits.
        left: which of the ranges are to be done, of all of them; None for all.
        apart: ask for one when that before is done.
        progress: show one bar for all chunks.
        desc: its name.

    Yields:
        ``(range of prompts, what the function returned)``.
    """
    coded, ranges = _chunked(model, prompts, None, prompts_per_chunk, 0)

    def found(some: Iterable[range]) -> Iterator[tuple[range, Any]]:
        asked: list[range] = []

        def parts() -> Iterator[tuple[Prompts, tuple[Any, ...]]]:
            for rows in some:
                asked.append(rows)
                yield coded[rows.start : rows.stop], args(rows)

        values = reduced(model, parts(), sites, function, layers=layers, batch_size=batch_size)
        yield from ((asked[i], value) for i, value in enumerate(values))

    wanted = ranges if left is None else left(ranges)
    pairs = (pair for rows in wanted for pair in found([rows])) if apart else found(wanted)
    with progress_bar(total=len(coded), desc=desc, unit="prompt", enabled=progress) as bar:
        for rows, value in pairs:
            bar.update(rows.stop - bar.n if not apart else len(rows))  # with what was done before
            yield rows, value


def _shown(ranges: list[range], found: Iterable[T], start: int, desc: str, progress: bool) -> Iterator[tuple[range, T]]:
    """What is found of each range of prompts, while a bar shows how far it is."""
    with progress_bar(total=start + sum(map(len, ranges)), desc=desc, unit="prompt", enabled=progress) as bar:
        bar.update(start)
        for rows, value in zip(ranges, found, strict=True):
            bar.update(len(rows))
            yield rows, value


def _chunked(
    model: LanguageModel, prompts: PromptsLike, edits: Sequence[Edit] | None, prompts_per_chunk: int, start: int
) -> tuple[Prompts, list[range]]:
    """Prompts as token ids, and the ranges that are left."""
    prompts = Prompts.of(prompts)
    if prompts_per_chunk < 1:
        raise EmotraceError(f"stream(prompts_per_chunk={prompts_per_chunk}): at least 1.")
    if not 0 <= start <= len(prompts) or (start % prompts_per_chunk and start != len(prompts)):
        raise EmotraceError(
            f"stream(start={start}) of {len(prompts)} prompts: a multiple of prompts_per_chunk={prompts_per_chunk}."
        )
    check([] if edits is None else edits, model.sites, [p.labels for p in prompts])
    ids = model.sites.encoder.ids(prompts)  # once, for all chunks: the last prompt may be the one that is too long
    coded = Prompts(replace(p, messages=None, text=None, token_ids=tuple(i)) for p, i in zip(prompts, ids, strict=True))
    whole = range(start, len(coded), prompts_per_chunk)
    return coded, [range(at, min(at + prompts_per_chunk, len(coded))) for at in whole]


def fitting(row_bytes: int) -> int:
    """Prompts per chunk within `CHUNK_BYTES` where one prompt takes ``row_bytes``: a multiple of 32 from 32 to 1024."""
    return int(min(1024, max(32, CHUNK_BYTES // max(row_bytes, 1) // 32 * 32)))


def dry(model: LanguageModel, prompts: Prompts, size: int, prompts_per_chunk: int) -> DryRows:
    """What `reductions` of prompts would do, and sums of ``size`` bytes keep."""
    chunks = -(-len(prompts) // prompts_per_chunk)
    tokens = sum(
        len(i) + len(p.reply_ids or ()) for i, p in zip(model.sites.encoder.ids(prompts), prompts, strict=True)
    )
    asked = None if backend(model).limit is None else chunks
    return DryRows(len(prompts), len(prompts), tokens, size, chunks, requests=asked)


def origin(model: LanguageModel, prompts: Prompts) -> dict[str, Any]:
    """What activations of a model at prompts depend on, for the settings of sums and the attrs of results."""
    encoder = model.sites.encoder
    tokens = disk.digest([encoder.ids(prompts), [p.reply_ids or () for p in prompts]])
    return {**model.sites.identity, **encoder.record, "prompts_digest": prompts.digest, "tokens_digest": tokens}


def accepted_only(prompts: PromptsLike, accepted: Iterable[str] | None) -> Prompts:
    """The prompts whose key is among the accepted ones; all for None.

    Raises:
        EmotraceError: as `emotrace.directions.groups.is_accepted`.
    """
    prompts = Prompts.of(prompts)
    if accepted is None:
        return prompts
    keep = groups.is_accepted(prompts.table, accepted)
    return Prompts(p for p, k in zip(prompts, keep, strict=True) if k)


def codes(prompts: Prompts, label: str, values: Sequence[Any], place: str = "") -> np.ndarray:
    """Of every prompt, the index of its label among ``values``; refuses as `emotrace.directions.groups.codes`."""
    if label not in prompts.label_names:
        raise unknown("label", label, prompts.label_names, place)
    return groups.codes(prompts.table, label, values, place)
