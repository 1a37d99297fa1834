import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, pearsonr, spearmanr

from emotrace.labels import EmotraceError
from emotrace.rsa import kendall
from emotrace.rsa.correlations import correlate
from emotrace.rsa.kendall import ALTERNATIVES, reference, tau_b


def literal(x, y, alternative):
    """scipy, one column after another."""
    out = np.full((2, x.shape[1], y.shape[1]), np.nan)
    for c in range(x.shape[1]):
        for k in range(y.shape[1]):
            if np.ptp(x[:, c]) and np.ptp(y[:, k]):
                found = kendalltau(x[:, c], y[:, k], method="asymptotic", alternative=alternative)
                out[:, c, k] = found.statistic, found.pvalue
    return out


def columns(n, values):
    return arrays(np.float64, st.tuples(st.just(n), st.integers(1, 4)), elements=values)


few = st.sampled_from([-1.5, 0.0, 0.1, 0.2, 0.30000000000000004, 0.3, 7.0])
many = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(data=st.data(), n=st.integers(3, 40), alternative=st.sampled_from(ALTERNATIVES))
def test_equals_scipy_with_and_without_ties(data, n, alternative):
    x, y = (data.draw(columns(n, data.draw(st.sampled_from([few, many])))) for _ in range(2))
    tau, p = tau_b(x, y, alternative)
    expected = literal(x, y, alternative)
    np.testing.assert_allclose(tau, expected[0], atol=1e-12, rtol=0)
    np.testing.assert_allclose(p, expected[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [351, 200])
def test_equals_scipy_at_the_published_size(n, monkeypatch):
    rng = np.random.default_rng(n)
    x = np.concatenate([rng.normal(size=(n, 3)), rng.normal(size=(n, 3)).round(1), rng.integers(0, 2, (n, 2))], axis=1)
    y = np.stack([rng.normal(size=n), rng.integers(0, 9, n), x[:, 0]], axis=1)
    expected = literal(x, y, "greater")
    monkeypatch.setattr(kendall, "BLOCK", 3)  # so that the last block is a part of one
    for against in (y, reference(y)):
        tau, p = tau_b(x, against)
        assert np.abs(tau - expected[0]).max() <= 1e-12
        assert np.abs(p - expected[1]).max() <= 1e-12
    assert tau[0, 2] == pytest.approx(1, abs=1e-15)
    monkeypatch.setattr(kendall, "SIGNS", 0)  # signs made when they are needed
    assert (tau_b(x, y)[0] == tau).all()


def test_constant_columns_have_no_tau():
    x = np.array([[1.0, 2], [1, 3], [1, 1], [1, 5]])
    tau, p = tau_b(x, x)
    assert np.isnan(tau[0]).all()
    assert np.isnan(p[:, 0]).all()
    assert tau[1, 1] == 1


@given(data=st.data(), n=st.integers(4, 30), alternative=st.sampled_from(ALTERNATIVES))
def test_pearson_and_spearman_equal_scipy(data, n, alternative):
    x, y = (data.draw(columns(n, st.integers(-50, 50).map(float)))[:, 0] for _ in range(2))
    if not (np.ptp(x) and np.ptp(y)):
        assert np.isnan(correlate(x[:, None], y[:, None], "pearson")[0]).all()
        return
    for method, theirs in (("pearson", pearsonr), ("spearman", spearmanr)):
        r, p = correlate(x[:, None], y[:, None], method, alternative)
        expected = theirs(x, y, alternative=alternative)
        assert r.item() == pytest.approx(expected.statistic, abs=1e-12)
        if abs(r.item()) < 1 - 1e-9:  # beyond that p is all rounding
            assert p.item() == pytest.approx(expected.pvalue, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x: tau_b(x, x[:5]), "10 rows of x and 5"),
        (lambda x: tau_b(x[:2], x[:2]), "at least 3"),
        (lambda x: tau_b(x, x, "greter"), "Did you mean 'greater'"),
        (lambda x: correlate(x, x, "kendal"), "Did you mean 'kendall'"),
        (lambda x: correlate(x, x[:5], "pearson"), "as many of both"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call(np.random.default_rng(0).normal(size=(10, 2)))
