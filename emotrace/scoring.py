"""Scoring: perplexity of replies and of rows, from their likelihood (`emotrace.forwards.likelihood`), kept in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from emotrace import disk
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.forwards.likelihood import kl, reply_logprobs
from emotrace.identity import made_by
from emotrace.labels import EmotraceError
from emotrace.replies.row import Row, label_of, plain_key
from emotrace.runlog import Log
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

__all__ = ["Scored", "add_perplexity", "kl", "perplexity", "reply_logprobs", "score_rows"]

LARGEST = 700.0
"""Largest −mean log-probability that a float can hold the exponential of, roughly."""

_NAMED_BY: Final = ("score", "made")


class Scored:
    """Scores in a file, each under a digest of everything that it is made from: what is there is not computed again.

    Args:
        path: JSON-lines file, which need not exist; None keeps nothing.
        score: what they are, e.g. ``perplexity``.

    Attributes:
        values: by digest.

    Raises:
        EmotraceError: for a damaged line, or one that was changed after it was written.
    """

    def __init__(self, path: str | Path | None, score: str) -> None:
        self.path, self.score = None if path is None else Path(path), score
        self.values: dict[str, float | None] = {}
        for row in [] if self.path is None else Log(self.path, _NAMED_BY).rows():
            if row != _line(str(row["score"]), str(row["made"]), row.get("value")):
                raise EmotraceError(
                    f"{self.path}: the {row['score']} under {row['made']} was changed after it was written. Take the line out, "
                    "and it is computed again."
                )
            if row["score"] == score:
                self.values[row["made"]] = row["value"]

    def add(self, values: Mapping[str, float | None]) -> None:
        """Keep what was computed, and wait until it is on disk."""
        self.values |= values
        if self.path is not None and values:
            with Log(self.path, _NAMED_BY) as log:
                log.append(_line(self.score, made, value) for made, value in values.items())


def _line(score: str, made: str, value: object) -> dict[str, Any]:
    return {"score": score, "made": made, "value": value, "digest": disk.digest([score, made, value])}


@typed
def perplexity(
    model: LanguageModel, prompts: PromptsLike, batch_size: BatchSize = 32, progress: bool = False
) -> list[float | None]:
    """exp(−mean log-probability) of each reply; None for an empty one.

    Args:
        model: from `emotrace.load`.
        prompts: with replies; `Prompts`, or whatever `Prompts.of` takes.
        batch_size: most sequences per forward, or ``auto``.
        progress: show a bar.

    Raises:
        EmotraceError: as `reply_logprobs`, and where the model's logits are not finite.
    """
    prompts = Prompts.of(prompts)
    logprobs = reply_logprobs(model, prompts, batch_size, progress)
    for prompt, s in zip(prompts, logprobs, strict=True):
        if not np.isfinite(s).all():
            raise EmotraceError(f"the model gives a token of the reply to {prompt.key!r} no finite log-probability.")
    return [math.exp(min(-float(s.mean()), LARGEST)) if len(s) else None for s in logprobs]


@typed
def add_perplexity(
    model: LanguageModel,
    rows: Sequence[Row],
    plain: Mapping[str, Any],
    batch_size: BatchSize = 32,
    progress: bool = True,
    kept: str | Path | None = None,
) -> None:
    """Write ``meta.perplexity`` into rows: of their reply, after the prompt *without* the emotion sentence.

    Args:
        model: the un-edited model.
        rows: of `generate`; rows of equal prompt and reply are scored once.
        plain: key → plain prompt; the key is that of the row's ``prompt``, or ``{skeleton_id}__{valence}``.
        batch_size: most sequences per forward, or ``auto``.
        progress: show a bar.
        kept: file of scores (`Scored`), which grows; None keeps none.

    Raises:
        EmotraceError: for a row whose plain prompt is not given, or a file that was changed.
    """
    keys = [plain_key(row) for row in rows]
    lost = [i for i, key in enumerate(keys) if key not in plain and "perplexity" not in (rows[i].get("meta") or {})]
    if lost:
        raise EmotraceError(
            f"row {rows[lost[0]].get('key')!r}: no plain prompt {keys[lost[0]]!r} to score its reply after."
        )
    known = [(row, key) for row, key in zip(rows, keys, strict=True) if key in plain]
    base = {key: plain[key] for _, key in known}
    ids = dict(zip(base, model.sites.encoder.ids(list(base.values())), strict=True)) if base else {}
    score_rows(model, [row for row, _ in known], [ids[key] for _, key in known], batch_size, progress, kept)


@typed
def score_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    batch_size: BatchSize = 32,
    progress: bool = False,
    kept: str | Path | None = None,
) -> None:
    """Write ``meta.perplexity`` of each row's reply after the token ids of a prompt, and what it was made from.

    Rows that carry the perplexity of this reply after this prompt under this model are left alone; equal ones are scored once.

    Args:
        model: the un-edited model.
        rows: with ``token_ids``; ``meta`` is replaced.
        prompts: of each row.
        batch_size: most sequences per forward, or ``auto``.
        progress: show a bar.
        kept: file of scores (`Scored`), which grows; None keeps none.

    Raises:
        EmotraceError: for a file that was changed.
    """
    by = disk.digest(made_by(model))
    groups: dict[str, list[int]] = {}
    for i, (row, ids) in enumerate(zip(rows, prompts, strict=True)):
        made, meta = disk.digest([by, ids, label_of(row, "token_ids")]), row.get("meta") or {}
        if "perplexity" not in meta or (meta.get("made") or {}).get("perplexity") != made:
            groups.setdefault(made, []).append(i)
    scored = Scored(kept, "perplexity")
    lacking = [made for made in groups if made not in scored.values]
    firsts = [groups[made][0] for made in lacking]
    items = [
        {"key": f"{rows[i].get('key', '')}/{n}", "token_ids": list(prompts[i]), "reply_ids": list(rows[i]["token_ids"])}
        for n, i in enumerate(firsts)
    ]
    values = perplexity(model, items, batch_size, progress) if items else []
    scored.add(dict(zip(lacking, values, strict=True)))
    for made, members in groups.items():
        for i in members:
            meta = rows[i].get("meta") or {}
            own = {**(meta.get("made") or {}), "perplexity": made}
            rows[i]["meta"] = {**meta, "perplexity": scored.values[made], "made": own}
