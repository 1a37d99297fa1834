"""Frontiers: what a method reaches at every dose, against what it costs, instead of at one dose that was chosen. Pure.

A *point* is one setting of a method with its replies. Against KL the score is the share of replies read as asked and fluent;
against fluency, the share read as asked. Every curve begins at the un-edited model: KL 0, and what it scores by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypedDict

import numpy as np

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.replies.paired import Test
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import table
from emotrace.signatures import typed
from emotrace.stats.intervals import cluster_weights
from emotrace.stats.permutation import sign_flip

BASE: Final = "none"
"""The method of the un-edited model, where every curve begins."""
AXES: Final = ("kl", "fluency")


class Point(NamedTuple):
    """One setting of a method.

    Attributes:
        method: name.
        size: dose, or λ.
        rows: judged replies, with ``meta.fluent``.
        kl: key → nats a token, from the un-edited model.
        chosen: whether this is the setting that is used.
    """

    method: str
    size: float
    rows: Sequence[Row]
    kl: Mapping[str, float]
    chosen: bool = False


class Area(TypedDict):
    """Area under a frontier, 0..1, and its 95 % interval (bootstrap over skeletons)."""

    value: float
    ci95: list[float]


class FrontierPoint(TypedDict):
    """What a setting of a method reaches, and what it costs; ``ci95`` is of ``accuracy_fluent``."""

    method: str
    size: float
    chosen: bool
    n: int
    accuracy: float
    accuracy_fluent: float
    fluency: float
    kl: float
    ci95: list[float]


class AtEqualKL(Test):
    """Two methods at one KL: a − b with interval, and the test of it."""

    a: str
    b: str
    kl: float


class Frontiers(TypedDict):
    """What `frontiers` returns: its points, the areas by method and axis, their common limit K, and pairs at equal KL."""

    points: list[FrontierPoint]
    area: dict[str, dict[str, Area]]
    kl_limit: float
    pairs: list[AtEqualKL]
    n_skeletons: int


@dataclass(frozen=True)
class PointSums:
    """Sums over the replies of each skeleton: ``[skeleton, point]``."""

    hits: np.ndarray
    fluent_hits: np.ndarray
    fluent: np.ndarray
    judged: np.ndarray
    kl: np.ndarray
    measured: np.ndarray

    def means(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """``[draw, point]`` of each mean, skeletons being weighted ``[draw, skeleton]``."""
        n, of = weights @ self.judged, weights @ self.measured
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "accuracy": weights @ self.hits / n,
                "accuracy_fluent": weights @ self.fluent_hits / n,
                "fluency": weights @ self.fluent / n,
                "kl": weights @ self.kl / of,
            }


@typed
def frontiers(
    points: Iterable[Point],
    base: Sequence[Row],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    cluster: str = "skeleton_id",
    permutations: int = 10_000,
    n: int = 2000,
    seed: int = 0,
) -> Frontiers:
    """Frontiers of methods, the area under each, and methods compared at equal KL.

    Against KL: A = 1/K ∫₀ᴷ max {score of the points whose KL is at most k} dk, with K the least of the methods' largest KL.
    Against fluency: A = ∫₀¹ max {accuracy of the points of which at least a share f is fluent} df, 0 where there is none. At
    equal KL: each skeleton's score is interpolated between the points of a method on both sides of k (with the un-edited model
    at 0), and the difference of two methods is tested by flipping signs over skeletons (`emotrace.stats.sign_flip`); k is the
    KL of the chosen point that costs less, or the largest that both reach.

    Args:
        points: settings of at least one method, all on the same prompts.
        base: judged replies of the un-edited model to them.
        pairs: (a, b) of methods to compare at equal KL; those that have no points, or no common range, are left out.
        cluster: label that is drawn and flipped as a whole.
        permutations: of the tests.
        n: bootstrap draws.
        seed: of both.

    Returns:
        `Frontiers`.

    Raises:
        EmotraceError: for no points, or a point without judged replies or KL.
    """
    arguments.resampling("frontiers", seed, permutations=permutations, n=n)
    points = [Point(BASE, 0.0, base, {str(row["key"]): 0.0 for row in base}), *points]
    if len(points) == 1:
        raise EmotraceError("frontiers: there are no points.")
    names = sorted({str(label_of(row, cluster)) for point in points for row in point.rows})
    sums = _sums(points, names, cluster)
    observed = {k: v[0] for k, v in sums.means(np.ones((1, len(names)))).items()}
    drawn = sums.means(cluster_weights(len(names), n, seed))
    of = {m: [i for i, p in enumerate(points) if p.method == m] for m in dict.fromkeys(p.method for p in points[1:])}
    limit = min(float(observed["kl"][at].max()) for at in of.values())
    area: dict[str, dict[str, Area]] = {}
    for method, at in of.items():
        line = [0, *at]
        value = _areas({k: v[None, line] for k, v in observed.items()}, limit)
        many = _areas({k: v[:, line] for k, v in drawn.items()}, limit)
        area[method] = {
            axis: {"value": float(value[axis][0]), "ci95": np.nanquantile(many[axis], [0.025, 0.975]).tolist()}
            for axis in AXES
        }
    lo, hi = np.nanquantile(drawn["accuracy_fluent"], [0.025, 0.975], axis=0)
    reached: list[FrontierPoint] = [
        {
            "method": p.method, "size": p.size, "chosen": p.chosen, "n": int(sums.judged[:, i].sum()),
            "accuracy": float(observed["accuracy"][i]), "accuracy_fluent": float(observed["accuracy_fluent"][i]),
            "fluency": float(observed["fluency"][i]), "kl": float(observed["kl"][i]), "ci95": [float(lo[i]), float(hi[i])],
        }
        for i, p in enumerate(points)
    ]  # fmt: skip
    weights = cluster_weights(len(names), n, seed)
    compared = [
        test
        for a, b in pairs
        if a in of and b in of
        for test in [_at_equal_kl(points, sums, observed["kl"], {a: of[a], b: of[b]}, weights, permutations, seed)]
    ]
    return {"points": reached, "area": area, "kl_limit": limit, "pairs": compared, "n_skeletons": len(names)}


def _sums(points: Sequence[Point], names: Sequence[str], cluster: str) -> PointSums:
    at = {name: i for i, name in enumerate(names)}
    found = np.zeros((6, len(names), len(points)))
    for number, point in enumerate(points):
        lines = table(point.rows, ("key", "match", "fluent_match"), cluster=cluster)
        fluent = np.array([bool((row.get("meta") or {}).get("fluent")) for row in point.rows])
        code = np.array([at[c] for c in lines["cluster"]], dtype=int)
        match, both = (np.asarray(lines[c], dtype=np.float64) for c in ("match", "fluent_match"))
        kl = np.array([point.kl.get(str(key), np.nan) for key in lines["key"]])
        judged, measured = np.isfinite(match), np.isfinite(kl)
        if not (judged.any() and measured.any()):
            raise EmotraceError(
                f"frontiers: {point.method} at {point.size:g} has {int(judged.sum())} judged replies and the KL of "
                f"{int(measured.sum())} prompts; both are needed."
            )
        for i, (values, which) in enumerate(
            ((match, judged), (both, judged), (fluent, judged), (judged, judged), (kl, measured), (measured, measured))
        ):
            np.add.at(found[i, :, number], code[which], values[which])
    return PointSums(*found)


def _areas(means: Mapping[str, np.ndarray], limit: float) -> dict[str, np.ndarray]:
    """``[draw]`` area of each axis, of means ``[draw, point]``, the base first."""
    by_kl = _under(means["kl"], means["accuracy_fluent"], limit)
    by_fluency = _under(1 - means["fluency"], means["accuracy"], 1.0)  # at least f fluent: at most 1 − f lost
    return {"kl": by_kl, "fluency": by_fluency}


def _under(cost: np.ndarray, score: np.ndarray, limit: float) -> np.ndarray:
    """1/limit ∫₀ max {score of what costs at most c} dc up to the limit, 0 below the cheapest; rows are draws."""
    if not limit > 0:
        return np.full(len(cost), np.nan)
    order = np.argsort(cost, axis=1, kind="stable")
    rising = np.take_along_axis(cost, order, axis=1).clip(0, limit)
    best = np.maximum.accumulate(np.nan_to_num(np.take_along_axis(score, order, axis=1)), axis=1)
    ends = np.concatenate([rising[:, 1:], np.full((len(cost), 1), limit)], axis=1)
    return (best * (ends - rising)).sum(1) / limit


def _at_equal_kl(
    points: Sequence[Point], sums: PointSums, kl: np.ndarray, of: Mapping[str, list[int]], weights: np.ndarray, permutations: int,
    seed: int,
) -> AtEqualKL:  # fmt: skip
    chosen = [float(kl[i]) for at in of.values() for i in at if points[i].chosen]
    reach = min(float(kl[at].max()) for at in of.values())
    k = min([*chosen, reach])
    lines = [_interpolated(sums, kl, [0, *at], k) for at in of.values()]
    d = lines[0] - lines[1]
    n = sums.judged[:, 0]
    drawn = (weights @ d) / (weights @ n)
    p, exact = sign_flip(d, permutations=permutations, seed=seed)
    a, b = of
    return {
        "a": a, "b": b, "kl": k, "difference": float(d.sum() / n.sum()),
        "ci95": np.quantile(drawn, [0.025, 0.975]).tolist(), "p": p, "p_floor": 0.0 if exact else 1 / (1 + permutations),
        "n": int(n.sum()), "n_skeletons": len(n),
    }  # fmt: skip


def _interpolated(sums: PointSums, kl: np.ndarray, line: Sequence[int], k: float) -> np.ndarray:
    """``[skeleton]`` sums of fluent matches of one method at a KL, per as many replies as the base has."""
    line = sorted(line, key=lambda i: kl[i])
    above = next((j for j, i in enumerate(line) if kl[i] >= k), len(line) - 1)
    low, high = line[max(above - 1, 0)], line[above]
    span = kl[high] - kl[low]
    share = float((k - kl[low]) / span) if span > 0 else 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.nan_to_num(sums.fluent_hits / sums.judged)
    return ((1 - share) * rate[:, low] + share * rate[:, high]) * sums.judged[:, 0]
