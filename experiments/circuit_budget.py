"""What ``--budget`` leaves of curves and influence: as many skeletons, draws and doses as a timed sample says will fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from emotrace import attribution
from emotrace.datasets import Prompts
from emotrace.disk import write_json
from emotrace.files import read_json
from emotrace.sites import LanguageModel


class Cut(NamedTuple):
    """How much of something is measured.

    Attributes:
        skeletons: training skeletons.
        more: draws of random sets, or finite doses.
        seconds: that this is estimated to take; NaN where nothing limits it.
    """

    skeletons: int
    more: Any
    seconds: float


def timed(path: Path, sample: Callable[[], Any], n: int) -> float:
    """Seconds for each of the n things that a sample does; kept, so that a run that is continued is cut as before."""
    if not path.exists():
        begun = time.perf_counter()
        sample()
        write_json(path, {"seconds": (time.perf_counter() - begun) / max(1, n), "n": n})
    return float(read_json(path)["seconds"])


def fitting(allowed: float, skeletons: int, more: Sequence[Any], cost: Callable[[int, Any], float]) -> Cut:
    """The largest that fits into so many seconds; the smallest there is where none does.

    Args:
        allowed: seconds.
        skeletons: at most; halved where they do not fit.
        more: what else may be cut, from the most to the least; less of it is tried before a further halving.
        cost: skeletons and one of ``more`` → seconds.
    """
    cut = Cut(skeletons, more[0], 0.0)
    while True:
        for some in more:
            cut = Cut(skeletons, some, cost(skeletons, some))
            if cut.seconds <= allowed:
                return cut
        if skeletons == 1:
            return cut
        skeletons //= 2


def influence(
    allowed: float | None, folder: Path, lm: LanguageModel, plain: Prompts, dirs: xr.DataArray, most: int, options: Any
) -> Cut:
    """How many skeletons, and whether the finite doses too, influence takes; timed on one prompt.

    Args:
        allowed: seconds; None for any.
        folder: of the timings.
        lm: the model.
        plain: prompts that ask for nothing.
        dirs: directions.
        most: skeletons.
        options: of `attribution.sublayer_influence`.
    """
    doses = tuple(options.get("doses", ()))
    if allowed is None:
        return Cut(most, doses, float("nan"))

    def planned(prompts: Prompts, some: Sequence[float]) -> Any:
        return attribution.sublayer_influence.plan(lm, prompts, dirs, **{**options, "doses": some})

    def run(some: Sequence[float]) -> Any:
        return attribution.sublayer_influence(lm, plain[:1], dirs, progress=False, **{**options, "doses": some})

    alone = timed(folder / "timing_influence.json", lambda: run(()), 1)
    few = doses[:1]
    each = timed(folder / "timing_doses.json", lambda: run(few), planned(plain[:1], few).forwards) if doses else 0.0

    def cost(n: int, some: Sequence[float]) -> float:
        dry = planned(plain.limit(n), some)
        return dry.prompts * alone + dry.forwards * each

    return fitting(allowed, most, [doses, ()] if doses else [()], cost)
