from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from emotrace import directions
from emotrace.labels import EMOTIONS, EmotraceError


def published(oracles):
    parts = [oracles.npy(f"emotion_circuits/directions_{p}.npy") for p in ("attention", "mlp")]
    return xr.DataArray(
        np.stack(parts, axis=2),
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": list(EMOTIONS), "layer": np.arange(28), "sublayer": ["resid_mid", "resid_post"]},
    )


def test_similarity_of_labels(plant):
    x, truth = plant(n=40, noise=0.05)
    d = directions.centered_mean(x)
    got = directions.similarity(d)
    assert set(got.dims) == {"emotion", "emotion_other", "layer", "sublayer"}
    one = got.sel(emotion="fear", emotion_other="anger", layer=1, sublayer="resid_post").item()
    assert one == pytest.approx(truth[3, 1, 1] @ truth[0, 1, 1], abs=0.05)
    assert got.sel(emotion="fear", emotion_other="fear").values == pytest.approx(1)


def test_similarity_matches_by_name_not_order(plant):
    x, _ = plant()
    d = directions.centered_mean(x)
    got = directions.similarity(d, 3 * d.isel(emotion=[2, 0, 1], layer=[1, 0], sublayer=[1, 0]))
    assert got.shape == (3, 2, 2)
    assert got.values == pytest.approx(1)
    assert directions.similarity(d, d.sel(emotion="anger")).sel(emotion="anger").values == pytest.approx(1)


def test_sublayer_order(plant):
    x, _ = plant(layers=12)
    d = directions.centered_mean(x)
    got = directions.sublayer_similarity(d.isel(layer=slice(None, None, -1), sublayer=[1, 0]))
    names = got["place"].values.tolist()
    assert names[:4] == ["attn0", "mlp0", "attn1", "mlp1"]
    assert names[-1] == "mlp11"
    expected = d.sel(emotion="fear", layer=10, sublayer="resid_post") @ d.sel(
        emotion="fear", layer=3, sublayer="resid_mid"
    )
    assert got.sel(emotion="fear", place="mlp10", place_other="attn3").item() == pytest.approx(
        expected.item(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda d: directions.similarity(d, dim="width"), "width"),
        (lambda d: directions.similarity(d, d.isel(dim=slice(4))), "same model"),
        (lambda d: directions.similarity(d, d.assign_coords(layer=[5, 6])), "share no"),
        (lambda d: directions.similarity(d * 0), "zero"),
        (lambda d: directions.sublayer_similarity(d.isel(layer=0)), "layer"),
    ],
)
def test_bad_input(plant, call, word):
    d = directions.centered_mean(plant(n=2)[0])
    with pytest.raises(EmotraceError, match=word):
        call(d)


def test_published_directions_are_centred_unit_vectors(oracles):
    """Specification §9, row 5: unit norm; one positive linear relation per layer, as re-centring makes it."""
    x = published(oracles).values.astype(np.float64)
    assert np.abs(np.linalg.norm(x, axis=-1) - 1).max() < 1.3e-7
    for layer in range(28):
        for sub in range(2):
            u, s, _ = np.linalg.svd(x[:, layer, sub], full_matrices=False)
            assert s[5] <= 4.9e-8
            assert s[4] >= 0.614
            null = u[:, 5] * np.sign(u[0, 5])
            assert (null > 0).all()


def test_our_directions_have_the_same_structure(plant):
    d = directions.centered_mean(plant()[0])
    x = d.values[:, 0, 0].astype(np.float64)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    assert s[5] < 1e-6 < 0.1 < s[4]
    null = u[:, 5] * np.sign(u[0, 5])
    np.testing.assert_allclose(
        null / null.sum(), d["norm"].values[:, 0, 0] / d["norm"].values[:, 0, 0].sum(), atol=1e-5
    )


def test_published_similarity_matrix(oracles):
    """Specification §9, row 7: the matrix came from a slightly different run."""
    theirs = oracles.npy("emotion_circuits/similarity_matrix_anger.npy")
    ours = directions.sublayer_similarity(published(oracles)).sel(emotion="anger")
    assert ours.shape == theirs.shape == (56, 56)
    gap = np.abs(ours.values - theirs)
    assert gap.max() < 0.04
    assert gap.mean() < 0.004
