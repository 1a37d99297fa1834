"""Dose: one set of vectors at many strengths: the emotion aimed at, drift to others, fluency and KL; strength at a given KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import xarray as xr

from emotrace import arguments, scoring
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.edits import mixture
from emotrace.evaluation import Evaluation, plain_of, repeated
from emotrace.files import to_folder
from emotrace.labels import EmotraceError
from emotrace.replies import bisect, fluency_bounds
from emotrace.replies.row import Row, label_of
from emotrace.replies.search import Bisection
from emotrace.replies.table import finite_mean
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    from emotrace.judges import Judge

DOSES: Final = (-1.0, 0.0, 1.0, 2.0, 4.0)
"""The published doses (arXiv 2502.04075): multiples of a vector."""
FINE: Final = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""A finer sweep where vectors mostly act."""


@typed
def dose_response(
    model: LanguageModel,
    prompts: PromptsLike,
    vectors: xr.DataArray,
    judge: Judge,
    *,
    doses: Sequence[float] = DOSES,
    emotions: Sequence[str] | None = None,
    measure_kl: bool = True,
    decoding: Mapping[str, Any] | None = None,
    batch_size: BatchSize = 32,
    seed: int = 0,
    method: str = "dose",
    out: str | Path | None = None,
    progress: bool = True,
    **where: Any,
) -> list[Row]:
    """Judged replies to the same prompts at every dose of every emotion's vector.

    Each arm has the same prompts and the same seed. Perplexity is that of the reply under the un-edited model after the
    prompt. KL(base ‖ edited) is taken along the base model's own replies (those of dose 0), so it does not depend on what
    the edited model writes.

    Args:
        model: from `emotrace.load`; causal.
        prompts: plain prompts, which ask for no emotion.
        vectors: ``[emotion, layer, dim]``; the dim may be a label of your own, and the rows then have its value as ``emotion``.
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
        repetition, kl``; for `replies.dose_table` and `replies.emotion_matrix`.

    Raises:
        EmotraceError: for doses that are not finite, or vectors and settings that do not fit, before anything runs; for a
            folder of other prompts, vectors, settings or judge (the row and each difference are named). Scores are kept under
            what made them (`scoring.Scored`), so those of other replies are not taken.
    """
    arguments.batch("batch_size", batch_size)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    prompts = Prompts.of(prompts)
    own = str(vectors.attrs.get("label", "emotion"))
    if own in vectors.dims and own != "emotion":
        vectors = vectors.rename({own: "emotion"})
    names = [str(v) for v in (vectors["emotion"].values if emotions is None else emotions)]
    wanted = sorted({0.0, *arguments.numbers("dose_response(doses)", doses)})
    known = [str(v) for v in vectors["emotion"].values]
    arguments.names("emotion", names, known, place="dose_response(emotions=…)")
    vectors = vectors.isel(emotion=[known.index(name) for name in names]).assign_coords(emotion=names)
    edits = {dose: mixture(vectors, None, strength=dose, **where) for dose in wanted}
    for some in edits.values():
        edits_.check(some, model.sites)
    decoding = decoding or {}
    it = Evaluation(model, judge, out, decoding, batch_size, seed, progress=progress)
    aimed = prompts.for_each(emotion=names)
    asked = plain_of(prompts, aimed)
    base = it.generated("base", prompts)
    rows: list[Row] = []
    for dose in wanted:
        name = _name(dose)
        answered = it.generated(name, aimed, edits[dose], method=method) if dose else repeated(base, prompts, aimed)
        found: list[Row] = [
            {**row, "prompt": asked[row["key"]], "dose": dose, "method": method, "meta": {**row["meta"]}}
            for row in it.judged(name, answered)
        ]
        it.measured(found, prompts, name=name)
        cost = it.divergence(aimed, base, prompts, edits[dose], name) if measure_kl else {}
        for row in found:
            if row["key"] in cost:
                row["meta"]["kl"] = cost[row["key"]]
        rows += found
    return rows


def _name(dose: float) -> str:
    """Stem of the files of a dose; no two doses share one."""
    short = f"{dose:g}"
    return f"dose_{short if float(short) == dose else repr(dose)}"


@typed
def strength_at_kl(
    model: LanguageModel,
    prompts: PromptsLike,
    vectors: xr.DataArray,
    mix: Any,
    target: float,
    *,
    start: float = 1.0,
    tolerance: float = 0.02,
    batch_size: BatchSize = 32,
    **where: Any,
) -> Bisection:
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
        As `emotrace.replies.bisect`.
    """
    prompts = Prompts.of(prompts)

    def measure(strength: float) -> float:
        edits = mixture(vectors, mix, strength=strength, **where)
        return finite_mean(scoring.kl(model, prompts, edits, batch_size))

    return bisect(measure, target, start=start, tolerance=tolerance)


@typed
def fluency_of(
    model: LanguageModel, prompts: PromptsLike, rows: Sequence[Row], batch_size: BatchSize = 32, progress: bool = True
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
    if not rows:
        raise EmotraceError("fluency_of: there are no replies.")
    bare = [cast("Row", {n: label_of(row, n) for n in ("key", "prompt", "token_ids")}) for row in rows]
    return fluency_bounds(Evaluation(model, batch_size=batch_size, progress=progress).measured(bare, prompts))
