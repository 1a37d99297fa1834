"""Streamed moments, Welch's test, effect sizes and AUROC against scipy, scikit-learn and their formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sps
from sklearn.metrics import roc_auc_score

from emotrace import directions, stats
from emotrace.directions import source as source_
from emotrace.directions.contrast import rank_auroc
from emotrace.directions.moments import Moments
from emotrace.labels import EmotraceError
from tests.directions.labelled_rows import array, classes

EMO, NEU = [[1, 0, 3, -2], [3, 0, 1, -4]], [[0, 1, 2, 0], [0, 1, 2, 2], [0, 1, 2, 1]]


def test_the_published_unit_case():
    """D10: differences, t, p and df; the constant column is flagged instead of p = 0."""
    x = array([EMO + NEU], emotion=["anger"] * 2 + ["neutral"] * 3, key=list("abcde"))
    found = directions.contrast(x).sel(emotion="anger", layer=0)
    assert found["difference"].values.tolist() == [2, -1, 0, -4]
    np.testing.assert_allclose(found["t"], [2, np.nan, 0, -3.464102], atol=1e-6)
    np.testing.assert_allclose(found["p"], [0.295167, np.nan, 1, 0.094148], atol=1e-6)
    np.testing.assert_allclose(found["df"], [1, np.nan, 1, 1.684211], atol=1e-6)
    assert found["constant"].values.tolist() == [False, True, False, False]
    np.testing.assert_allclose(found["q"][[0, 2, 3]], stats.fdr_bh(found["p"].values[[0, 2, 3]]))
    vector = directions.vectors(x).sel(emotion="anger")
    assert vector.values.tolist() == [[2, -1, 0, -4]]
    two = directions.top_k(vector, 2)
    assert two.values.tolist() == [[2, 0, 0, -4]]
    assert (0.5 * two).values.tolist() == [[1, 0, 0, -2]]


@pytest.mark.parametrize("block", [64 << 20, 8 * 7 * 4])
def test_contrast_is_scipys_test_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(source_, "BLOCK_BYTES", block)
    x, _ = classes()
    found = directions.contrast(x)
    assert found["emotion"].values.tolist() == ["anger", "fear"]
    assert found["n"].values.tolist() == [9, 14]
    assert found.attrs["n_against"] == 30
    values, labels = x.values.astype(np.float64), x.emotion.values
    b = values[:, labels == "neutral"]
    for e in ("anger", "fear"):
        a = values[:, labels == e]
        test = sps.ttest_ind(a, b, axis=1, equal_var=False)
        mine = found.sel(emotion=e)
        np.testing.assert_allclose(mine["t"], test.statistic, rtol=1e-9)
        np.testing.assert_allclose(mine["p"], test.pvalue, rtol=1e-8)
        np.testing.assert_allclose(mine["df"], test.df, rtol=1e-9)
        pooled = ((len(a[0]) - 1) * a.var(1, ddof=1) + (len(b[0]) - 1) * b.var(1, ddof=1)) / (len(a[0]) + len(b[0]) - 2)
        np.testing.assert_allclose(mine["d"], (a.mean(1) - b.mean(1)) / np.sqrt(pooled), rtol=1e-9)
        np.testing.assert_allclose(
            mine["q"].values.ravel(), sps.false_discovery_control(test.pvalue.ravel()), rtol=1e-8
        )


def test_null_labels_give_few_discoveries():
    x, _ = classes(n=(40, 40, 60), dim=60, gap=0.0)
    assert int((directions.contrast(x)["q"] < 0.05).sum()) <= 3
    x, _ = classes(n=(40, 40, 60), dim=60, gap=1.5)
    assert float((directions.contrast(x)["q"] < 0.05).mean()) > 0.4


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 5), st.floats(-1e4, 1e4))
def test_moments_merge_in_any_parts(sizes, seed, offset):
    x = offset + np.random.default_rng(seed).normal(size=(sum(sizes), 3))
    whole = Moments.empty(3)
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        whole.update(part)
    assert whole.n == len(x)
    if len(x):
        np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-10)
    if len(x) > 1:
        np.testing.assert_allclose(whole.variance, x.var(0, ddof=1), rtol=1e-6)
    else:
        assert np.isnan(whole.variance).all()


def test_moments_keep_digits_that_a_sum_of_squares_loses():
    x = 1e8 + np.random.default_rng(0).normal(size=(1000, 1))
    whole = Moments.empty(1)
    for part in np.split(x, 10):
        whole.update(part)
    np.testing.assert_allclose(whole.variance, x.var(0, ddof=1), rtol=1e-7)
    assert abs((x**2).mean() - x.mean() ** 2 - x.var()) > 1e-3 * x.var()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_auroc_by_ranks_is_the_share_of_pairs(a, b):
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert rank_auroc(np.array(a), np.array(b)) == pytest.approx(np.mean(pairs))


def test_auroc_of_held_out_rows():
    x, _ = classes(n=(30, 30, 60))
    held = set(x.key.values[::2])
    fit = [k for k in x.key.values if k not in held]
    v = directions.vectors(x, accepted=fit)
    found = directions.auroc(x, v, accepted=held)
    assert found.dims == ("emotion", "layer")
    inside = np.isin(x.key.values, list(held))
    for e in ("anger", "fear"):
        for layer in range(3):
            rows = inside & np.isin(x.emotion.values, [e, "neutral"])
            scores = x.values[layer, rows].astype(float) @ v.sel(emotion=e).values[layer].astype(float)
            assert found.sel(emotion=e, layer=layer).item() == pytest.approx(
                roc_auc_score(x.emotion.values[rows] == e, scores)
            )
    some = directions.auroc(x, directions.only_layers(v, [2]), accepted=held)
    assert some["layer"].values.tolist() == [2]
    assert some.values == pytest.approx(found.sel(layer=[2]).values)


def test_contrast_refuses():
    x, _ = classes()
    for change, message in (
        ({"label": "emotoin"}, "Did you mean 'emotion'"),
        ({"against": "calm"}, "unknown emotion 'calm'"),
        ({"values": ["angry"]}, "Did you mean 'anger'"),
        ({"values": "anger"}, "a list of names"),
        ({"values": ["neutral"]}, "nothing but 'neutral'"),
        ({"accepted": [k for k, e in zip(x.key.values, x.emotion.values, strict=True) if e != "fear"][:12]}, "row"),
    ):
        with pytest.raises(EmotraceError, match=message):
            directions.contrast(x, **change)
    x.values[1, 3, 2] = np.nan
    with pytest.raises(EmotraceError, match="layer 1 of 'k3' are not finite"):
        directions.contrast(x)
