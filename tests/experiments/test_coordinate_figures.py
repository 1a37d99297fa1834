"""Figures of coordinates: every number where it belongs."""

import numpy as np
import pytest
import xarray as xr

from emotrace.report import style
from tests.experiments.studies import module

coordinates = module("coordinate_figures")
RNG = np.random.default_rng(0)


@pytest.fixture
def differences():
    values = RNG.normal(size=(2, 4, 9)) * np.array([1, 2, 3, 4])[:, None]
    values[:, :, 5] = 40.0  # a coordinate that stands out at every depth
    return xr.DataArray(
        values, dims=("emotion", "layer", "dim"), coords={"emotion": ["fear", "joy"], "layer": [0, 2, 4, 6]}
    )


def test_columns_are_sorted_by_their_mean_over_layers_on_one_scale(differences):
    figure = coordinates.sorted_differences(differences)
    left, right, *_ = figure.axes
    for ax, name in ((left, "fear"), (right, "joy")):
        (image,) = ax.images
        shown, wanted = np.asarray(image.get_array()), differences.sel(emotion=name).values
        assert (np.diff(shown.mean(0)) >= 0).all()
        np.testing.assert_allclose(np.sort(shown, axis=1), np.sort(wanted, axis=1))
        np.testing.assert_allclose(shown[:, -1], 40.0)
        assert image.get_clim() == (-40.0, 40.0)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "2", "4", "6"]
    assert style.claim(figure) == "Differences from neutral, sorted", "whether they grow was not tested"


def test_the_largest_coordinates_of_every_layer_with_their_sign(differences):
    figure = coordinates.largest(differences, 2)
    (points,) = figure.axes[0].collections
    places, colours = points.get_offsets(), points.get_array()
    assert len(places) == 4 * 2
    for layer in range(4):
        row = differences.values[0, layer]
        here = places[:, 1] == layer
        assert set(places[here, 0].astype(int)) == set(np.argsort(-np.abs(row))[:2])
        np.testing.assert_allclose(colours[here], row[places[here, 0].astype(int)])
    same = differences.copy(data=np.broadcast_to(differences.values[:, :1], differences.shape))
    assert style.claim(coordinates.largest(same, 3)).startswith("100 %")


def test_vectors_of_one_emotion_lie_together():
    middle = RNG.normal(size=(3, 1, 16)) * 5
    near = xr.DataArray(
        middle + RNG.normal(size=(3, 4, 16)), dims=("emotion", "layer", "dim"),
        coords={"emotion": ["fear", "joy", "anger"], "layer": range(4)},
    )  # fmt: skip
    figure = coordinates.neighbours(near, seed=1)
    assert style.claim(figure).startswith("100 %")
    for ax in figure.axes:
        lines = [np.array(line.get_xydata()) for line in ax.lines]
        centres = np.array([line.mean(0) for line in lines])
        for i, line in enumerate(lines):
            assert (np.linalg.norm(line[:, None] - centres, axis=-1).argmin(1) == i).all()
