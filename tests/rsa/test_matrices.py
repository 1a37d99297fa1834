import itertools
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

import emotrace as et
from emotrace import rsa
from emotrace.labels import EmotraceError
from emotrace.rsa.matrices import reordered
from tests.helpers import loaded


def test_cosine_of_whole_patterns_averaged_over_seeds(plant):
    x, _ = plant(seeds=3, concepts=5)
    got = rsa.rdm(x, "cosine", over="seed")
    flat = x.values.astype(np.float64).reshape(3, 5, -1)
    for n, (i, j) in enumerate(itertools.combinations(range(5), 2)):
        each = [1 - s[i] @ s[j] / np.linalg.norm(s[i]) / np.linalg.norm(s[j]) for s in flat]
        assert got.values[n] == pytest.approx(np.mean(each), abs=1e-14)
        a, b = flat.mean(0)[[i, j]]
        of_mean = rsa.rdm(x, "cosine", over="seed", average="patterns").values[n]
        assert of_mean == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-14)
        assert (got["first"].values[n], got["second"].values[n]) == (x.emotion.values[i], x.emotion.values[j])
    assert got.attrs["averaged"] == "rdms"


def test_one_per_layer_and_seed(plant):
    x, _ = plant()
    got = rsa.rdm(x.transpose("unit", "seed", "emotion", "layer"), "euclidean", features="unit")
    assert got.dims == ("seed", "layer", "pair")
    one = x.sel(seed=3, layer=1).values.astype(np.float64)
    assert got.sel(seed=3, layer=1).values[0] == pytest.approx(np.linalg.norm(one[0] - one[1]))
    alone = rsa.rdm(x, "correlation", features="unit", over="seed").sel(layer=0)
    np.testing.assert_allclose(alone, rsa.rdm(x.sel(layer=0), "correlation", over="seed"), rtol=1e-12)


def test_absolute_difference_is_that_of_the_searchlight(plant):
    x, _ = plant()
    got = rsa.rdm(x, "absolute", features=(), over="seed")
    assert got.dims == ("layer", "unit", "pair")
    one = x.values.astype(np.float64)[:, :, 1, 4]
    assert got.values[1, 4, -1] == pytest.approx(np.mean(np.abs(one[:, -2] - one[:, -1])))


@given(st.permutations(range(6)))
def test_matching_permutes_the_matrix(order):
    matrix = np.random.default_rng(0).random((6, 6))
    matrix = (matrix + matrix.T) * (1 - np.eye(6))
    names = list("abcdef")
    square = xr.DataArray(
        matrix,
        dims=("concept", "concept_other"),
        coords={"concept": names, "concept_other": names},
        name="dissimilarity",
    )
    flat = rsa.condensed(square)
    xr.testing.assert_identical(rsa.square(flat), square)
    to = [names[i] for i in order]
    np.testing.assert_array_equal(rsa.square(rsa.matched(flat, to)).values, matrix[np.ix_(order, order)])
    np.testing.assert_array_equal(flat.values[reordered(6, order)], rsa.matched(flat, to).values)
    if len(to) > 3:
        fewer = rsa.matched(flat, to[:4])
        np.testing.assert_array_equal(rsa.square(fewer).values, matrix[np.ix_(order[:4], order[:4])])


def test_rows_become_patterns(plant):
    x, _ = plant(seeds=2, concepts=4)
    rows = x.stack(token=("emotion", "seed")).reset_index("token").transpose("token", "layer", "unit")
    rows = rows.isel(token=np.random.default_rng(0).permutation(8))
    got = rsa.patterns(rows)
    np.testing.assert_array_equal(got.sel(seed=x.seed, emotion=x.emotion).values, x.values)
    with pytest.raises(EmotraceError, match="no row of seed 1, emotion 'joy'"):
        rsa.patterns(rows.isel(token=~((rows.seed == 1) & (rows.emotion == "joy")).values))
    twice = xr.concat([rows, rows + 2], "token")
    with pytest.raises(EmotraceError, match="average=True"):
        rsa.patterns(twice)
    np.testing.assert_allclose(rsa.patterns(twice, average=True).sel(seed=x.seed, emotion=x.emotion), x + 1, rtol=1e-6)
    for lacking in (
        np.where(rows.emotion == "joy", "", rows.emotion),
        np.where(rows.emotion == "joy", None, rows.emotion),
    ):
        with pytest.raises(EmotraceError, match=r"has no 'emotion' \(2 rows lack it\)"):
            rsa.patterns(rows.assign_coords(emotion=("token", lacking)))
    one = rows.isel(token=(rows.seed == 1).values)
    assert rsa.patterns(one, over=None).dims == ("emotion", "layer", "unit")


