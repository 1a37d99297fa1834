import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr, spearmanr

from emotrace import rsa
from emotrace.labels import EmotraceError
from emotrace.rsa.resampling import draw_concepts, weighted

SCIPY = {
    "pearson": lambda x, y: pearsonr(x, y).statistic,
    "spearman": lambda x, y: spearmanr(x, y).statistic,
    "kendall": lambda x, y: kendalltau(x, y).statistic,
}


def some(n, rows, seed=0, dim="subject", decimals=8):
    rng = np.random.default_rng(seed)
    common = rng.random(n * (n - 1) // 2)
    values = (common + rng.random((rows, len(common)))).round(decimals)
    return rsa.labelled(values, [f"c{i}" for i in range(n)], [dim], {dim: np.arange(rows)})


@pytest.mark.parametrize("method", SCIPY)
def test_correlations_by_name(method):
    a, b = some(7, 2), some(7, 3, seed=1, dim="model", decimals=1)
    got = rsa.compare(a, rsa.matched(b, list(reversed(rsa.concepts(b)))), method, alternative="two-sided")
    assert got.correlation.dims == ("subject", "model")
    for i in range(2):
        for j in range(3):
            assert got.correlation.values[i, j] == pytest.approx(SCIPY[method](a.values[i], b.values[j]), abs=1e-12)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_mantel_by_hand(alternative):
    a, b = some(6, 1).isel(subject=0, drop=True), some(6, 2, seed=3, dim="model")
    got = rsa.compare(a, b, "spearman", alternative=alternative, permutations=200, seed=9)
    rng, square, (i, j) = np.random.default_rng(9), rsa.square(a).values, np.triu_indices(6, 1)
    null = []
    for _ in range(200):
        order = rng.permutation(6)
        null.append([spearmanr(square[np.ix_(order, order)][i, j], reference).statistic for reference in b.values])
    null, r = np.array(null), got.correlation.values
    extreme = {
        "greater": null >= r - 1e-9, "less": null <= r + 1e-9, "two-sided": np.abs(null) >= np.abs(r) - 1e-9
    }  # fmt: skip
    np.testing.assert_allclose(got.p_mantel.values, (1 + extreme[alternative].sum(0)) / 201)
    np.testing.assert_allclose(got.null_sd.values, null.std(0))


@given(data=st.data(), method=st.sampled_from(list(SCIPY)), ties=st.booleans())
def test_weights_equal_repeated_pairs(data, method, ties):
    """The twin: repeat every pair as often as its two concepts were drawn, then scipy."""
    n = data.draw(st.integers(4, 7))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    x, *y = rng.random((3, n * (n - 1) // 2)).round(1 if ties else 12)
    counts = draw_concepts(n, 4, rng)
    got = weighted(x, np.array(y), counts, method)
    for d, count in enumerate(counts):
        i, j = np.triu_indices(n, 1)
        times = count[i] * count[j]
        for k, reference in enumerate(y):
            a, b = np.repeat(x, times), np.repeat(reference, times)
            if np.ptp(a) and np.ptp(b):
                assert got[d, k] == pytest.approx(SCIPY[method](a, b), abs=1e-10)
            else:
                assert np.isnan(got[d, k])


def test_bootstrap_covers_what_it_resamples():
    people, model = some(9, 12), some(9, 2, seed=4, dim="model")
    only = rsa.bootstrap(people, model, over="subject", resample_concepts=False, draws=300, seed=1)
    both = rsa.bootstrap(people, model, over="subject", draws=300, seed=1)
    concepts = rsa.bootstrap(people.mean("subject"), model, draws=300, seed=1)
    whole = rsa.compare(people.mean("subject"), model).correlation
    for got in (only, both, concepts):
        np.testing.assert_allclose(got.correlation, whole, atol=1e-12)
        assert (got.lo < got["mean"]).all()
        assert (got["mean"] < got.hi).all()
        assert got["mean"].dims == ("model",)
    assert (only.se < both.se).all()
    assert (concepts.se > 2 * only.se).all()
    assert only.attrs["resampled"] == ["subject"]
    assert both.attrs["resampled"] == ["concepts", "subject"]
    rng = np.random.default_rng(1)
    shares = rng.multinomial(12, np.full(12, 1 / 12), size=300)
    by_hand = [kendalltau(np.repeat(people.values, s, axis=0).mean(0), model.values[0]).statistic for s in shares]
    assert only["mean"].values[0] == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert only.p.values[0] == (1 + (np.array(by_hand) <= 0).sum()) / 301


@pytest.mark.parametrize("method", SCIPY)
def test_noise_ceiling_by_hand(method):
    people = some(6, 5, decimals=2)
    got = rsa.noise_ceiling(people, method=method)
    ready = people.values
    if method == "pearson":
        ready = ready - ready.mean(1, keepdims=True)
        ready = ready / np.linalg.norm(ready, axis=1, keepdims=True)
    else:
        ready = np.apply_along_axis(_ranks, 1, ready)
    upper = np.mean([SCIPY[method](r, ready.mean(0)) for r in people.values])
    lower = np.mean([SCIPY[method](people.values[i], np.delete(ready, i, 0).mean(0)) for i in range(5)])
    assert got.upper.item() == pytest.approx(upper, abs=1e-9)
    assert got.lower.item() == pytest.approx(lower, abs=1e-9)
    assert got.lower < got.upper
    stacked = rsa.noise_ceiling(xr.concat([people, people], "group"), method=method)
    np.testing.assert_allclose(stacked.upper, [upper, upper])


def _ranks(x):
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda a, b: rsa.compare(a, b, "tau"), "unknown method"),
        (lambda a, b: rsa.compare(a, b.rename(model="subject")), "in common"),
        (lambda a, b: rsa.compare(a, rsa.matched(b, ["c0", "c1", "c2"])), "only in the RDMs: c3, c4"),
        (lambda a, b: rsa.compare(a.where(a > 0.5), b), "not finite"),
        (lambda a, b: rsa.compare(a * 0, b), "correlates with nothing"),
        (lambda a, b: rsa.bootstrap(a, b), r"besides pair"),
        (lambda a, b: rsa.bootstrap(a[0], b, resample_concepts=False), "nothing to resample"),
        (lambda a, b: rsa.bootstrap(a, b, over="subject", level=95), "level in"),
        (lambda a, b: rsa.noise_ceiling(a, over="person"), "person"),
        (lambda a, b: rsa.noise_ceiling(a[:1]), "at least 2"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call(some(5, 3), some(5, 2, seed=1, dim="model"))
