"""Doses: what strength does to the emotion that was aimed at, to the others, and to the text. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd

from emotrace import arguments
from emotrace.labels import ANSWERS, EmotraceError, emotion
from emotrace.replies.accuracy import answers_among
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import Bounds, mean_of, table
from emotrace.signatures import typed

ALL: Final = "all"
"""In tables: of all emotions together."""
READ: Final = (
    "emotion", "dose", "match", "other", "neutral", "fluent", "perplexity", "repetition", "length", "distinct_1", "kl",
)  # fmt: skip


@typed
def dose_table(
    rows: Iterable[Row],
    *,
    bounds: Bounds | None = None,
    cluster: str = "prompt",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One line per dose and emotion, and per dose for all emotions together (``all``).

    Shares are of the judged replies: ``on_target`` read as the emotion aimed at; ``off_target`` as another one;
    ``neutral`` as none. ``drift`` is off_target minus what it is at dose 0 for the same prompts and emotion (NaN without a
    dose 0). ``on_target_fluent`` counts a reply only if it is fluent.

    Args:
        rows: judged replies with ``emotion``, ``dose``, ``gen_text``, ``token_ids``, the cluster label, ``verdict`` and
            ``meta`` {perplexity, repetition, length, and perhaps kl}.
        bounds: of `fluency_bounds`; None leaves fluency out.
        cluster: label that the bootstrap draws as a whole.
        n_bootstrap: draws.
        seed: of the draws.

    Returns:
        Columns ``dose, emotion, n, n_unjudged, on_target, on_target_lo, on_target_hi, off_target, neutral, drift,
        on_target_fluent, fluent, perplexity`` (median), ``repetition, length, distinct_1`` (means) and ``kl`` (mean), by
        growing dose.

    Raises:
        EmotraceError: for no rows, or one without a field.
    """
    arguments.resampling("dose_table", seed, n_bootstrap=n_bootstrap)
    lines = table(rows, READ, cluster=cluster, bounds=bounds)
    if lines.empty:
        raise EmotraceError("dose_table: there are no rows.")
    for value in lines["dose"]:
        arguments.number("the dose of a row", value)
    lines["dose"] = lines["dose"].astype(float)
    emotions = list(dict.fromkeys(lines["emotion"]))
    out = []
    for dose in sorted(set(lines["dose"])):
        at = lines.loc[lines["dose"] == dose]
        for name in (ALL, *emotions):
            part = at if name == ALL else at.loc[at["emotion"] == name]
            if len(part):
                out.append({"dose": dose, "emotion": name, **_line(part, n_bootstrap, seed)})
    found = pd.DataFrame(out)
    at_zero = found.loc[found["dose"] == 0]
    base = dict(zip(at_zero["emotion"], at_zero["off_target"], strict=True))
    found["drift"] = [off - base.get(e, np.nan) for e, off in zip(found["emotion"], found["off_target"], strict=True)]
    return found


@typed
def emotion_matrix(rows: Iterable[Row], dose: float | None = None) -> pd.DataFrame:
    """Share of the replies aimed at each emotion (rows) that a judge reads as each answer (columns); rows sum to 1.

    Args:
        rows: judged replies with ``emotion`` (and ``dose``); unjudged ones are left out.
        dose: only those of this dose.

    Raises:
        EmotraceError: if nothing is judged.
    """
    pairs = [
        (label_of(row, "emotion"), emotion(predicted, ANSWERS, own=True))
        for row in rows
        if (predicted := (row.get("verdict") or {}).get("predicted")) is not None
        and (dose is None or row.get("dose") == dose)
    ]
    if not pairs:
        raise EmotraceError(f"emotion_matrix(dose={dose}): no judged reply.")
    answers = answers_among(*zip(*pairs, strict=True))
    counts: dict[str, dict[str, int]] = {}
    for asked, predicted in pairs:
        counts.setdefault(asked, dict.fromkeys(answers, 0))[predicted] += 1
    shares = pd.DataFrame.from_dict(counts, orient="index")
    return shares.div(shares.sum(axis=1), axis=0).rename_axis(index="emotion", columns="read_as")


@typed
def diagonal(matrix: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """For each emotion whether its own vector raises its rate most: the largest of its column, over the vectors.

    Returns:
        emotion → ``{own, next, next_emotion, most}``: the rate of the answer under its own vector and under the best of the
        others, and whether the own is larger.
    """
    out = {}
    for name in matrix.index:
        answer = emotion(str(name), list(matrix.columns), "emotion_matrix")
        rates = {str(e): float(rate) for e, rate in zip(matrix.index, matrix[answer], strict=True)}
        own = rates.pop(str(name))
        second = max(rates, key=lambda e: rates[e]) if rates else None
        following = rates[second] if second is not None else float("nan")
        out[str(name)] = {"own": own, "next": following, "next_emotion": second, "most": not own <= following}
    return out


def _line(part: pd.DataFrame, n_bootstrap: int, seed: int) -> dict[str, Any]:
    hits = mean_of(part, "match", n_bootstrap, seed, shares=True)
    judged = part.loc[part["match"].notna()]
    return {
        "n": hits.n,
        "n_unjudged": hits.n_missing,
        "on_target": hits.value,
        "on_target_lo": hits.lo,
        "on_target_hi": hits.hi,
        "off_target": judged["other"].mean(),
        "neutral": judged["neutral"].mean(),
        "on_target_fluent": (judged["match"] * judged["fluent"]).mean(),
        "fluent": part["fluent"].mean(),
        "perplexity": part["perplexity"].median(),
        **{name: part[name].mean() for name in ("repetition", "length", "distinct_1", "kl")},
    }
