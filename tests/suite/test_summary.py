"""Summary: means, cluster intervals and paired differences against a slow literal bootstrap and planted differences."""

import math

import numpy as np
import pytest

from emotrace.labels import EmotraceError
from emotrace.stats import cluster_weights
from emotrace.suite import summarise, value_of


def rows(method, shift=0.0, draws=1, n=12, noise=0.0):
    rng = np.random.default_rng(5)
    return [
        {"key": f"k{i}", "prompt": f"p{i // 3}", "method": method, "draw": d, "emotion": "anger" if i % 2 else "fear",
         "measures": {"score": float(i) + shift + noise * rng.standard_normal() + d, "gone": math.nan}}
        for d in range(draws)
        for i in range(n)
    ]  # fmt: skip


def test_means_intervals_and_missing_values():
    found = summarise(rows("none"), n=200, seed=1)
    line = value_of(found, "none", "score")
    assert (line["value"], line["n"], line["n_clusters"], line["n_missing"]) == (5.5, 12, 4, 0)
    means = []
    for w in cluster_weights(4, 200, 1):  # whole clusters drawn, one draw at a time
        drawn = [3 * c + j for c in range(4) for _ in range(int(w[c])) for j in range(3)]
        means.append(np.mean(drawn))
    np.testing.assert_allclose([line["lo"], line["hi"]], np.quantile(means, [0.025, 0.975]))
    gone = value_of(found, "none", "gone")
    assert gone["n"] == 0
    assert gone["n_missing"] == 12
    assert math.isnan(gone["value"])
    assert value_of(found, "none", "score", "fear")["value"] == np.mean(range(0, 12, 2))


def test_only_measures_of_zero_and_one_get_the_bounds_of_a_share():
    same = [{**r, "measures": {"on_target": 1.0, "exclamations": 0.0}} for r in rows("none")]
    found = summarise(same)
    assert 0 < value_of(found, "none", "on_target")["lo"] < 1
    assert value_of(found, "none", "exclamations")["hi"] == 0


def test_a_planted_difference_is_found_with_its_sign_and_draws_are_averaged():
    found = summarise([*rows("none"), *rows("steer", 2.0), *rows("random", 0.0, draws=2)])
    line = value_of(found, "steer", "score")
    assert line["difference"] == 2
    assert (line["difference_lo"], line["difference_hi"]) == (2, 2)
    assert line["p"] == 0.125  # 2 of the 2⁴ sign patterns are as extreme
    assert line["q"] >= line["p"]
    control = value_of(found, "random", "score")
    assert control["difference"] == 0.5
    assert (control["lowest_draw"], control["highest_draw"]) == (5.5, 6.5)
    assert control["n_paired"] == 12
    assert math.isnan(value_of(found, "none", "score")["difference"])


def test_only_keys_of_both_are_paired():
    found = summarise([*rows("none", n=6), *rows("steer", 1.0)])
    assert value_of(found, "steer", "score")["n_paired"] == 6
    none = summarise([*rows("none", n=3), *[{**r, "key": "x" + r["key"]} for r in rows("steer")]])
    assert value_of(none, "steer", "score")["n_paired"] == 0


def test_what_cannot_be_summarised_is_refused():
    with pytest.raises(EmotraceError, match="no rows"):
        summarise([])
    with pytest.raises(EmotraceError, match="run measure first"):
        summarise([{"key": "a", "method": "none"}])
    with pytest.raises(EmotraceError, match="two rows"):
        summarise([*rows("none"), rows("none")[0]])
    with pytest.raises(EmotraceError, match="no 'skeleton'"):
        summarise(rows("none"), cluster="skeleton")
    with pytest.raises(EmotraceError, match="Did you mean 'score'"):
        value_of(summarise(rows("none")), "none", "scor")
