"""Scoring: how likely a model finds given replies, as log-probability of each token and as perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from emotrace.runlog import progress as progress_bar

LOGIT_ELEMENTS = 1 << 26
"""Most logits held at a time; the batch shrinks for large vocabularies."""
LARGEST = 700.0
"""Largest −mean log-probability that a float can hold the exponential of, roughly."""


def reply_logprobs(model: Any, prompts: Any, batch_size: int = 32, progress: bool = False) -> list[np.ndarray]:
    """Log-probability (nats) of every reply token under the un-edited model, given its prompt and the reply before it.

    Args:
        model: from `emotrace.load`, causal.
        prompts: prompts that carry ``reply_ids``; a reply may be empty.
        batch_size: sequences per forward.

    Returns:
        One float64 array per prompt, ``[reply token]``.
    """
    prompts = Prompts.of(prompts)
    encoder, module = model.sites.encoder, model._module
    if batch_size < 1:
        raise EmotraceError(f"batch_size={batch_size}: at least 1.")
    if not encoder.causal:
        raise EmotraceError(f"{model.sites.model_class} is a masked model: its replies have no perplexity.")
    ids = encoder.ids(prompts)
    replies = [list(p.reply_ids or ()) for p in prompts]
    out: list[np.ndarray] = [np.empty(0)] * len(prompts)
    order = sorted((i for i in range(len(ids)) if replies[i]), key=lambda i: -len(ids[i]) - len(replies[i]))
    vocabulary = model.sites.address("logits").width
    device = next(module.parameters()).device
    at = 0
    with torch.no_grad(), progress_bar(total=len(order), desc="perplexity", unit="reply", enabled=progress) as bar:
        while at < len(order):
            longest = len(ids[order[at]]) + len(replies[order[at]])
            batch = order[at : at + max(1, min(batch_size, LOGIT_ELEMENTS // (longest * vocabulary)))]
            at += len(batch)
            sequences = [ids[i] + replies[i] for i in batch]
            tokens = torch.zeros((len(batch), longest), dtype=torch.long)
            mask = torch.zeros_like(tokens)
            for row, sequence in enumerate(sequences):  # padded on the right, where a causal model never looks
                tokens[row, : len(sequence)] = torch.tensor(sequence)
                mask[row, : len(sequence)] = 1
            logits = module(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits
            for row, i in enumerate(batch):
                p, n = len(ids[i]), len(sequences[row])
                scores = logits[row, p - 1 : n - 1].float().log_softmax(-1)
                picked = scores.gather(1, torch.tensor(replies[i], device=device)[:, None])[:, 0]
                out[i] = picked.double().cpu().numpy()
            bar.update(len(batch))
    return out


def perplexity(model: Any, prompts: Any, batch_size: int = 32, progress: bool = False) -> list[float | None]:
    """exp(−mean log-probability) of each reply; None for an empty one. Arguments as `reply_logprobs`.

    Raises:
        EmotraceError: as `reply_logprobs`, and where the model's logits are not finite.
    """
    prompts = Prompts.of(prompts)
    scores = reply_logprobs(model, prompts, batch_size, progress)
    for prompt, s in zip(prompts, scores, strict=True):
        if not np.isfinite(s).all():
            raise EmotraceError(f"the model gives a token of the reply to {prompt.key!r} no finite log-probability.")
    return [math.exp(min(-float(s.mean()), LARGEST)) if len(s) else None for s in scores]


def add_perplexity(
    model: Any, rows: Sequence[dict[str, Any]], plain: Mapping[str, Any], batch_size: int = 32, progress: bool = True
) -> None:
    """Write ``meta.perplexity`` into rows: of their reply, after the prompt *without* the emotion sentence.

    Args:
        model: the un-edited model.
        rows: of `generate`; rows of equal prompt and reply are scored once.
        plain: ``{skeleton_id}__{valence}`` → the plain prompt.
        batch_size: sequences per forward.
        progress: show a bar.

    Raises:
        EmotraceError: for a row whose plain prompt is not given.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[dict[str, Any]]] = {}
    for row in rows:
        if "perplexity" not in row["meta"]:
            key = f"{row['skeleton_id']}__{row['valence']}".replace("/", "_")
            if key not in plain:
                raise EmotraceError(f"row {row.get('key')!r}: no plain prompt {key!r} to score its reply after.")
            groups.setdefault((key, tuple(row["token_ids"])), []).append(row)
    if not groups:
        return
    base = {key: plain[key] for key, _ in groups}
    ids = dict(zip(base, model.sites.encoder.ids(list(base.values())), strict=True))
    items = [{"key": str(n), "token_ids": ids[key], "reply_ids": list(reply)} for n, (key, reply) in enumerate(groups)]
    for value, members in zip(perplexity(model, items, batch_size, progress), groups.values(), strict=True):
        for row in members:
            row["meta"]["perplexity"] = value
