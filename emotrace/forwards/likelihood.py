"""Likelihood: how likely a model finds given replies, edited or not, and how far edits move its predictions along them.

Replies are forced upon the model: each token is predicted from the prompt and the reply before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from emotrace import arguments
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt, Prompts, PromptsLike
from emotrace.edits import Edit
from emotrace.forwards import beginnings, caches, finite
from emotrace.forwards import rows as rows_
from emotrace.forwards.entering import enter, inputs
from emotrace.forwards.kept import Shared
from emotrace.labels import EmotraceError
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site
from emotrace.traced import scores
from emotrace.traced.kept import Begun
from emotrace.traced.steps import Read

LOGIT_ELEMENTS = 1 << 26
"""Most logits held at a time; the batch shrinks for large vocabularies."""
WHOLE: Final = Site("")
"""The model's own output: some families scale or cap what the site ``logits`` holds."""
SCORED: Final = ("steer", "all")
"""Position policies that hold the last prompt token and every reply token, from which a reply's scores come."""


class Scores(NamedTuple):
    """Of one reply: ``logprobs[token]`` in nats, and whether each token is the likeliest one."""

    logprobs: np.ndarray
    likeliest: np.ndarray


class Forced(NamedTuple):
    """A batch of prompts with their replies.

    Attributes:
        rows: which prompts.
        items: these prompts.
        inputs: ids, mask and options.
        read: step that reads the model's output.
        edits: lowered.
        base: what they begin with without the edits, each distinct one once; None for nothing.
        begun: what they begin with under them.
    """

    rows: list[int]
    items: list[finite.Item]
    inputs: dict[str, Any]
    read: Read
    edits: edits_.Lowered
    base: Begun | None
    begun: Begun | None

    @property
    def replies(self) -> list[list[int]]:
        """Token ids of each reply."""
        return [list(item.reply) for item in self.items]

    @property
    def same(self) -> list[int]:
        """For each row, the first of the batch with the same prompt and reply."""
        return _same(self.items)


def check_scored(edits: Sequence[Edit]) -> None:
    """Refuse edits that would miss a position that a score comes from.

    The first reply token is predicted at the last prompt token, each further one at the reply token before it. An edit at
    the last position of a forward alone, as in the GoEmotions pipeline, would change one of them under teacher forcing.

    Raises:
        EmotraceError: naming the edit.
    """
    for i, edit in enumerate(edits):
        if getattr(edit, "positions", None) not in SCORED:
            raise EmotraceError(
                f"edits[{i}] acts at positions {getattr(edit, 'positions', None)!r}; a reply is scored from its last prompt "
                f"token and every token of its own, so positions must be {' or '.join(SCORED)}."
            )


def reply_scores(
    model: LanguageModel,
    prompts: PromptsLike,
    edits: Sequence[Edit] | None = None,
    batch_size: BatchSize = 32,
    progress: bool = False,
) -> list[Scores]:
    """log p(r_t | prompt, r_<t) of every token of each prompt's reply, under edits; summed up in float64.

    Args:
        model: from `emotrace.load`, causal.
        prompts: prompts that carry ``reply_ids``; an empty reply has no scores.
        edits: applied in order at their positions, which must hold every scored one (`check_scored`).
        batch_size: most sequences per forward, or ``auto``; fewer where the vocabulary is large.
        progress: show a bar.

    Returns:
        One `Scores` per prompt, in order; −∞ for a token that the model rules out.

    Raises:
        EmotraceError: for a masked model, edits that do not fit, miss a scored position, or never fire, or numbers that are
            not finite.
    """
    edits = [] if edits is None else edits
    items = _items(model, prompts, edits, batch_size)
    check_scored(edits)
    out = [Scores(np.empty(0), np.empty(0, dtype=bool))] * len(items)
    fired = [0] * len(edits)
    for batch in _forced(model, items, edits, batch_size, 1, "likelihood", progress):
        program = batch.edits.program([batch.read])
        logprobs, likeliest, counts = enter(
            model, scores.replies, batch.inputs, program, batch.edits.count, batch.replies, batch.begun
        )
        for i, item, values, best in zip(batch.rows, batch.items, logprobs, likeliest, strict=True):
            finite.unless_finite(values, "the likelihood of a reply", model, [item], edits, free=True)
            out[i] = Scores(values.numpy(), best.numpy())
        fired = [a + b for a, b in zip(fired, counts, strict=True)]
    if any(item.reply for item in items):
        edits_.refuse_silent(edits, fired)
    return out


@typed
def reply_logprobs(
    model: LanguageModel, prompts: PromptsLike, batch_size: BatchSize = 32, progress: bool = False
) -> list[np.ndarray]:
    """Log-probability (nats) of every reply token under the un-edited model, given its prompt and the reply before it.

    Args:
        model: from `emotrace.load`, causal.
        prompts: prompts that carry ``reply_ids``; a reply may be empty.
        batch_size: most sequences per forward, or ``auto``.
        progress: show a bar.

    Returns:
        One float64 array per prompt, ``[reply token]``; −∞ for a token that the model rules out.

    Raises:
        EmotraceError: for a masked model, or one whose numbers are not finite.
    """
    return [reply.logprobs for reply in reply_scores(model, prompts, None, batch_size, progress)]


