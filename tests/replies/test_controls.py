"""Controls are what their names say."""

import numpy as np
import pytest
import xarray as xr

from emotrace import replies
from emotrace.labels import EMOTIONS, EmotraceError


def directions():
    values = np.random.default_rng(0).standard_normal((6, 2, 3, 8)).astype(np.float32)
    norms = np.linalg.norm(values, axis=-1)
    return xr.DataArray(
        values / norms[..., None],
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={
            "emotion": list(EMOTIONS), "layer": [3, 4], "sublayer": ["a", "b", "c"],
            "norm": (("emotion", "layer", "sublayer"), norms),
        },
    )  # fmt: skip


def test_random_directions_have_unit_norm_and_nothing_of_the_real_ones():
    real, a, b = directions(), replies.random_directions(directions(), 1), replies.random_directions(directions(), 2)
    assert a.dims == real.dims
    np.testing.assert_allclose(np.linalg.norm(a.values, axis=-1), 1, atol=1e-6)
    assert list(a["emotion"].values) == list(EMOTIONS)
    np.testing.assert_array_equal(a, replies.random_directions(directions(), 1))
    assert not np.allclose(a, b)
    assert abs(float((a * real).sum("dim").mean())) < 0.3


@pytest.mark.parametrize("n", [2, 3, 6])
def test_deranged_has_no_fixed_point_and_loses_no_direction(n):
    real = directions().isel(emotion=slice(n))
    for seed in range(40):
        moved = replies.deranged(real, seed)
        assert list(moved["emotion"].values) == list(EMOTIONS[:n])
        assert not (moved.values == real.values).all(axis=(1, 2, 3)).any()
        assert sorted(moved.values.reshape(n, -1)[:, 0]) == sorted(real.values.reshape(n, -1)[:, 0])
        at = [int((real.values == v).all(axis=(1, 2, 3)).argmax()) for v in moved.values]
        np.testing.assert_array_equal(moved["norm"], real["norm"].values[at], err_msg="the norm goes with its vector")
    with pytest.raises(EmotraceError, match="only one emotion"):
        replies.deranged(directions().isel(emotion=[0]), 0)


def test_shuffled_labels_keep_their_counts_and_the_rows_of_a_unit_together():
    labels, units = [EMOTIONS[i // 2 % 3] for i in range(12)], [f"u{i // 2}" for i in range(12)]
    acts = xr.DataArray(
        np.zeros((12, 4)), dims=["token", "dim"], coords={"emotion": ("token", labels), "unit": ("token", units)}
    )
    found = replies.shuffled_labels(acts, unit="unit", seed=2)
    assert sorted(found["emotion"].values) == sorted(labels)
    assert found["emotion"].values.tolist() != labels
    assert all(found["emotion"].values[2 * i] == found["emotion"].values[2 * i + 1] for i in range(6))
    with pytest.raises(EmotraceError, match="several values"):
        replies.shuffled_labels(acts.assign_coords(unit=("token", ["u"] * 12)), unit="unit")
    with pytest.raises(EmotraceError, match="unknown label"):
        replies.shuffled_labels(acts, "mood")


def test_random_vectors_have_the_lengths_that_the_real_ones_say():
    found = replies.random_vectors(directions(), 3)
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=-1), directions()["norm"], rtol=1e-6)
    at = replies.norm_matched(replies.random_directions(directions(), 3), directions() * directions()["norm"])
    np.testing.assert_allclose(found.values, at.values, rtol=1e-5)


def test_vectors_are_found_by_their_names():
    real, noise = directions(), replies.random_directions(directions(), 3)
    turned = noise.isel(emotion=[5, 3, 1, 0, 2, 4], layer=[1, 0]).transpose("layer", ..., "dim")
    np.testing.assert_array_equal(replies.norm_matched(turned, real), replies.norm_matched(noise, real))
    with pytest.raises(EmotraceError, match="unknown layer 3"):
        replies.norm_matched(noise.sel(layer=[4]), real)
    sideways = replies.random_vectors(real.transpose("dim", ...), 3)
    np.testing.assert_allclose(np.linalg.norm(sideways.values, axis=0), real["norm"], rtol=1e-6)
    with pytest.raises(EmotraceError, match="unknown coordinate 'norm'"):
        replies.random_vectors(real.drop_vars("norm"), 3)
