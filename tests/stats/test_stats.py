from __future__ import annotations

import math

import numpy as np
import pytest

from emotrace import stats
from emotrace.labels import EmotraceError

# ---- intervals


def literal_bootstrap(values, clusters, n, seed, level=0.95):
    names = sorted(set(clusters))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)
    means = []
    for draw in draws:
        sample = []
        for name, times in zip(names, draw, strict=True):
            sample += [v for v, c in zip(values, clusters, strict=True) if c == name] * times
        means.append(np.mean(sample))
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def test_bootstrap_equals_its_literal_twin():
    rng = np.random.default_rng(3)
    values = rng.normal(size=50)
    clusters = rng.choice(list("abcdefg"), size=50)
    assert stats.bootstrap_ci(values, clusters, 300, 5) == pytest.approx(literal_bootstrap(values, clusters, 300, 5))


def test_bootstrap_columns_equal_single_calls():
    rng = np.random.default_rng(0)
    values, clusters = rng.random((30, 2, 3)), np.repeat(np.arange(10), 3)
    lo, hi = stats.bootstrap_ci(values, clusters, 200)
    assert lo.shape == hi.shape == (2, 3)
    assert (lo[1, 2], hi[1, 2]) == pytest.approx(stats.bootstrap_ci(values[:, 1, 2], clusters, 200))


def test_clusters_widen_the_interval():
    per_cluster = np.random.default_rng(0).normal(size=20)
    values = np.repeat(per_cluster, 20)
    lo, hi = stats.bootstrap_ci(values, np.repeat(np.arange(20), 20))
    lo_rows, hi_rows = stats.bootstrap_ci(values, np.arange(400))
    assert hi - lo > 3 * (hi_rows - lo_rows)


def test_bootstrap_covers():
    rng = np.random.default_rng(1)
    inside = 0
    for i in range(200):
        values = np.repeat(rng.normal(size=40), 3) + rng.normal(size=120)
        lo, hi = stats.bootstrap_ci(values, np.repeat(np.arange(40), 3), 300, i)
        inside += lo <= 0 <= hi
    assert 178 <= inside <= 199


def test_zero_width_becomes_wilson_over_clusters():
    lo, hi = stats.bootstrap_ci(np.ones(60), np.repeat(np.arange(20), 3), shares=True)
    assert (lo, hi) == stats.wilson(20, 20)
    assert lo == pytest.approx(20 / (20 + 1.959964**2))
    assert hi == 1.0
    assert stats.bootstrap_ci([1, 0, 1, 0], [0, 0, 1, 1], shares=True) == stats.wilson(1, 2)  # both clusters half right
    for value in (0.0, 0.5, 1.0, 1.5, 2.5, -0.5):  # what is no share has no width, wherever it lies
        assert stats.bootstrap_ci(np.full(6, value), np.arange(6)) == (value, value)
    table = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0]])  # each column as alone
    lo, hi = stats.bootstrap_ci(table, range(4), 200, shares=True)
    alone = [stats.bootstrap_ci(column, range(4), 200, shares=True) for column in table.T]
    assert list(zip(lo.tolist(), hi.tolist(), strict=True)) == alone
    with pytest.raises(EmotraceError, match=r"values from 0 to 2; shares lie in 0 … 1"):
        stats.bootstrap_ci([0, 2], [0, 1], shares=True)


def test_wilson_known_value():
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert stats.wilson(0, 20)[0] == 0.0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: stats.bootstrap_ci([], []), "cluster"),
        (lambda: stats.bootstrap_ci([1.0, 2.0], [0]), "cluster"),
        (lambda: stats.bootstrap_ci([1.0, math.nan], [0, 1]), "finite"),
        (lambda: stats.bootstrap_ci([1.0], [0], level=95), "0.95"),
        (lambda: stats.wilson(3, 2), "successes"),
        (lambda: stats.fdr_bh([0.1, 1.2]), "p-value"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call()


def test_fdr_by_hand():
    assert stats.fdr_bh([[0.01, 0.04], [0.03, 0.5]]) == pytest.approx(np.array([[0.04, 0.16 / 3], [0.16 / 3, 0.5]]))


def test_holm_by_hand():
    assert stats.holm([[0.01, 0.04], [0.03, 0.5]]) == pytest.approx(np.array([[0.04, 0.09], [0.09, 0.5]]))
    assert stats.holm([0.02]) == pytest.approx(0.02)
    with pytest.raises(EmotraceError, match="p-value"):
        stats.holm([])
