"""Projection of labelled rows on directions, against einsum; the labels of rows and directions stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from emotrace import directions
from emotrace.labels import EMOTIONS, EmotraceError


@pytest.fixture
def both(plant):
    x, _ = plant()
    return x, directions.centered_mean(x)


def literal(x, dirs):
    """``[direction, layer, sublayer, token]``, word for word."""
    h = x.transpose("layer", "sublayer", "token", "dim").values.astype(np.float64)
    v = dirs.transpose("emotion", "layer", "sublayer", "dim").values.astype(np.float64)
    return np.einsum("lstd,elsd->elst", h, v)


def test_all_directions_at_all_places(both):
    x, dirs = both
    found = directions.project(x, dirs)
    assert found.dims == ("direction", "layer", "sublayer", "token")
    assert found["direction"].values.tolist() == list(EMOTIONS)
    np.testing.assert_allclose(found.values, literal(x, dirs), atol=1e-10)
    assert found["emotion"].values.tolist() == x["emotion"].values.tolist()


def test_the_mean_by_label_of_the_rows_is_one_line(both):
    x, dirs = both
    right = literal(x, dirs)[EMOTIONS.index("fear")]
    found = directions.project(x, dirs.sel(emotion="fear")).groupby("emotion").mean()
    for name in EMOTIONS:
        mine = right[..., x["emotion"].values == name].mean(-1)
        np.testing.assert_allclose(found.sel(emotion=name).transpose("layer", "sublayer"), mine, atol=1e-10)


@pytest.mark.parametrize(
    ("rows", "dirs"),
    [
        ({"layer": 1}, {}),
        ({}, {"layer": 1}),
        ({"layer": 1, "sublayer": "resid_post"}, {"emotion": "fear"}),
        ({}, {"layer": [1, 0], "sublayer": "resid_post"}),
        ({"layer": [1]}, {"layer": [1, 0], "emotion": "anger"}),
    ],
)
def test_places_are_matched_by_name_whatever_was_chosen_before(both, rows, dirs):
    x, all_dirs = both
    whole = xr.DataArray(
        literal(x, all_dirs),
        dims=("direction", "layer", "sublayer", "token"),
        coords={"direction": list(EMOTIONS), "layer": x["layer"].values, "sublayer": x["sublayer"].values},
    )
    found = directions.project(x.sel(rows), all_dirs.sel(dirs))
    wanted = whole.sel(direction=found["direction"], layer=found["layer"], sublayer=found["sublayer"])
    np.testing.assert_allclose(found.values, wanted.transpose(*found.dims).values, atol=1e-10)
    assert set(np.atleast_1d(found["layer"].values)) == set(np.atleast_1d(x.sel(rows)["layer"])) & set(
        np.atleast_1d(all_dirs.sel(dirs)["layer"])
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, d: (x, d.isel(dim=slice(3))), "dim"),
        (lambda x, d: (x.sel(layer=[0]), d.sel(layer=[1])), "none in common"),
        (lambda x, d: (x.sel(layer=0, drop=True), d), "do not say their layer"),
        (lambda x, d: (x, d.expand_dims(seed=[0, 1])), "seed"),
        (lambda x, d: (x, d.where(d["layer"] > 0)), "NaN"),
        (lambda x, d: (x, d.values), "DataArray is due"),
        (
            lambda x, d: (x.assign_attrs(model_id="a", config_hash="1"), d.assign_attrs(model_id="b", config_hash="2")),
            r"project: acts was made with the model a.*directions with another, b",
        ),
    ],
)
def test_what_cannot_be_projected_is_refused(both, change, words):
    with pytest.raises(EmotraceError, match=words):
        directions.project(*change(*both))
