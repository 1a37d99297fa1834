"""The paired test equals scipy's and a literal enumeration, and doubts what it should."""

import itertools

import numpy as np
import pytest
import scipy.stats

from emotrace import stats
from emotrace.labels import EmotraceError
from emotrace.stats import paired


def rows(matches, method=None, cluster_of=lambda i: f"s{i}"):
    return [
        {"key": f"k{i}", "skeleton_id": cluster_of(i), "draw": 0, "verdict": None if m is None else {"match": m}}
        for i, m in enumerate(matches)
    ]


@pytest.mark.parametrize("n", [1, 5, 10])
def test_exact_p_equals_scipy_and_all_patterns(n):
    sums = np.random.default_rng(n).integers(-3, 5, n).astype(float)
    p, exact = stats.sign_flip(sums)
    signs = np.array(list(itertools.product([-1, 1], repeat=n)))
    assert exact
    assert p == pytest.approx((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean())
    if n > 1:
        theirs = scipy.stats.permutation_test(
            (sums, np.zeros(n)), lambda x, y: (x - y).sum(), permutation_type="samples", n_resamples=np.inf
        )
        assert p == pytest.approx(min(theirs.pvalue, 1.0))


def test_random_patterns_agree_with_exact_ones(monkeypatch):
    sums = np.random.default_rng(2).normal(0.6, 1, 14)
    exact = stats.sign_flip(sums)
    monkeypatch.setattr(paired, "EXACT", 5)
    p, is_exact = stats.sign_flip(sums, permutations=40_000, seed=3)
    assert (exact[1], is_exact) == (True, False)
    assert p == pytest.approx(exact[0], abs=0.005)
    assert stats.sign_flip(sums, seed=1) == stats.sign_flip(sums, seed=1)
    assert stats.sign_flip(sums, seed=1) != stats.sign_flip(sums, seed=2)
    assert stats.sign_flip(np.full(40, 1.0), permutations=999)[0] == pytest.approx(1 / 1000)


def test_clusters_without_a_difference_change_nothing():
    assert stats.sign_flip([1.0, 1.0, 1.0, -1.0]) == stats.sign_flip([1.0, 0.0, 1.0, 1.0, 0.0, -1.0])
    assert stats.sign_flip(np.concatenate([np.ones(8), np.zeros(500)])) == (2 / 2**8, True)
    assert stats.sign_flip([0.0, 0.0]) == (1.0, True)
    assert stats.sign_flip([0.1 + 0.2, -0.3]) == (1.0, True), "rounding is no difference"


def test_skeletons_are_flipped_as_a_whole():
    a, b = rows([1] * 12, cluster_of=lambda i: i // 4), rows([0] * 12, cluster_of=lambda i: i // 4)
    found = stats.paired_test(a, b)
    assert (found["p"], found["n"], found["n_clusters"], found["exact"]) == (2 / 2**3, 12, 3, True)
    assert stats.paired_test(a, b, "key")["p"] == pytest.approx(2 / 2**12)
    assert found["value"] == 1.0
    assert found["ci95"] == [stats.wilson(3, 3)[0], 1.0]


def test_sums_over_clusters_by_hand():
    a = rows([1, 1, 0, 1, None, 1], cluster_of=lambda i: "abcabc"[i])
    b = rows([0, 1, 1, 0, 1], cluster_of=lambda i: "abcabc"[i])
    found = stats.paired_test(a, b)  # a: +2, b: 0, c: −1
    assert (found["value"], found["n"], found["n_clusters"], found["n_unpaired"]) == (0.25, 4, 3, 2)
    assert found["p"] == 1.0
    back = stats.paired_test(b, a)
    assert back["value"] == -found["value"]
    assert back["ci95"] == pytest.approx([-found["ci95"][1], -found["ci95"][0]], abs=0.02)


def test_p_is_uniform_without_a_difference():
    rng = np.random.default_rng(5)
    p = [stats.sign_flip(rng.normal(size=9))[0] for _ in range(300)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_draws_are_averaged_and_fluency_only_takes_away():
    meta = {"perplexity": 5.0, "length": 20, "repetition": 0.0}
    bounds = {"perplexity": [1, 9], "length": [1, 30], "repetition": [0, 1]}
    a = [{**r, "meta": meta} for r in rows([1, 1])] + [{**r, "meta": meta, "draw": 1} for r in rows([0, 1])]
    b = [{**r, "meta": meta | {"perplexity": 50.0}} for r in rows([1, 0])]
    assert stats.paired_test(a, b)["value"] == pytest.approx((-0.5 + 1) / 2)
    assert stats.paired_test(a, b, bounds=bounds)["value"] == pytest.approx((0.5 + 1) / 2)


def test_refusals():
    with pytest.raises(EmotraceError, match="none of 1 and 1 keys"):
        stats.paired_test(rows([1]), rows([None]))
    with pytest.raises(EmotraceError, match="'k0' has another skeleton_id"):
        stats.paired_test(rows([1]), rows([1], cluster_of=lambda i: "other"))
    with pytest.raises(EmotraceError, match="no 'theme'"):
        stats.paired_test(rows([1]), rows([1]), "theme")
    with pytest.raises(EmotraceError, match="match"):
        stats.paired_test(rows([1]), rows([2]))
    with pytest.raises(EmotraceError, match=r"shape \(0,\)"):
        stats.sign_flip([])
    with pytest.raises(EmotraceError, match="at least 1"):
        stats.sign_flip([1.0], permutations=0)
