"""Likelihood: how likely an edited model finds given replies, with the edits at every position that a score comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from emotrace import arguments
from emotrace import edits as edits_
from emotrace.datasets import Prompt, Prompts
from emotrace.edits import Edit
from emotrace.forwards import beginnings, caches, finite
from emotrace.forwards.entering import enter, inputs
from emotrace.labels import EmotraceError
from emotrace.runlog import progress as progress_bar
from emotrace.scoring import LOGIT_ELEMENTS, WHOLE
from emotrace.sites import LanguageModel
from emotrace.traced import likelihoods
from emotrace.traced.steps import Read

SCORED: Final = ("steer", "all")
"""Position policies that hold the last prompt token and every reply token, from which a reply's scores come."""


class Scores(NamedTuple):
    """Of one reply: ``logprobs[token]`` in nats, and whether each token is the likeliest one."""

    logprobs: np.ndarray
    likeliest: np.ndarray


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
    prompts: Any,
    edits: Sequence[Edit] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Scores]:
    """log p(r_t | prompt, r_<t) of every token of each prompt's reply, under edits.

    Without edits ``logprobs`` are those of `emotrace.scoring.reply_logprobs`.

    Args:
        model: from `emotrace.load`, causal.
        prompts: prompts that carry ``reply_ids``; an empty reply has no scores.
        edits: applied in order at their positions, which must hold every scored one (`check_scored`).
        batch_size: sequences per forward; fewer where the vocabulary is large.
        progress: show a bar.

    Returns:
        One `Scores` per prompt, in order.

    Raises:
        EmotraceError: for a masked model, edits that do not fit, miss a scored position, or never fire, or numbers that are
            not finite.
    """
    prompts = Prompts.of(prompts)
    sites, encoder = model.sites, model.sites.encoder
    arguments.whole("batch_size", batch_size, 1)
    if not encoder.causal:
        raise EmotraceError(f"{sites.model_class} is a masked model: it gives replies no likelihood.")
    edits = [] if edits is None else edits
    labels = [p.about for p in prompts]
    edits_.check(edits, sites, labels)
    check_scored(edits)
    ids, replies = encoder.ids(prompts), [list(p.reply_ids or ()) for p in prompts]
    out = [Scores(np.empty(0), np.empty(0, dtype=bool))] * len(prompts)
    totals = [len(i) + len(r) for i, r in zip(ids, replies, strict=True)]
    scored = [i for i in range(len(ids)) if replies[i]]
    read = Read(math.inf, sites.place(WHOLE), 0)
    vocabulary, options = sites.address("logits").width, caches.options(model)
    fired = [0] * len(edits)

    def most(longest: int) -> int:
        return min(batch_size, LOGIT_ELEMENTS // (longest * vocabulary))

    with progress_bar(total=len(scored), desc="likelihood", unit="reply", enabled=progress) as bar:
        for batch in beginnings.batches(model, totals, most, scored):
            sequences = [ids[i] + replies[i] for i in batch]
            lengths = [totals[i] for i in batch]
            lowered = edits_.lower(
                edits, sites, [labels[i] for i in batch], [len(ids[i]) for i in batch], lengths, max(lengths), True
            )
            program = lowered.program([read])
            fed = inputs(model, sequences) | options
            scores, likeliest, counts = enter(
                model, likelihoods.edited, fed, program, lowered.count, [replies[i] for i in batch]
            )
            for i, found, best in zip(batch, scores, likeliest, strict=True):
                item = finite.Item(prompts[i].key, ids[i], replies[i], labels[i])
                finite.unless_finite(found, "the likelihood of a reply", model, [item], edits, free=True)
                out[i] = Scores(found.numpy(), best.numpy())
            fired = [a + b for a, b in zip(fired, counts, strict=True)]
            bar.update(len(batch))
    if any(len(s.logprobs) for s in out):
        edits_.refuse_silent(edits, fired)
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
