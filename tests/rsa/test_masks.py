import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from emotrace.labels import EmotraceError
from emotrace.rsa.masks import SHARED, Masks, order, select_neurons


def scores(attributes=("valence", "control"), layers=3, units=20, seed=0, name="tau"):
    values = np.random.default_rng(seed).normal(size=(len(attributes), layers, units)).round(1)
    coords = {"attribute": list(attributes), "layer": np.arange(layers), "unit": np.arange(units)}
    dims = ("attribute", "layer", "unit")
    return xr.DataArray(values, dims=dims, coords=coords, name=name, attrs={"model": "tiny"})


def test_ties_go_to_the_smaller_index():
    x = xr.DataArray([[0.5, np.nan, 0.9], [0.9, 0.5, -1.0]], dims=("layer", "unit"))
    assert order(x).tolist() == [2, 3, 0, 4, 5, 1]
    assert order(x.transpose("unit", "layer")).tolist() == order(x).tolist()


@given(k=st.integers(1, 59), match=st.sampled_from(["layer", "none"]), overlap=st.booleans())
def test_random_masks_match_the_selective_one(k, match, overlap):
    x = scores()
    if not overlap and k > 30:
        with pytest.raises(EmotraceError, match="are left outside"):
            select_neurons(x, k, match="none", overlap=False)
        return
    if not overlap:
        match = "none"
    got = select_neurons(x, k, draws=3, match=match, shared=False, overlap=overlap, seed=4)
    for name in ("valence", "control"):
        mine = got.sel(attribute=name)
        best = mine.sel(kind="selective").masked.values[0]
        flat = sorted(range(60), key=lambda i: (-x.sel(attribute=name).values.ravel()[i], i))[:k]
        assert sorted(np.flatnonzero(best).tolist()) == sorted(flat)
        for labels, mask in mine.sel(kind="random"):
            assert mask.sum() == labels["k"] == k
            assert overlap or not (mask & best).any()
            if match == "layer":
                assert mask.sum(1).tolist() == best.sum(1).tolist()


def test_draws_do_not_depend_on_what_else_is_asked():
    x = scores()
    one = select_neurons(x.sel(attribute=["control"]), 7, draws=2, seed=3)
    more = select_neurons(x, [3, 7], draws=5, seed=3).sel(attribute="control", k=7, draw=[-1, 0, 1])
    np.testing.assert_array_equal(one.masked.values, more.masked.values)
    assert (select_neurons(x, 7, draws=2, seed=4).sel(attribute="control").masked.values != one.masked.values).any()


def test_shared_draws_serve_every_attribute():
    got = select_neurons(scores(), [4, 6], draws=3, match="none")
    assert len(got) == 2 * 2 + 2 * 3
    assert set(got.sel(kind="random").masked["attribute"].values) == {SHARED}
    own = select_neurons(scores(), 4, draws=1, match="none", shared=False)
    a, b = own.sel(kind="random").masked.values
    assert (a != b).any()


def test_random_neurons_are_uniform():
    got = select_neurons(scores(("valence",), layers=2, units=10), 5, draws=2000, match="none").sel(kind="random")
    share = got.masked.values.mean(0)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_saved_and_loaded(tmp_path):
    got = select_neurons(scores(layers=3, units=21), [4, 9], draws=2, seed=1)
    path = got.save(tmp_path)
    back = Masks.load(tmp_path)
    xr.testing.assert_identical(back.masked, got.masked)
    manifest = json.loads(path.read_text())
    assert manifest["attrs"]["ranking"] == "tau"
    assert manifest["attrs"]["ranking_model"] == "tiny"
    assert (tmp_path / "masks.safetensors").stat().st_size < got.masked.size / 8 + 400
    (tmp_path / "masks.safetensors").write_bytes((tmp_path / "masks.safetensors").read_bytes()[:-1] + b"\x01")
    with pytest.raises(EmotraceError, match="sha256"):
        Masks.load(tmp_path)


def test_multipliers():
    got = select_neurons(scores(), 10, draws=1)
    m = got.multipliers(seed=2)
    masked = got.masked.values
    assert (m.values[~masked] == 1).all()
    assert 0 <= m.values[masked].min() < 0.2 < 0.8 < m.values[masked].max() < 1
    assert (m.values == got.multipliers(seed=2).values).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x: select_neurons(x, 0), "1 to 60"),
        (lambda x: select_neurons(x, 61), "1 to 60"),
        (lambda x: select_neurons(x.rename(unit="neuron"), 3), "attribute, layer, unit"),
        (lambda x: select_neurons(x, 3, match="layers"), "Did you mean 'layer'"),
        (lambda x: select_neurons(x, 3, draws=-1), "0 or more"),
        (lambda x: select_neurons(x.where(x > 1), 30), "has scores for"),
        (lambda x: select_neurons(x, 3).sel(attribute="valance"), "Did you mean 'valence'"),
        (lambda x: select_neurons(x, 3).sel(size=3), "unknown label"),
        (lambda x: Masks(select_neurons(x, 3).masked.astype(float)), "bool"),
        (lambda x: Masks(select_neurons(x, 3).masked.drop_vars("k")), "'k'"),
        (lambda x: Masks(~select_neurons(x, 3).masked), "number of masked"),
        (lambda x: Masks.load("nowhere"), "does not exist"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call(scores())
