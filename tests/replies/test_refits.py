"""Intervals that include the fit: by hand, and how often they hold the truth that both draws come from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from emotrace import replies, stats
from emotrace.labels import EmotraceError


def rows(rates, seed=0, n=4, method="steer"):
    """Judged replies, n a skeleton, hit at each skeleton's rate."""
    rng = np.random.default_rng(seed)
    return [
        {"key": f"s{s}_{i}", "skeleton_id": f"s{s}", "method": method, "verdict": {"match": int(rng.random() < rate)},
         "meta": {"fluent": bool(i)}}
        for s, rate in enumerate(rates) for i in range(n)
    ]  # fmt: skip


def test_by_hand():
    x, clusters, refits = np.array([1.0, 1, 0, 1, 0, 0]), list("aabbcc"), [0.2, 0.6, 0.7]
    of_clusters = 3 / 2 * ((2 - 1) ** 2 + 0 + (0 - 1) ** 2) / 36
    of_fits = np.var(refits, ddof=1)
    degrees = (of_clusters + of_fits) ** 2 / (of_clusters**2 / 2 + of_fits**2 / 2)
    half = reference.t.ppf(0.975, degrees) * (of_clusters + of_fits) ** 0.5
    assert stats.refit_ci(x, clusters, refits, least=-9, most=9) == pytest.approx((0.5 - half, 0.5 + half))
    assert stats.refit_ci(x, clusters, refits) == (0.0, 1.0)
    assert stats.refit_ci([1, 1, 1], list("abc"), [1, 1]) == pytest.approx(stats.wilson(3, 3))
    for wrong in ({"refits": [0.1]}, {"clusters": list("aaaaaa")}, {"refits": [0.1, np.nan]}):
        with pytest.raises(EmotraceError, match="refit_ci"):
            stats.refit_ci(**{"values": x, "clusters": clusters, "refits": refits} | wrong)


def test_it_holds_the_truth_where_fits_and_skeletons_differ_and_the_interval_without_fits_does_not():
    rng, held = np.random.default_rng(7), np.zeros(2)
    for _ in range(400):
        easy = rng.normal(0, 0.1, size=30).repeat(6)
        fit = rng.normal(0, 0.06, size=5)
        x = 0.5 + fit[0] + easy + rng.normal(0, 0.2, size=180)
        others = 0.5 + fit[1:] + easy.mean()
        clusters = np.arange(30).repeat(6)
        for i, (lo, hi) in enumerate((stats.refit_ci(x, clusters, others), stats.bootstrap_ci(x, clusters, n=200))):
            held[i] += lo <= 0.5 <= hi
    assert held[0] / 400 >= 0.92
    assert held[1] / 400 < 0.7


def test_the_table_has_shares_and_paired_differences_of_the_same_fits():
    used = {"steer": rows([0.7] * 8), "circuit": rows([0.9] * 8, 1, method="circuit"), "prompt": rows([1.0] * 8)}
    refits = {m: [rows([r] * 8, s, method=m) for s, r in enumerate((0.5, 0.7, 0.9), 3)] for m in ("steer", "circuit")}
    found = replies.refit_table(used, refits)
    assert set(found["accuracy"]) == {"steer", "circuit", "steer − prompt", "circuit − prompt", "circuit − steer"}
    mean = lambda some: np.mean([r["verdict"]["match"] for r in some])  # noqa: E731
    one, both = found["accuracy"]["steer"], found["accuracy"]["circuit − steer"]
    assert (one["value"], one["refits"]) == (mean(used["steer"]), [mean(r) for r in refits["steer"]])
    assert both["refits"] == pytest.approx(
        [mean(a) - mean(b) for a, b in zip(refits["circuit"], refits["steer"], strict=True)]
    )
    assert found["accuracy"]["steer − prompt"]["refits"] == pytest.approx([v - 1 for v in one["refits"]])
    fluent = [r for r in used["steer"] if r["meta"]["fluent"]]
    assert found["accuracy_fluent"]["steer"]["value"] == sum(r["verdict"]["match"] for r in fluent) / len(used["steer"])
    with pytest.raises(EmotraceError, match="3 refits of one arm and 1 of the other"):
        replies.refitted(used["steer"], refits["steer"], less=used["circuit"], less_refits=refits["circuit"][:1])
    with pytest.raises(EmotraceError, match="no key is judged"):
        replies.refitted(used["steer"], [[{**r, "key": "other"} for r in used["steer"]]] * 2)
