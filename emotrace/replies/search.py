"""Search: settings chosen by what their replies score: dose by dose, on samples that grow, at equal cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict

import numpy as np
import pandas as pd

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.replies.doses import ALL
from emotrace.signatures import typed

Point = Mapping[str, Any]
"""A setting with its ``accuracy_fluent`` and ``accuracy``."""
COLLAPSED: Final = 0.5
"""A dose that keeps less than this share of the best score has collapsed."""
BEYOND: Final = 3
"""A search that chose an end of a line goes at most so many steps beyond it."""


def collapsed(score: float, best: float) -> bool:
    """Whether a score is less than the share `COLLAPSED` of the best."""
    return score < COLLAPSED * best


@typed
def layer_windows(n_layers: int) -> list[list[int]]:
    """Contiguous layer ranges to try: all, the first five, four, three, two and one sixths, middles, last half and thirds."""
    arguments.whole("layer_windows(n_layers)", n_layers, 1)
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


@typed
def search(
    lines: Iterable[Sequence[Any]],
    measure: Callable[[Any, int], Point],
    sizes: Sequence[int],
    keep: Sequence[int],
    beyond: Callable[[Any, bool], Any] | None = None,
) -> tuple[list[Point], Point]:
    """Successive halving: all settings on a small sample, the best of them on a larger one, the best of these on the largest.

    A best setting at the end of a line says where the line should have gone on, not where the best dose is: with ``beyond`` the
    search does, on the largest sample, as long as each step is better than the one before, and `BEYOND` steps at most.

    Args:
        lines: settings that differ in dose only, by growing dose. A line is left once two doses in a row have collapsed.
        measure: setting, size of the sample → its ``accuracy_fluent`` and ``accuracy``.
        sizes: of the samples, growing; one that is no larger than the one before is left out.
        keep: how many settings go on to each further sample.
        beyond: an end of a line of several settings, and whether a larger dose is wanted → the next setting outside the line.

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
    ends: dict[int, bool] = {}  # number of a setting → whether it has the largest dose of its line, not the smallest
    points: list[Point] = []
    for line in lines:
        best, low = 0.0, 0
        for number, setting in enumerate(line):
            if number in (0, len(line) - 1) and len(line) > 1:
                ends[len(tried)] = number > 0
            point = measure(setting, sizes[0])
            tried.append(setting)
            points.append(point)
            score = point["accuracy_fluent"] or 0.0
            best = max(best, score)
            low = low + 1 if collapsed(score, best) else 0
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
    best = min(alive, key=lambda i: _merit(points[i]))
    if beyond is None or best not in ends:
        return points, points[best]
    found, setting = points[best], tried[best]
    for _ in range(BEYOND):
        setting = beyond(setting, ends[best])
        points.append(measure(setting, sizes[-1]))
        if _merit(points[-1]) >= _merit(found):
            break
        found = points[-1]
    return points, found


def of_all(doses: pd.DataFrame) -> pd.DataFrame:
    """The lines of a dose table that are of all emotions together, doses above 0.

    Raises:
        EmotraceError: for a table without the columns of `dose_table`.
    """
    for name in ("emotion", "dose", "on_target_fluent"):
        if name not in doses:
            raise unknown("column of a dose table", name, doses.columns)
    return doses.loc[(doses["emotion"] == ALL) & (doses["dose"] > 0)]


@typed
def best_dose(doses: pd.DataFrame) -> float:
    """The dose with most fluent replies on target; the smallest among equals.

    Raises:
        EmotraceError: for a table of no dose above 0, or one that says nothing of fluency (`dose_table` without bounds).
    """
    lines = of_all(doses).sort_values("dose", kind="stable")
    shares = np.array(lines["on_target_fluent"], dtype=float)
    if not np.isfinite(shares).any():
        raise EmotraceError(
            f"best_dose: {len(lines)} doses above 0 of all emotions together, none with a share of fluent replies on target; "
            "dose_table(rows, bounds=…) says it."
        )
    return float(np.array(lines["dose"])[int(np.nanargmax(shares))])


class Collapse(TypedDict):
    """Where steering stops to help.

    Attributes:
        best: dose with most fluent replies on target.
        on_target_fluent: their share.
        at: smallest dose above it that has collapsed; None for none.
        there: that share at it.
    """

    best: float
    on_target_fluent: float
    at: float | None
    there: float | None


class Bisection(TypedDict):
    """What `bisect` found.

    Attributes:
        strength: nearest to the target.
        cost: there.
        target: wanted.
        reached: whether it is within the tolerance (the cost may jump).
        steps: every [strength, cost] measured.
    """

    strength: float
    cost: float
    target: float
    reached: bool
    steps: list[list[float]]


@typed
def collapse(doses: pd.DataFrame) -> Collapse:
    """The best dose, and the smallest above it that has `collapsed`."""
    best, lines = best_dose(doses), of_all(doses)
    fluent = dict(zip(lines["dose"].tolist(), lines["on_target_fluent"].tolist(), strict=True))
    later = sorted(dose for dose, value in fluent.items() if dose > best and collapsed(value, fluent[best]))
    at = later[0] if later else None
    return {"best": best, "on_target_fluent": fluent[best], "at": at, "there": None if at is None else fluent[at]}


@typed
def bisect(
    measure: Callable[[float], float],
    target: float,
    *,
    start: float = 1.0,
    tolerance: float = 0.02,
    most: float = 1e6,
    max_steps: int = 40,
) -> Bisection:
    """The strength at which a cost that grows from 0 reaches a target: doubled until it is exceeded, then halved between.

    Args:
        measure: strength > 0 → cost; measure(0) = 0 is not asked.
        target: cost wanted, above 0.
        start: first strength tried.
        tolerance: relative; done where |cost / target − 1| is at most that.
        most: largest strength tried.
        max_steps: measurements.

    Returns:
        A `Bisection`: the nearest measurement, where the tolerance was not met.

    Raises:
        EmotraceError: for a target or start that is not positive, a cost that is not finite, or one that stays below the
            target up to ``most``.
    """
    if not (target > 0 and start > 0 and 0 < tolerance < 1):
        raise EmotraceError(f"bisect(target={target}, start={start}, tolerance={tolerance}): all above 0.")
    arguments.whole("bisect(max_steps)", max_steps, 1)
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


def _merit(point: Point) -> tuple[float, float]:
    return -(point["accuracy_fluent"] or 0.0), -(point["accuracy"] or 0.0)
