"""Sign flips equal scipy's and a literal enumeration, and random patterns agree with them."""

import itertools

import numpy as np
import pytest
import scipy.stats

from emotrace import stats
from emotrace.labels import EmotraceError
from emotrace.stats import permutation


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
    monkeypatch.setattr(permutation, "EXACT", 5)
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


def test_p_is_uniform_without_a_difference():
    rng = np.random.default_rng(5)
    p = [stats.sign_flip(rng.normal(size=9))[0] for _ in range(300)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_refusals():
    with pytest.raises(EmotraceError, match="more hits than replies"):
        stats.exchange([[3, 0], [0, 1]], [[1, 1], [1, 1]])
    with pytest.raises(EmotraceError, match=r"shape \(0,\)"):
        stats.sign_flip([])
    with pytest.raises(EmotraceError, match="at least 1"):
        stats.sign_flip([1.0], permutations=0)


@pytest.mark.parametrize(
    ("p", "floor", "said"),
    [(0.031, 0.001, "= 0.031"), (0.001, 0.001, "≤ 0.001"), (0.25, 0.0, "= 0.25"), (float("nan"), 0.1, "–")],
)
def test_a_p_that_could_not_be_less_is_said_to_be_at_most_that(p, floor, said):
    assert permutation.p_said(p, floor) == said
