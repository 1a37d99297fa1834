"""Scoring: how likely a model finds given replies, and how far edits move its predictions along them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emotrace import arguments, disk
from emotrace import edits as edits_
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.forwards import beginnings, caches, finite
from emotrace.forwards.entering import enter, inputs
from emotrace.identity import made_by
from emotrace.labels import EmotraceError
from emotrace.replies.row import Row, plain_key
from emotrace.runlog import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site
from emotrace.traced import scores
from emotrace.traced.steps import Read

LOGIT_ELEMENTS = 1 << 26
"""Most logits held at a time; the batch shrinks for large vocabularies."""
WHOLE = Site("")
"""The model's own output: some families scale or cap what the site ``logits`` holds."""
LARGEST = 700.0
"""Largest −mean log-probability that a float can hold the exponential of, roughly."""


@typed
def reply_logprobs(
    model: LanguageModel, prompts: Any, batch_size: int = 32, progress: bool = False
) -> list[np.ndarray]:
    """Log-probability (nats) of every reply token under the un-edited model, given its prompt and the reply before it.

    Args:
        model: from `emotrace.load`, causal.
        prompts: prompts that carry ``reply_ids``; a reply may be empty.
        batch_size: sequences per forward.

    Returns:
        One float64 array per prompt, ``[reply token]``; −∞ for a token that the model rules out.

    Raises:
        EmotraceError: for a masked model, or one whose numbers are not finite.
    """
    prompts = Prompts.of(prompts)
    encoder = model.sites.encoder
    arguments.whole("batch_size", batch_size, 1)
    if not encoder.causal:
        raise EmotraceError(f"{model.sites.model_class} is a masked model: its replies have no perplexity.")
    ids = encoder.ids(prompts)
    replies = [list(p.reply_ids or ()) for p in prompts]
    out: list[np.ndarray] = [np.empty(0)] * len(prompts)
    lengths = [len(i) + len(r) for i, r in zip(ids, replies, strict=True)]
    scored = [i for i in range(len(ids)) if replies[i]]
    vocabulary = model.sites.address("logits").width
    read = Read(math.inf, model.sites.place(WHOLE), 0)
    options = caches.options(model)

    def most(longest: int) -> int:
        return min(batch_size, LOGIT_ELEMENTS // (longest * vocabulary))

    with progress_bar(total=len(scored), desc="perplexity", unit="reply", enabled=progress) as bar:
        for batch in beginnings.batches(model, lengths, most, scored):
            fed = inputs(model, [ids[i] + replies[i] for i in batch]) | options
            found = enter(model, scores.logprobs, fed, read, [replies[i] for i in batch])
            for i, picked in zip(batch, found, strict=True):
                item = finite.Item(prompts[i].key, ids[i], replies[i])
                finite.unless_finite(picked, "the likelihood of a reply", model, [item], free=True)
                out[i] = picked.numpy()
            bar.update(len(batch))
    return out


@typed
def perplexity(model: LanguageModel, prompts: Any, batch_size: int = 32, progress: bool = False) -> list[float | None]:
    """exp(−mean log-probability) of each reply; None for an empty one. Arguments as `reply_logprobs`.

    Raises:
        EmotraceError: as `reply_logprobs`, and where the model's logits are not finite.
    """
    prompts = Prompts.of(prompts)
    found = reply_logprobs(model, prompts, batch_size, progress)
    for prompt, s in zip(prompts, found, strict=True):
        if not np.isfinite(s).all():
            raise EmotraceError(f"the model gives a token of the reply to {prompt.key!r} no finite log-probability.")
    return [math.exp(min(-float(s.mean()), LARGEST)) if len(s) else None for s in found]


@typed
def add_perplexity(
    model: LanguageModel, rows: Sequence[Row], plain: Mapping[str, Any], batch_size: int = 32, progress: bool = True
) -> None:
    """Write ``meta.perplexity`` into rows: of their reply, after the prompt *without* the emotion sentence.

    Args:
        model: the un-edited model.
        rows: of `generate`; rows of equal prompt and reply are scored once.
        plain: key → plain prompt; the key is that of the row's ``prompt``, or ``{skeleton_id}__{valence}``.
        batch_size: sequences per forward.
        progress: show a bar.

    Raises:
        EmotraceError: for a row whose plain prompt is not given.
    """
    keys = [plain_key(row) for row in rows]
    lost = [i for i, key in enumerate(keys) if key not in plain and "perplexity" not in (rows[i].get("meta") or {})]
    if lost:
        raise EmotraceError(
            f"row {rows[lost[0]].get('key')!r}: no plain prompt {keys[lost[0]]!r} to score its reply after."
        )
    some = [(row, key) for row, key in zip(rows, keys, strict=True) if key in plain]
    base = {key: plain[key] for _, key in some}
    ids = dict(zip(base, model.sites.encoder.ids(list(base.values())), strict=True)) if base else {}
    score_rows(model, [row for row, _ in some], [ids[key] for _, key in some], batch_size, progress)


@typed
def score_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    batch_size: int = 32,
    progress: bool = False,
) -> None:
    """Write ``meta.perplexity`` of each row's reply after the token ids of a prompt, and what it was made from.

    Rows that carry the perplexity of this reply after this prompt under this model are left alone; equal ones are scored once.

    Args:
        model: the un-edited model.
        rows: with ``token_ids``; ``meta`` is replaced.
        prompts: of each row.
        batch_size: sequences per forward.
        progress: show a bar.
    """
    by = disk.digest(made_by(model))
    groups: dict[str, list[int]] = {}
    for i, (row, ids) in enumerate(zip(rows, prompts, strict=True)):
        made, meta = disk.digest([by, ids, row["token_ids"]]), row.get("meta") or {}
        if "perplexity" not in meta or (meta.get("made") or {}).get("perplexity") != made:
            groups.setdefault(made, []).append(i)
    items = [
        {"key": f"{rows[i].get('key', '')}/{n}", "token_ids": list(prompts[i]), "reply_ids": list(rows[i]["token_ids"])}
        for n, (i, *_) in enumerate(groups.values())
    ]
    values = perplexity(model, items, batch_size, progress) if items else []
    for value, (made, members) in zip(values, groups.items(), strict=True):
        for i in members:
            meta = rows[i].get("meta") or {}
            rows[i]["meta"] = {**meta, "perplexity": value, "made": {**(meta.get("made") or {}), "perplexity": made}}


