"""One interface over the methods: planted axes are found, lengths are those of the difference, neutral parts removed."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from emotrace import directions
from emotrace.directions.vectors import METHODS
from emotrace.labels import EmotraceError
from tests.directions.labelled_rows import array, classes


def planted(gap=6.0, n=120, dim=12, seed=1):
    """Two layers; anger differs from neutral along one axis each; a loud direction varies in both classes alike."""
    rng = np.random.default_rng(seed)
    truth, loud = np.linalg.qr(rng.normal(size=(2, dim, 2)))[0].transpose(2, 0, 1)
    labels = ["anger", "neutral"] * (n // 2)
    x = rng.normal(size=(2, n, dim))
    x += 4 * rng.normal(size=(2, n, 1)) * loud[:, None]
    x += gap * (np.array(labels) == "anger")[None, :, None] * truth[:, None]
    pair = [i // 2 for i in range(n)]
    return array(x, emotion=labels, key=[f"k{i}" for i in range(n)], text_id=pair), truth, loud


@pytest.mark.parametrize("method", ["difference", "pca", "lat"])  # a probe weighs coordinates by their spread
def test_a_planted_axis_is_found_at_its_length(method):
    x, truth, _ = planted(gap=14.0)
    v = directions.vectors(x, method, remove_neutral=1).sel(emotion="anger")
    for layer in range(2):
        mine = v.values[layer].astype(float)
        assert mine @ truth[layer] / np.linalg.norm(mine) > 0.95
        assert mine @ truth[layer] == pytest.approx(14, abs=1.5)


@pytest.mark.parametrize("method", METHODS)
def test_strength_one_moves_neutral_onto_the_emotion_along_the_axis(method):
    x, _ = classes()
    v = directions.vectors(x, method)
    diff = directions.vectors(x)
    for e in ("anger", "fear"):
        for layer in range(3):
            a, d = (y.sel(emotion=e, layer=layer).values.astype(float) for y in (v, diff))
            assert a @ d == pytest.approx(a @ a, rel=1e-4), "⟨Δ, a⟩ a has the length of Δ along it"
    assert v["n"].values.tolist() == [9, 14]
    assert v.attrs["method"] == method


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_each_method_is_its_definition():
    x, _ = classes(n=(20, 20, 20))
    values, labels = x.values.astype(np.float64), x.emotion.values
    a, b = values[1, labels == "anger"], values[1, labels == "neutral"]
    got = {m: directions.vectors(x, m).sel(emotion="anger", layer=1).values.astype(float) for m in METHODS}
    np.testing.assert_allclose(got["difference"], a.mean(0) - b.mean(0), rtol=1e-5)
    assert abs(cosine(got["pca"], PCA(1).fit(np.concatenate([a, b])).components_[0])) == pytest.approx(1, abs=1e-6)
    z = np.concatenate([a, b])
    fit = LogisticRegression(max_iter=2000).fit((z - z.mean(0)) / z.std(0), np.repeat([1, 0], 20))
    assert cosine(got["probe"], fit.coef_[0] / z.std(0)) == pytest.approx(1, abs=1e-6)
    ids = np.empty(60, dtype=object)
    for e in ("anger", "fear", "neutral"):
        ids[labels == e] = [f"p{i}" for i in range(20)]
    pairs = x.assign_coords(text_id=("token", ids))
    lat = directions.vectors(pairs, "lat", within="text_id").sel(emotion="anger", layer=1).values.astype(float)
    _, _, axes = np.linalg.svd(a - b)
    assert abs(cosine(lat, axes[0])) == pytest.approx(1, abs=1e-6)
    again = directions.vectors(x, "lat", seed=3)
    assert (again.values == directions.vectors(x, "lat", seed=3).values).all()
    assert (again.values != directions.vectors(x, "lat", seed=4).values).any()


def test_neutral_components_are_removed():
    x, _, loud = planted()
    v = directions.vectors(x, remove_neutral=2)
    neutral = [k for k, e in zip(x.key.values, x.emotion.values, strict=True) if e == "neutral"]
    axes = directions.pca(x, accepted=neutral, k=2)
    overlap = np.abs((v.values[0][:, None] * axes.transpose("layer", "component", "dim").values).sum(-1))
    assert overlap.max() < 1e-5
    assert np.abs((v.values[0] * loud).sum(-1)).max() < 1


def test_vectors_refuse():
    x, _ = classes()
    for change, message in (
        ({"method": "mean"}, "unknown method 'mean'"),
        ({"within": "key"}, "only 'lat' takes pairs"),
        ({"method": "lat", "within": "key"}, "no row shares it"),
        ({"method": "lat", "within": "text"}, "unknown label 'text'"),
    ):
        with pytest.raises(EmotraceError, match=message):
            directions.vectors(x, **change)
    flat = array(np.zeros((1, 4, 3)), emotion=["anger", "anger", "neutral", "neutral"], key=list("abcd"))
    for method in ("pca", "lat", "probe"):
        with pytest.raises(EmotraceError, match="do not vary"):
            directions.vectors(flat, method)
