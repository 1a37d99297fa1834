"""Dose: one set of vectors at many strengths: the emotion aimed at, drift to others, fluency and KL; strength at a given KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments, disk, judges, scoring, stats
from emotrace import edits as edits_
from emotrace.datasets import Prompts
from emotrace.edits import digest as edits_digest
from emotrace.edits import mixture
from emotrace.files import to_folder
from emotrace.forwards.generation import generate
from emotrace.identity import made_by
from emotrace.labels import EmotraceError
from emotrace.runlog import Log
from emotrace.sites import LanguageModel
from emotrace.stats.doses import bisect

Rows = list[dict[str, Any]]
DOSES: Final = (-1.0, 0.0, 1.0, 2.0, 4.0)
"""The published doses (arXiv 2502.04075): multiples of a vector."""
FINE: Final = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""A finer sweep where vectors mostly act."""


def dose_response(
    model: LanguageModel,
    prompts: Any,
    vectors: xr.DataArray,
    judge: Any,
    *,
    doses: Sequence[float] = DOSES,
    emotions: Sequence[str] | None = None,
    measure_kl: bool = True,
    decoding: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    method: str = "dose",
    out: str | Path | None = None,
    progress: bool = True,
    **where: Any,
) -> Rows:
    """Judged replies to the same prompts at every dose of every emotion's vector.

    Each arm has the same prompts and the same seed. Perplexity is that of the reply under the un-edited model after the
    prompt. KL(base ‖ edited) is taken along the base model's own replies (those of dose 0), so it does not depend on what
    the edited model writes.

    Args:
        model: from `emotrace.load`; causal.
        prompts: plain prompts, which ask for no emotion.
        vectors: ``[emotion, layer, dim]``.
        judge: of `emotrace.judges.make`.
        doses: multiples of the vectors (in the unit of ``scale``); 0 is added, once for all emotions.
        emotions: some of the vectors' emotions.
        measure_kl: measure KL.
        decoding: arguments of `emotrace.generate`.
        batch_size: prompts per batch.
        seed: of sampling.
        method: label of the rows.
        out: folder for replies and verdicts; the same call again continues.
        progress: show bars.
        where: ``site``, ``layers``, ``scale`` and ``positions`` of `emotrace.edits.mixture`.

    Returns:
        Rows of `generate` with ``prompt`` (the key of the plain prompt), ``dose``, ``verdict``, and ``meta.perplexity, length,
        repetition, kl``; for `stats.dose_table` and `stats.emotion_matrix`.

    Raises:
        EmotraceError: for doses that are not finite, or vectors and settings that do not fit, before anything runs; for a
            folder of other prompts, vectors, settings or judge (the row and each difference are named).
    """
    arguments.whole("batch_size", batch_size, 1)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    prompts = Prompts.of(prompts)
    names = [str(v) for v in (vectors["emotion"].values if emotions is None else emotions)]
    wanted = sorted({0.0, *arguments.numbers("dose_response(doses)", doses)})
    known = [str(v) for v in vectors["emotion"].values]
    arguments.names("emotion", names, known, place="dose_response(emotions=…)")
    vectors = vectors.sel(emotion=names)
    edits = {dose: mixture(vectors, None, strength=dose, **where) for dose in wanted}
    for some in edits.values():
        edits_.check(some, model.sites)
    folder = None if out is None else Path(out)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress, **(decoding or {})}
    aimed = prompts.for_each(emotion=names)
    plain_of = {p.key: q.key for q in prompts for p in Prompts([q]).for_each(emotion=names)}
    by = disk.digest(made_by(model))
    plain_ids = dict(zip(prompts.keys, model.sites.encoder.ids(prompts), strict=True))
    base = generate(model, prompts, method="none", out=folder and folder / "base.jsonl", **options)
    rows: Rows = []
    for dose in wanted:
        if dose == 0:
            of = {row["key"]: row for row in base}
            found = [
                {**of[plain_of[p.key]], "key": p.key, **p.labels, "meta": dict(of[plain_of[p.key]]["meta"])}
                for p in aimed
            ]
        else:
            path = folder and folder / f"{_name(dose)}.jsonl"
            found = generate(model, aimed, edits[dose], method=method, out=path, **options)
        with Log(folder / f"{_name(dose)}.verdicts.jsonl") if folder else nullcontext() as log:
            found = judges.judge_rows(found, judge, log=log, progress=progress)
        for row in found:
            row |= {"prompt": plain_of[row["key"]], "dose": dose, "method": method}
            row["meta"] = {
                **row["meta"], "length": len(row["token_ids"]), "repetition": stats.repetition(row["token_ids"]),
            }  # fmt: skip
        forced = {row["key"]: row["token_ids"] for row in base}
        made = {
            row["key"]: {
                "model": by, "prompt": disk.digest(plain_ids[row["prompt"]]), "reply": disk.digest(row["token_ids"]),
                "base": disk.digest(forced[row["prompt"]]), "edits": edits_digest(edits[dose]), "emotion": row["emotion"],
            }
            for row in found
        }  # fmt: skip
        path = folder and folder / f"{_name(dose)}.scores.jsonl"
        scores = _known(path, made)
        if not all(row["key"] in scores and (not measure_kl or "kl" in scores[row["key"]]) for row in found):
            divergence = _divergence(model, aimed, base, plain_of, edits[dose], batch_size) if measure_kl else {}
            perplexity = _perplexity(model, prompts, found, batch_size, progress)
            scores = {
                row["key"]: {"key": row["key"], "perplexity": perplexity[row["key"]]}
                | ({"kl": divergence.get(row["key"])} if measure_kl else {})
                | {"made": made[row["key"]]}
                for row in found
            }
            if path is not None:
                disk.write_rows(path, scores.values())
        for row in found:
            score = scores[row["key"]]
            row["meta"] |= {k: score[k] for k in ("perplexity", "kl") if k in score and (k, score[k]) != ("kl", None)}
        rows += found
    return rows