def test_rows_of_a_store_become_patterns(tmp_path, monkeypatch):
    lm, emotions = loaded("llama"), ("anger", "fear", "joy")
    prompts = et.datasets.Prompts.of(
        [
            {"key": f"{e}{i}", "token_ids": [20 + i, 40 + k, 60, 61 + k], "emotion": e}
            for k, e in enumerate(emotions)
            for i in range(3)
        ]
    )
    acts = et.capture(lm, prompts, "neuron", positions="prompt", out=tmp_path / "a.zarr", progress=False)
    whole = acts.sel("neuron")
    by_prompt = whole.groupby("key").mean()
    want = np.stack(
        [by_prompt.sel(key=[f"{e}{i}" for i in range(3)]).mean("key").transpose("layer", "unit") for e in emotions]
    )
    got = rsa.patterns(acts, over=None, average=True)
    np.testing.assert_allclose(got.sel(emotion=list(emotions)).values, want, rtol=1e-5, atol=1e-6)
    assert (got.dims, got.attrs["source"]) == (("emotion", "layer", "unit"), str(acts.path))
    uneven = acts.where(position=(2, 4))
    one = rsa.patterns(xr.concat([uneven.sel("neuron", key="fear1", position=3), acts.sel("neuron", emotion=["fear"])], "token"),
                       over=None, average=True)  # fmt: skip
    mine = acts.sel("neuron", key="fear1").values.sum(1) + acts.sel("neuron", key="fear1", position=3).values.sum(1)
    others = [acts.sel("neuron", key=k).values.mean(1) for k in ("fear0", "fear2")]
    np.testing.assert_allclose(
        one.values[0], (mine / 5 + sum(others)) / 3, rtol=1e-5, atol=1e-6
    )  # a prompt counts once
    monkeypatch.setattr(sys.modules["emotrace.rsa.patterns"], "BLOCK_BYTES", 1)  # a row at a time: the same sums
    np.testing.assert_array_equal(rsa.patterns(acts, over=None, average=True).values, got.values)
    last = rsa.patterns(acts.where(position="last", key=["anger1", "fear1", "joy1"]), over=None)
    np.testing.assert_array_equal(
        last.sel(emotion="joy").values, acts.sel("neuron", key="joy1", position="last").values[:, 0]
    )
    with pytest.raises(EmotraceError, match="12 rows of emotion 'anger'"):
        rsa.patterns(acts, over=None)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x: rsa.rdm(x, "cosin"), "Did you mean 'cosine'"),
        (lambda x: rsa.rdm(x, average="mean"), "unknown average"),
        (lambda x: rsa.rdm(x, features="neuron"), "unknown features"),
        (lambda x: rsa.rdm(x, over="subject"), "subject"),
        (lambda x: rsa.rdm(x, concept="label"), "label"),
        (lambda x: rsa.rdm(x, "absolute"), "single feature"),
        (lambda x: rsa.rdm(x.where(x.emotion != "fear")), "pattern of 'fear' at seed 1 is not finite"),
        (lambda x: rsa.rdm(x * (x.emotion != "fear")), "'joy' and 'fear' is not defined"),
        (lambda x: rsa.rdm(x.isel(emotion=[0, 1, 1, 2])), "'fear' occurs twice"),
        (lambda x: rsa.rdm(x.isel(emotion=[0, 1])), "3 are the least"),
        (lambda x: rsa.labelled(np.zeros(5), list("abcd")), "6 are due"),
        (lambda x: rsa.matched(rsa.rdm(x), ["joy", "feer", "anger"]), "Did you mean 'fear'"),
        (lambda x: rsa.condensed(rsa.square(rsa.rdm(x)) + 1), "diagonal"),
        (lambda x: rsa.condensed(rsa.rdm(x)), "concept_other"),
        (lambda x: rsa.patterns(x), "token"),
    ],
)
def test_bad_input(plant, call, word):
    with pytest.raises(EmotraceError, match=word):
        call(plant()[0])


@pytest.mark.parametrize("value", [1.0, 0.1, 0.3, 1 / 3, 123.456, -1e6 / 7])
def test_a_constant_pattern_has_no_correlation_whatever_its_value(value):
    values = np.random.default_rng(0).normal(size=(5, 9))
    values[2] = value
    x = xr.DataArray(values, dims=("emotion", "unit"), coords={"emotion": list("abcde")})
    with pytest.raises(EmotraceError, match="the pattern of 'c' is constant"):
        rsa.rdm(x, "correlation")
    with pytest.raises(EmotraceError, match="the pattern of 'd' is zero"):
        rsa.rdm(x.where(x.emotion != "d", (0.1 + 0.2 - 0.3) * x), "cosine")
    assert np.isfinite(rsa.rdm(x, "euclidean")).all()


@pytest.mark.parametrize("offset", [0, 1000])
def test_equal_differences_of_decimals_tie(offset):
    tenths = np.array([1, 3, 2, 4, 6, 5]) + 10 * offset
    exact = np.abs(np.subtract.outer(tenths, tenths))[np.triu_indices(6, 1)]
    x = xr.DataArray(tenths / 10, dims="emotion", coords={"emotion": list("abcdef")})
    found = rsa.rdm(x, "absolute", features=())
    assert len(np.unique(found)) == len(set(exact))
    seeds = xr.concat([x, x + 0.1, x - 0.7], "seed")
    averaged = rsa.rdm(seeds, "absolute", features=(), over="seed")
    assert len(np.unique(averaged)) == len(set(exact))
    other = rsa.rdm(
        xr.DataArray(
            np.random.default_rng(1).normal(size=(6, 8)), dims=("emotion", "unit"), coords={"emotion": list("abcdef")}
        )
    )
    want = kendalltau(other.values, exact).statistic
    assert rsa.compare(other, averaged).correlation.item() == pytest.approx(want, abs=1e-12)
    noisy = rsa.labelled(exact * 0.1 / 3, list("abcdef"))  # computed in another order: other last bits
    assert rsa.compare(other, noisy).correlation.item() == pytest.approx(want, abs=1e-12)
    neurons = seeds.expand_dims(unit=2).transpose("seed", "emotion", "unit")
    for average in ("rdms", "patterns"):
        tau = rsa.searchlight(neurons, other, average=average, permutations=3).tau
        np.testing.assert_allclose(tau, want, atol=1e-12)