@typed
def kl(
    model: LanguageModel,
    prompts: PromptsLike,
    edits: Sequence[Edit],
    batch_size: BatchSize = 32,
    progress: bool = False,
) -> np.ndarray:
    """KL(base ‖ edited) of each prompt: how far edits move the predictions along a given reply, in nats per token.

    Under teacher forcing of the reply r_1 … r_n, meant to be the base model's greedy one::

        KL = 1/n Σ_t Σ_w p(w | prompt, r_<t) · ln( p(w | prompt, r_<t) / q(w | prompt, r_<t) )

    p without, q with the edits, which act where their positions say (``steer``: from the last prompt token on). The end
    token is not part of a reply. 0 where the edits change no prediction.

    Args:
        model: from `emotrace.load`, causal.
        prompts: prompts that carry ``reply_ids`` (`Prompts.with_replies`).
        edits: applied in order; none gives zeros.
        batch_size: most sequences per forward, or ``auto``; fewer where the vocabulary is large.
        progress: show a bar.

    Returns:
        ``[prompt]`` float64, in the order of the prompts; NaN for an empty reply.

    Raises:
        EmotraceError: for a masked model, prompts without any reply, edits that do not fit or never fire, or logits that
            are not finite.
    """
    items = _items(model, prompts, edits, batch_size)
    if not any(item.reply for item in items):
        raise EmotraceError("kl needs prompts that carry replies: prompts.with_replies(rows of the un-edited model).")
    out, fired = np.full(len(items), np.nan), [0] * len(edits)
    for batch in _forced(model, items, edits, batch_size, 2, "KL", progress):  # base and edited at once
        program, count = batch.edits.program([batch.read]), batch.edits.count
        lengths, begun = [len(item.reply) for item in batch.items], (batch.base, batch.begun)
        out[batch.rows], counts = enter(
            model, scores.divergences, batch.inputs, batch.read, program, count, lengths, batch.same, begun
        )
        fired = [a + b for a, b in zip(fired, counts, strict=True)]
        lost = [items[i] for i in batch.rows if np.isnan(out[i])]
        if lost:
            raise finite.refusal("KL", model, lost, edits)
    edits_.refuse_silent(edits, fired)
    wrong = [items[i].key for i in np.flatnonzero(~np.isfinite(out)) if items[i].reply]
    if wrong:
        raise EmotraceError(f"the model has no finite predictions along the reply to {wrong[0]!r}.")
    return out


def continued(model: LanguageModel, prompt: Prompt, continuation: str, key: str) -> Prompt:
    """A prompt that carries a continuation of its text as its reply.

    Text and continuation are tokenised together, so that a token is what it is in running text; the reply begins with
    the first token that is not the prompt's own.

    Raises:
        EmotraceError: for a continuation without a token.
    """
    encoder = model.sites.encoder
    ids, own = encoder.continued(prompt, continuation), encoder.ids([replace(prompt, reply_ids=None)])[0]
    shared = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
    if not 0 < shared < len(ids):
        raise EmotraceError(f"prompt {prompt.key!r}: the continuation {continuation!r} has no token of its own.")
    return Prompt(key, token_ids=tuple(ids[:shared]), reply_ids=tuple(ids[shared:]), labels=prompt.labels)


def _items(
    model: LanguageModel, prompts: PromptsLike, edits: Sequence[Edit], batch_size: BatchSize
) -> list[finite.Item]:
    """Prompts with their replies, everything checked."""
    prompts = Prompts.of(prompts)
    sites, encoder = model.sites, model.sites.encoder
    arguments.batch("batch_size", batch_size)
    if not encoder.causal:
        raise EmotraceError(f"{sites.model_class} is a masked model: it gives replies no likelihood.")
    edits_.check(edits, sites, [p.about for p in prompts])
    return [
        finite.Item(p.key, ids, list(p.reply_ids or ()), p.about)
        for p, ids in zip(prompts, encoder.ids(prompts), strict=True)
    ]


def _forced(
    model: LanguageModel,
    items: list[finite.Item],
    edits: Sequence[Edit],
    batch_size: BatchSize,
    passes: int,
    desc: str,
    progress: bool,
) -> Iterator[Forced]:
    """Those that have a reply, in batches; ``passes`` is how many forwards' logits are held at a time."""
    sites, options = model.sites, caches.options(model)
    lengths = [len(item.ids) + len(item.reply) for item in items]
    with_reply = [i for i, item in enumerate(items) if item.reply]
    most_rows = rows_.resolved(model, batch_size, max(lengths, default=1))
    read = Read(math.inf, sites.place(WHOLE), 0)
    vocabulary = sites.address("logits").width

    def most(longest: int) -> int:
        return min(most_rows, LOGIT_ELEMENTS // (passes * longest * vocabulary))

    begun = Shared(model, items if with_reply else [], edits, max(lengths, default=0), most_rows)
    base = begun if not begun.inside else Shared(model, items, [], max(lengths), most_rows)
    batches = begun.by_blocks(with_reply, most) if begun.on else beginnings.batches(model, lengths, most, with_reply)
    with progress_bar(total=len(with_reply), desc=desc, unit="reply", enabled=progress) as bar:
        for rows in batches:
            batch = [items[i] for i in rows]
            fed = inputs(model, [[*item.ids, *item.reply] for item in batch])
            lowered = edits_.lower(
                edits, sites, [item.about for item in batch], [len(item.ids) for item in batch],
                [lengths[i] for i in rows], fed["input_ids"].shape[1], True,
            )  # fmt: skip
            distinct = [rows[n] for n in sorted(set(_same(batch)))]
            yield Forced(rows, batch, fed | options, read, lowered, base.begun(distinct), begun.begun(rows))
            bar.update(len(rows))


def _same(items: Sequence[finite.Item]) -> list[int]:
    """For each item, the first that has its prompt and reply."""
    first: dict[tuple[tuple[int, ...], ...], int] = {}
    return [first.setdefault((tuple(item.ids), tuple(item.reply)), n) for n, item in enumerate(items)]