@typed
def kl(
    model: LanguageModel, prompts: Any, edits: Sequence[Edit], batch_size: int = 32, progress: bool = False
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
        batch_size: sequences per forward; fewer where the vocabulary is large.
        progress: show a bar.

    Returns:
        ``[prompt]`` float64, in the order of the prompts; NaN for an empty reply.

    Raises:
        EmotraceError: for a masked model, prompts without any reply, edits that do not fit or never fire, or logits that
            are not finite.
    """
    prompts = Prompts.of(prompts)
    sites, encoder = model.sites, model.sites.encoder
    arguments.whole("batch_size", batch_size, 1)
    if not encoder.causal:
        raise EmotraceError(f"{sites.model_class} is a masked model: it has no replies to compare predictions along.")
    labels = [p.about for p in prompts]
    edits_.check(edits, sites, labels)
    ids, replies = encoder.ids(prompts), [list(p.reply_ids or ()) for p in prompts]
    totals = [len(i) + len(r) for i, r in zip(ids, replies, strict=True)]
    scored = [i for i in range(len(ids)) if replies[i]]
    if not scored:
        raise EmotraceError("kl needs prompts that carry replies: prompts.with_replies(rows of the un-edited model).")
    read = Read(math.inf, sites.place(WHOLE), 0)
    vocabulary = sites.address("logits").width
    options = caches.options(model)
    out, fired = np.full(len(ids), np.nan), [0] * len(edits)

    def most(longest: int) -> int:  # base and edited at once
        return min(batch_size, LOGIT_ELEMENTS // (2 * longest * vocabulary))

    with progress_bar(total=len(scored), desc="KL", unit="reply", enabled=progress) as bar:
        for batch in beginnings.batches(model, totals, most, scored):
            sequences = [ids[i] + replies[i] for i in batch]
            fed = inputs(model, sequences) | options
            lengths = [totals[i] for i in batch]
            longest = max(lengths)
            lowered = edits_.lower(
                edits, sites, [labels[i] for i in batch], [len(ids[i]) for i in batch], lengths, longest, True
            )
            program = lowered.program([read])
            firsts = [longest - len(replies[i]) - 1 for i in batch]
            out[batch], counts = enter(model, scores.divergences, fed, read, program, lowered.count, firsts)
            fired = [a + b for a, b in zip(fired, counts, strict=True)]
            lost = [finite.Item(prompts[i].key, ids[i], replies[i], labels[i]) for i in batch if np.isnan(out[i])]
            if lost:
                raise finite.refusal("KL", model, lost, edits)
            bar.update(len(batch))
    edits_.refuse_silent(edits, fired)
    wrong = [prompts[i].key for i in np.flatnonzero(~np.isfinite(out)) if replies[i]]
    if wrong:
        raise EmotraceError(f"the model has no finite predictions along the reply to {wrong[0]!r}.")
    return out