def _name(dose: float) -> str:
    """Stem of the files of a dose; no two doses share one."""
    short = f"{dose:g}"
    return f"dose_{short if float(short) == dose else repr(dose)}"


def _known(path: Path | None, made: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores in a file, each of the reply, prompt, edits and model of now."""
    if path is None:
        return {}
    found = {row["key"]: row for row in Log(path, ("key",)).rows() if row["key"] in made}
    for key, row in found.items():
        disk.settle(path, row.get("made"), made[key], what=f"the score of row {key!r}")
    return found


def strength_at_kl(
    model: LanguageModel,
    prompts: Any,
    vectors: xr.DataArray,
    mix: Any,
    target: float,
    *,
    start: float = 1.0,
    tolerance: float = 0.02,
    batch_size: int = 32,
    **where: Any,
) -> dict[str, Any]:
    """The strength of a mixture at which it moves the model's predictions by a given KL, so that methods compare at equal cost.

    Args:
        model: from `emotrace.load`; causal.
        prompts: plain prompts that carry the base model's replies (`Prompts.with_replies`).
        vectors: ``[emotion, layer, dim]``.
        mix: of `emotrace.edits.mixture`; None for each prompt's own emotion.
        target: mean KL(base ‖ edited) over prompts, in nats per token.
        start: first strength tried.
        tolerance: relative, of the KL.
        batch_size: sequences per forward.
        where: ``site``, ``layers``, ``scale`` and ``positions`` of `emotrace.edits.mixture`.

    Returns:
        ``{strength, cost, target, reached, steps}`` of `emotrace.stats.doses.bisect`.
    """
    prompts = Prompts.of(prompts)

    def measure(strength: float) -> float:
        edits = mixture(vectors, mix, strength=strength, **where)
        return float(np.nanmean(scoring.kl(model, prompts, edits, batch_size)))

    return bisect(measure, target, start=start, tolerance=tolerance)


def fluency_of(
    model: LanguageModel, prompts: Any, rows: Sequence[Mapping[str, Any]], batch_size: int = 32, progress: bool = True
) -> dict[str, list[float]]:
    """Bounds of fluency: 1st to 99th percentile over the model's own replies to an emotion asked in words.

    Args:
        model: the un-edited model.
        prompts: plain prompts, after which perplexity is taken, as for the replies that are to be compared.
        rows: replies with ``prompt`` (the key of the plain prompt), ``key`` and ``token_ids``.
        batch_size: sequences per forward.
        progress: show a bar.

    Raises:
        EmotraceError: for no rows, or one whose plain prompt is not given.
    """
    prompts = Prompts.of(prompts)
    lost = [row["prompt"] for row in rows if row["prompt"] not in set(prompts.keys)]
    if lost or not rows:
        raise EmotraceError(f"fluency_of: {f'no plain prompt {lost[0]!r}' if lost else 'there are no replies'}.")
    perplexity = _perplexity(model, prompts, rows, batch_size, progress)
    return stats.fluency_bounds(
        {
            "key": row["key"],
            "meta": {
                "perplexity": perplexity[row["key"]],
                "length": len(row["token_ids"]),
                "repetition": stats.repetition(row["token_ids"]),
            },
        }
        for row in rows
    )


def _divergence(
    model: LanguageModel, aimed: Prompts, base: Rows, plain_of: Mapping[str, str], edits: Sequence[Any], batch_size: int
) -> dict[str, float]:
    """KL of every aimed prompt along the base model's reply."""
    if not edits:
        return {p.key: 0.0 for p in aimed}
    replies = {row["key"]: row["token_ids"] for row in base}
    told = [{"key": p.key, "token_ids": replies[plain_of[p.key]]} for p in aimed if replies[plain_of[p.key]]]
    if not told:
        return {}
    forced = aimed.with_replies(told)
    return dict(zip(forced.keys, scoring.kl(model, forced, edits, batch_size).tolist(), strict=True))


def _perplexity(
    model: LanguageModel, prompts: Prompts, rows: Sequence[Mapping[str, Any]], batch_size: int, progress: bool
) -> dict[str, float | None]:
    """Perplexity of every row's reply after its plain prompt; equal replies to a prompt are scored once."""
    ids = dict(zip(prompts.keys, model.sites.encoder.ids(prompts), strict=True))
    bare = [{"key": row["key"], "token_ids": row["token_ids"]} for row in rows]
    scoring.score_rows(model, bare, [ids[row["prompt"]] for row in rows], batch_size, progress)
    return {row["key"]: row["meta"]["perplexity"] for row in bare}
