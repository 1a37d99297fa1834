"""Evaluation: from judged rows to the numbers of a report, and the controls that they are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from emotrace import arguments, stats
from emotrace.datasets import Prompts, spread
from emotrace.datasets.overlap import normalised
from emotrace.labels import METHODS, EmotraceError
from emotrace.stats.accuracy import match_of

Row = Mapping[str, Any]


def split(prompts: Prompts, share: float, seed: int = 0) -> tuple[set[str], set[str]]:
    """Skeletons in two disjoint parts, the second holding about ``share`` of them, spread evenly over themes.

    Skeletons that tell the same scenario under two ids stay in one part.

    Raises:
        EmotraceError: if there are fewer than two skeletons, or prompts without one.
    """
    arguments.share("split(share)", share)
    if any("skeleton_id" not in p.labels for p in prompts):
        raise EmotraceError("split needs prompts with the label 'skeleton_id'.")
    first: dict[str, str] = {}  # skeletons that tell the same scenario go together, under the first of them
    group = {}
    for p in prompts:
        name = str(p.labels["skeleton_id"])
        scenario = normalised(str(p.labels.get("scenario") or name))
        group[name] = group.get(name) or first.setdefault(scenario, name)
    themes = {str(p.labels["skeleton_id"]): str(p.labels.get("theme", "")) for p in prompts}
    themes = {name: theme for name, theme in themes.items() if group[name] == name}
    if len(themes) < 2:
        raise EmotraceError(f"{len(themes)} skeleton cannot be split into a part to fit and a part to choose doses on.")
    names = np.random.default_rng(seed).permutation(sorted(themes)).tolist()
    held = spread({name: themes[name] for name in names}, min(len(names) - 1, max(1, round(share * len(names)))))
    other = {name for name in group if group[name] in held}
    return set(group) - other, other


def layer_windows(n_layers: int) -> list[list[int]]:
    """Contiguous layer ranges to try: all, the first five, four, three, two and one sixths, middles, last half and thirds."""
    spans = [
        (0.0, 1.0),
        (0.0, 5 / 6),
        (0.0, 2 / 3),
        (1 / 6, 5 / 6),
        (0.0, 0.5),
        (0.25, 0.75),
        (0.5, 1.0),
        (0.0, 1 / 3),
        (1 / 3, 2 / 3),
        (2 / 3, 1.0),
        (0.0, 1 / 6),
    ]
    found: list[list[int]] = []
    for a, b in spans:
        start = min(n_layers - 1, round(a * n_layers))
        window = list(range(start, max(start + 1, round(b * n_layers))))
        if window not in found:
            found.append(window)
    return found


COLLAPSED = 0.5
"""A dose that keeps less than this share of the best score of its line, as the one before it did, ends the line."""


def search(
    lines: Iterable[Sequence[Any]], measure: Callable[[Any, int], Row], sizes: Sequence[int], keep: Sequence[int]
) -> tuple[list[Row], Row]:
    """Successive halving: all settings on a small sample, the best of them on a larger one, the best of these on the largest.

    Args:
        lines: settings that differ in dose only, by growing dose. A line is left once two doses in a row have collapsed.
        measure: setting, size of the sample → its ``accuracy_fluent`` and ``accuracy``.
        sizes: of the samples, growing; one that is no larger than the one before is left out.
        keep: how many settings go on to each further sample.

    Returns:
        Of every setting tried the point on its largest sample, and the best point of the last sample. Among equals that of
        more matches, then the one met first: scores on samples of different size are not compared.

    Raises:
        EmotraceError: without a setting, or with sizes and numbers that do not fit.
    """
    if len(keep) != len(sizes) - 1 or min(*sizes, *keep, 1) < 1:
        raise EmotraceError(
            f"search(sizes={list(sizes)}, keep={list(keep)}): one number fewer than sizes, all at least 1."
        )
    tried: list[Any] = []
    points: list[Row] = []
    for line in lines:
        best, low = 0.0, 0
        for setting in line:
            point = measure(setting, sizes[0])
            tried.append(setting)
            points.append(point)
            score = point["accuracy_fluent"] or 0.0
            best = max(best, score)
            low = low + 1 if score < COLLAPSED * best else 0
            if low == 2:
                break
    if not tried:
        raise EmotraceError("search: there is no setting to try.")
    alive = list(range(len(tried)))
    for before, size, n in zip(sizes, sizes[1:], keep, strict=False):
        if size > before:
            alive = sorted(alive, key=lambda i: _merit(points[i]))[:n]
            for i in alive:
                points[i] = measure(tried[i], size)
    return points, points[min(alive, key=lambda i: _merit(points[i]))]


def _merit(point: Row) -> tuple[float, float]:
    return -(point["accuracy_fluent"] or 0.0), -(point["accuracy"] or 0.0)


def random_like(directions: xr.DataArray, seed: int) -> xr.DataArray:
    """Random unit directions of the same shape and labels: a control of equal norm."""
    noise = np.random.default_rng(seed).standard_normal(directions.shape)
    noise /= np.linalg.norm(noise, axis=directions.get_axis_num("dim"), keepdims=True)
    return directions.copy(data=noise.astype(np.float32)).assign_attrs(method="random", seed=seed)


def deranged(directions: xr.DataArray, seed: int, label: str = "emotion") -> xr.DataArray:
    """The same directions under wrong labels: a random permutation without a fixed point."""
    n = directions.sizes[label]
    if n < 2:
        raise EmotraceError(f"labels cannot be deranged: there is only one {label}.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    while (order == np.arange(n)).any():
        order = rng.permutation(n)
    moved = directions.isel({label: order}).assign_coords({label: directions[label].values})
    return moved.assign_attrs(method="deranged", seed=seed)


def mark_fluent(rows: Iterable[dict[str, Any]], bounds: Mapping[str, Sequence[float]]) -> None:
    """Write ``meta.fluent`` and ``meta.repetition`` into rows that have ``meta.perplexity``."""
    for row in rows:
        row["meta"]["repetition"] = stats.repetition(row["token_ids"])
        row["meta"]["length"] = len(row["token_ids"])
        row["meta"]["fluent"] = stats.is_fluent(row, bounds)


LOWEST = ("random_ablate",)
"""Controls that are the harder to tell from the real thing the *lower* they score: their lowest draw is shown."""


def accuracy(rows: Sequence[Row], *, verdict: str = "verdict", fluent: bool = False) -> dict[str, Any]:
    """``overall``, ``by_emotion`` and ``by_valence`` of one method; over several draws the maximum, with all draws beside it.

    Of the controls in `LOWEST` it is the minimum.

    Args:
        rows: of one method, one or more draws.
        verdict: which verdict counts, ``verdict`` (blind) or ``verdict_target``.
        fluent: a reply counts only if it is fluent too (``accuracy_fluent``).
    """
    if fluent:
        rows = [_and_fluent(row, verdict) for row in rows]
    draws = sorted({row.get("draw", 0) for row in rows}) or [0]
    tables = [stats.accuracy_table([r for r in rows if r.get("draw", 0) == d], verdict=verdict) for d in draws]
    if len(tables) == 1:
        return tables[0]
    sign = -1 if rows[0]["method"] in LOWEST else 1

    def rank(leaf: Mapping[str, Any]) -> float:
        return -math.inf if leaf["value"] is None else sign * leaf["value"]

    best = max(tables, key=lambda t: rank(t["overall"]))

    def joined(pick: Any) -> dict[str, Any]:
        values = [pick(t)["value"] for t in tables]
        top = max(tables, key=lambda t: rank(pick(t)))
        known = [v for v in values if v is not None]
        return {**pick(top), "mean": float(np.mean(known)) if known else None, "draws": values}

    return {
        "overall": joined(lambda t: t["overall"]),
        **{
            part: {name: joined(lambda t, p=part, n=name: t[p][n]) for name in best[part]}
            for part in ("by_emotion", "by_valence")
        },
    }


def summary(rows: Sequence[Row], reference: str = "none") -> dict[str, Any]:
    """The tables of a report: accuracy, fluent and target-aware accuracy, lift over ``reference``, confusion, fluency.

    Args:
        rows: judged rows of all methods, with ``meta.fluent``.
        reference: method that lifts are measured against.
    """
    by_method = {m: [r for r in rows if r["method"] == m] for m in METHODS}
    by_method = {m: found for m, found in by_method.items() if found}
    out: dict[str, Any] = {
        "accuracy": {m: accuracy(found) for m, found in by_method.items()},
        "accuracy_fluent": {m: accuracy(found, fluent=True) for m, found in by_method.items()},
    }
    if any(r.get("verdict_target") for r in rows):
        out["accuracy_target"] = {m: accuracy(found, verdict="verdict_target") for m, found in by_method.items()}
    out["confusion"] = {m: stats.confusion(found).to_dict("index") for m, found in by_method.items()}
    out["fluency"] = {"by_method": {m: _fluency(found) for m, found in by_method.items()}}
    base = by_method.get(reference)
    if base:
        out["lift"] = {m: lifts(found, base) for m, found in by_method.items() if m in ("prompt", "steer", "circuit")}
    return out


def lifts(rows: Sequence[Row], base: Sequence[Row]) -> dict[str, Any]:
    """Difference of accuracies, paired by key, overall and by emotion; left out where no key is judged in both."""
    out = {}
    for name in ("overall", *dict.fromkeys(r["emotion"] for r in rows)):
        a, b = ([r for r in found if name in ("overall", r["emotion"])] for found in (rows, base))
        judged = [{r["key"] for r in found if match_of(r) is not None} for found in (a, b)]
        if judged[0] & judged[1]:
            out[name] = stats.paired_test(a, b)
    return out


def published_stats(rows: Sequence[Row], dataset: str) -> dict[str, Any]:
    """``accuracy_stats.json`` in the schema of EmotionCircuits: unjudged replies count as rejected there."""

    def part(found: Sequence[Row], key: str) -> dict[str, Any]:
        accepted = sum(r["verdict"]["match"] == 1 for r in found)
        share = round(100 * accepted / len(found), 2) if found else 0.0
        return {key: len(found), "accepted": accepted, "rejected": len(found) - accepted, "accuracy": share}

    def group(name: str) -> dict[str, Any]:
        return {v: part([r for r in rows if r[name] == v], "total") for v in dict.fromkeys(r[name] for r in rows)}

    overall = part(rows, "total_samples")
    return {"dataset": dataset, "overall": overall, "by_emotion": group("emotion"), "by_valence": group("valence")}


def _and_fluent(row: Row, verdict: str) -> dict[str, Any]:
    judged = row.get(verdict) or {"match": None}
    match = judged["match"]
    meta = row.get("meta") or {}
    if match and "fluent" not in meta:
        raise EmotraceError(f"row {row.get('key')!r} has no meta.fluent: call mark_fluent first.")
    both = match if match is None else int(bool(match) and meta["fluent"])
    return {**row, verdict: {**judged, "match": both}}


def _fluency(rows: Sequence[Row]) -> dict[str, Any]:
    known = [r["meta"]["perplexity"] for r in rows if r["meta"].get("perplexity") is not None]
    return {
        "perplexity": float(np.median(known)) if known else None,
        "length": float(np.mean([len(r["token_ids"]) for r in rows])),
        "repetition": float(np.mean([r["meta"]["repetition"] for r in rows])),
        "share_fluent": float(np.mean([bool(r["meta"]["fluent"]) for r in rows])),
        "n": len(rows),
    }
