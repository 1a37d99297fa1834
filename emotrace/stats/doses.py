"""Doses: what strength does to the emotion that was aimed at, to the others, and to the text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emotrace import arguments
from emotrace.labels import NEUTRAL, EmotraceError, emotion
from emotrace.stats.accuracy import answers_among
from emotrace.stats.fluency import is_fluent
from emotrace.stats.intervals import bootstrap_ci
from emotrace.stats.responses import distinct

Row = Mapping[str, Any]
ALL = "all"


def dose_table(
    rows: Iterable[Row],
    *,
    bounds: Mapping[str, Sequence[float]] | None = None,
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
    table = pd.DataFrame([_measured(row, bounds, cluster) for row in rows])
    if table.empty:
        raise EmotraceError("dose_table: there are no rows.")
    emotions = list(dict.fromkeys(table["emotion"]))
    out = []
    for dose in sorted(set(table["dose"])):
        at = table.loc[table["dose"] == dose]
        for name in (ALL, *emotions):
            part = at if name == ALL else at.loc[at["emotion"] == name]
            if len(part):
                out.append({"dose": dose, "emotion": name, **_line(part, n_bootstrap, seed)})
    found = pd.DataFrame(out)
    at_zero = found.loc[found["dose"] == 0]
    base = dict(zip(at_zero["emotion"], at_zero["off_target"], strict=True))
    found["drift"] = [off - base.get(e, np.nan) for e, off in zip(found["emotion"], found["off_target"], strict=True)]
    return found


def emotion_matrix(rows: Iterable[Row], dose: float | None = None) -> pd.DataFrame:
    """Share of the replies aimed at each emotion (rows) that a judge reads as each answer (columns); rows sum to 1.

    Args:
        rows: judged replies with ``emotion`` (and ``dose``); unjudged ones are left out.
        dose: only those of this dose.

    Raises:
        EmotraceError: if nothing is judged.
    """
    pairs = [
        (row["emotion"], row["verdict"]["predicted"])
        for row in rows
        if (row.get("verdict") or {}).get("predicted") is not None and (dose is None or row.get("dose") == dose)
    ]
    if not pairs:
        raise EmotraceError(f"emotion_matrix(dose={dose}): no judged reply.")
    answers = answers_among(*zip(*pairs, strict=True))
    counts: dict[str, dict[str, int]] = {}
    for asked, predicted in pairs:
        counts.setdefault(asked, dict.fromkeys(answers, 0))[predicted] += 1
    table = pd.DataFrame.from_dict(counts, orient="index")
    return table.div(table.sum(axis=1), axis=0).rename_axis(index="emotion", columns="read_as")


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


def bisect(
    measure: Callable[[float], float],
    target: float,
    *,
    start: float = 1.0,
    tolerance: float = 0.02,
    most: float = 1e6,
    max_steps: int = 40,
) -> dict[str, Any]:
    """The strength at which a cost that grows from 0 reaches a target: doubled until it is exceeded, then halved between.

    Args:
        measure: strength > 0 → cost; measure(0) = 0 is not asked.
        target: cost wanted, above 0.
        start: first strength tried.
        tolerance: relative; done where |cost / target − 1| is at most that.
        most: largest strength tried.
        max_steps: measurements.

    Returns:
        ``{strength, cost, target, reached, steps: [[strength, cost], …]}``; ``reached`` is False where the tolerance was not met
        (the cost may jump), and the nearest measurement stands.

    Raises:
        EmotraceError: for a target or start that is not positive, a cost that is not finite, or one that stays below the
            target up to ``most``.
    """
    if not (target > 0 and start > 0 and 0 < tolerance < 1):
        raise EmotraceError(f"bisect(target={target}, start={start}, tolerance={tolerance}): all above 0.")
    steps: list[list[float]] = []

    def cost_of(strength: float) -> float:
        cost = float(measure(strength))
        if not np.isfinite(cost):
            raise EmotraceError(f"the cost at strength {strength:g} is {cost}.")
        steps.append([strength, cost])
        return cost

    low, high = 0.0, float(start)
    while len(steps) < max_steps:
        cost = cost_of(high)
        if abs(cost / target - 1) <= tolerance or cost > target:
            break
        low, high = high, 2 * high
        if high > most:
            raise EmotraceError(f"the cost reaches {cost:.3g} at strength {low:g}, not the target {target:g}.")
    while len(steps) < max_steps and abs(steps[-1][1] / target - 1) > tolerance and high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if cost_of(middle) > target else (middle, high)
    strength, cost = min(steps, key=lambda step: abs(step[1] / target - 1))
    return {
        "strength": strength,
        "cost": cost,
        "target": target,
        "reached": abs(cost / target - 1) <= tolerance,
        "steps": steps,
    }


def _measured(row: Row, bounds: Mapping[str, Sequence[float]] | None, cluster: str) -> dict[str, Any]:
    for name in ("emotion", "dose", "gen_text", cluster):
        if row.get(name) is None:
            raise EmotraceError(f"row {row.get('key')!r} has no {name!r}; it has {', '.join(map(str, row))}.")
    verdict, meta = row.get("verdict") or {}, row.get("meta") or {}
    predicted, match = verdict.get("predicted"), verdict.get("match")
    perplexity = meta.get("perplexity")
    return {
        "dose": float(row["dose"]),
        "emotion": row["emotion"],
        "cluster": str(row[cluster]),
        "match": np.nan if match is None else float(match),
        "other": np.nan if match is None else float(not match and predicted != NEUTRAL),
        "neutral": np.nan if match is None else float(not match and predicted == NEUTRAL),
        "fluent": np.nan if bounds is None else float(is_fluent(row, bounds)),
        "perplexity": np.nan if perplexity is None else float(perplexity),
        "repetition": float(meta.get("repetition", np.nan)),
        "length": float(meta.get("length", np.nan)),
        "distinct_1": distinct(row["gen_text"]),
        "kl": float(meta.get("kl", np.nan)),
    }


def _line(part: pd.DataFrame, n_bootstrap: int, seed: int) -> dict[str, Any]:
    judged = part.loc[part["match"].notna()]
    lo, hi = (np.nan, np.nan)
    if len(judged):
        lo, hi = bootstrap_ci(np.array(judged["match"]), np.array(judged["cluster"]), n_bootstrap, seed, shares=True)
    return {
        "n": len(judged),
        "n_unjudged": len(part) - len(judged),
        "on_target": judged["match"].mean(),
        "on_target_lo": lo,
        "on_target_hi": hi,
        "off_target": judged["other"].mean(),
        "neutral": judged["neutral"].mean(),
        "on_target_fluent": (judged["match"] * judged["fluent"]).mean(),
        "fluent": part["fluent"].mean(),
        "perplexity": part["perplexity"].median(),
        "repetition": part["repetition"].mean(),
        "length": part["length"].mean(),
        "distinct_1": part["distinct_1"].mean(),
        "kl": part["kl"].mean(),
    }
