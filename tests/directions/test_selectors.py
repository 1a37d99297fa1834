"""Selectors compose, break ties the same way, and mixtures are weighted sums."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from emotrace import directions
from emotrace.labels import EmotraceError


def vectors(values=None, emotions=("anger", "disgust", "fear", "joy", "sadness"), layers=3, dim=6, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(emotions), layers, dim)) if values is None else values
    values = np.asarray(values, dtype=np.float32)
    return xr.DataArray(
        values,
        dims=("emotion", "layer", "dim"),
        coords={
            "emotion": list(emotions),
            "layer": np.arange(values.shape[1]),
            "norm": (("emotion", "layer"), np.linalg.norm(values, axis=-1)),
        },
        name="vector",
        attrs={"method": "test", "site": "o_proj_out"},
    )


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.data())
def test_top_k_keeps_the_largest_lower_index_first(row, data):
    k = data.draw(st.integers(1, len(row)))
    kept = directions.top_k(vectors([[row]], ["anger"]), k).values[0, 0]
    best = sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:k]
    assert kept.tolist() == [row[i] if i in best else 0 for i in range(len(row))]


def test_top_k_by_another_ranking():
    v = vectors()
    d = xr.DataArray(
        np.random.default_rng(1).normal(size=v.shape), dims=v.dims, name="d",
        coords={"emotion": v["emotion"].values, "layer": v["layer"].values},
    )  # fmt: skip
    d.values[0, 0, 2] = np.nan
    kept = directions.top_k(v, 5, by=d.isel(emotion=[4, 3, 2, 1, 0]))
    assert ((kept.values != 0).sum(-1) == 5).all()
    assert kept.values[0, 0, 2] == 0, "without a rank it comes last"
    dropped = np.abs(d.values[1:]).argmin(-1)
    assert (np.take_along_axis(kept.values[1:], dropped[..., None], -1) == 0).all()
    assert kept.attrs["selected"] == "top 5 by d"
    np.testing.assert_allclose(kept["norm"], np.linalg.norm(kept.values, axis=-1), rtol=1e-6)


def test_selectors_compose():
    v = vectors()
    base = directions.base_vector(v)
    left = directions.orthogonal_to(v, base)
    unit = base.values / np.linalg.norm(base.values, axis=-1, keepdims=True)
    np.testing.assert_allclose((left.values * unit).sum(-1), 0, atol=1e-6)
    np.testing.assert_allclose(left.values, v.values - (v.values * unit).sum(-1, keepdims=True) * unit, atol=1e-6)
    some = directions.only_layers(directions.top_k(left, 2), [2, 0])
    assert some["layer"].values.tolist() == [0, 2]
    assert ((some.values != 0).sum(-1) == 2).all()
    assert some.attrs["selected"] == "orthogonal to base; top 2 by absolute value"
    shifted = base.isel(layer=[2, 1, 0])
    np.testing.assert_array_equal(directions.orthogonal_to(v, shifted).values, left.values)


def test_without_takes_the_whole_subspace():
    v = vectors()
    axes = xr.DataArray(
        np.random.default_rng(2).normal(size=(2, 3, 6)), dims=("component", "layer", "dim"), coords={"layer": range(3)}
    )
    left = directions.without(v, axes)
    for layer in range(3):
        q = np.linalg.qr(axes.values[:, layer].T)[0]
        np.testing.assert_allclose(left.values[:, layer], v.values[:, layer] - v.values[:, layer] @ q @ q.T, atol=1e-6)


def test_selectors_refuse():
    v = vectors()
    base = directions.base_vector(v)
    for call, message in (
        (lambda: directions.top_k(v, 0), "k lies between 1"),
        (lambda: directions.top_k(v, 7), "have 6 coordinates"),
        (lambda: directions.top_k(v, 2, by=v.isel(emotion=0, drop=True)), "not"),
        (lambda: directions.orthogonal_to(v, base * 0), "zero at some layer"),
        (lambda: directions.orthogonal_to(v, base.isel(layer=[0])), "unknown layer 1"),
        (lambda: directions.orthogonal_to(v, base.isel(dim=slice(0, 3))), "3 along 'dim', not 6"),
        (lambda: directions.without(v, base), "unknown dim 'component'"),
        (lambda: directions.only_layers(v, [3]), "unknown layer 3"),
        (lambda: directions.only_layers(v, []), "at least one"),
        (lambda: directions.only_layers(v, slice(0, 2)), "give integers"),
    ):
        with pytest.raises(EmotraceError, match=message):
            call()


def test_mixtures_by_name_alias_and_five_tuple():
    names = ("anger", "disgust", "fear", "joy", "sadness")
    for given_, wanted in (
        ("anger=0.5,joy=-1", {"anger": 0.5, "joy": -1.0}),
        (" anger=.5  happiness=2 ", {"anger": 0.5, "joy": 2.0}),
        ({"fear": 1, "joy": 0}, {"fear": 1.0}),
        ((0.5, 0, 0, 0.5, 0), {"anger": 0.5, "joy": 0.5}),
        ("", {}),
    ):
        assert directions.parse_mix(given_, names) == wanted
    for wrong, message in (
        ("anger", "no 'emotion=weight'"),
        ("anger=x", "is 'x', not a finite number"),
        ("anger=nan", "not a finite number"),
        ("angry=1", "Did you mean 'anger'"),
        ("joy=1,happiness=1", "'joy' occurs twice"),
        ((1, 2, 3), "3 numbers; the published five-tuple"),
        ({"anger": True}, "the value of 'anger' .*finite number"),
    ):
        with pytest.raises(EmotraceError, match=message):
            directions.parse_mix(wrong, names)
    with pytest.raises(EmotraceError, match="unknown emotion 'disgust'"):
        directions.parse_mix((0, 1, 0, 0, 0), ("anger", "joy"))


@given(st.lists(st.floats(-4, 4, allow_subnormal=False), min_size=5, max_size=5), st.integers(0, 3))
def test_a_mixture_is_the_weighted_sum(weights, seed):
    v = vectors(seed=seed)
    wanted = sum(w * v.values[i].astype(np.float64) for i, w in enumerate(weights))
    got = directions.mixed(v, weights)
    np.testing.assert_allclose(got.values, wanted, rtol=1e-6, atol=1e-6)
    assert got.dims == ("layer", "dim")
    assert "emotion" not in got.coords


def test_equal_weights_are_the_base():
    v = vectors()
    np.testing.assert_allclose(directions.mixed(v, [0.2] * 5).values, directions.base_vector(v).values, atol=1e-7)
    with pytest.raises(EmotraceError, match="no dim 'emotion'"):
        directions.mixed(v.isel(emotion=0), "anger=1")
