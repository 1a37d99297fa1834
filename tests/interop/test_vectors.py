"""Published vector files: exact round trips, refusals, and the numbers of the specification (§C7)."""

import json

import numpy as np
import pytest

from emotrace import directions, interop
from emotrace.labels import EmotraceError
from tests.directions.test_selectors import vectors
from tests.helpers import loaded


def test_json_round_trip_is_exact(tmp_path):
    v = vectors() * np.float32(1 / 3)
    files = interop.write_emotion_vectors(v, tmp_path / "m", "tiny")
    assert [f.name for f in files] == [f"tiny_{e}.json" for e in v["emotion"].values]
    held = json.loads(files[0].read_text())
    assert list(held) == ["0", "1", "2"]
    assert np.array(held["0"]).shape == (1, 6)
    assert files[0].read_text().startswith('{\n    "0": [\n        [\n            ')
    back = interop.read_emotion_vectors(tmp_path / "m")
    assert back.dtype == np.float32
    assert (back.values == v.values).all()
    assert back["emotion"].values.tolist() == v["emotion"].values.tolist()
    again = interop.write_emotion_vectors(back, tmp_path / "n", "tiny")
    assert [a.read_bytes() for a in again] == [f.read_bytes() for f in files]


def test_npy_round_trip_is_exact(tmp_path):
    one = vectors().sel(emotion=["fear"])
    path = interop.write_difference_matrix(one, tmp_path / "train_mean_diffmatrix.npy")
    back = interop.read_difference_matrix(path, "fear")
    assert (back.values == one.values).all()
    assert back.attrs["after_final_norm"] == [{"layer": 2, "sublayer": "resid_post"}]
    some = interop.read_difference_matrix(path, "fear", layers=[1, 5, 9])
    assert some["layer"].values.tolist() == [1, 5, 9]
    assert some.attrs["after_final_norm"] == []
    for kwargs, message in (({"layers": [1, 2]}, "one each"), ({"layers": [3, 2, 1]}, "ascending")):
        with pytest.raises(EmotraceError, match=message):
            interop.read_difference_matrix(path, "fear", **kwargs)
    with pytest.raises(EmotraceError, match="a matrix holds one emotion"):
        interop.write_difference_matrix(vectors(), path)
    np.save(tmp_path / "cube.npy", np.zeros((1, 2, 3)))
    with pytest.raises(EmotraceError, match=r"shape \(1, 2, 3\)"):
        interop.read_difference_matrix(tmp_path / "cube.npy", "fear")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"1": [[1.0]]}, "the layers are '0', '1'"),
        ({"0": [[1.0]], "2": [[1.0]]}, "the layers are"),
        ({"0": [1.0]}, r"of shape \[1, D\]"),
        ({"0": [["x"]]}, r"of shape \[1, D\]"),
        ({"0": [[1.0]], "1": [[1.0, 2.0]]}, "different width"),
        ({"0": [[float("nan")]]}, "NaN is no number of JSON"),
        ({}, "the layers are"),
    ],
)
def test_other_layouts_are_refused(held, message, tmp_path):
    (tmp_path / "m_joy.json").write_text(json.dumps(held))
    with pytest.raises(EmotraceError, match=rf"m_joy\.json.*{message}"):
        interop.read_emotion_vectors(tmp_path)


def test_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(EmotraceError, match=r"holds no \.json"):
        interop.read_emotion_vectors(tmp_path)
    interop.write_emotion_vectors(vectors(), tmp_path, "a")
    (tmp_path / "b_joy.json").write_text(json.dumps({"0": [[1.0]]}))
    with pytest.raises(EmotraceError, match="a second file for 'joy'"):
        interop.read_emotion_vectors(tmp_path)
    with pytest.raises(EmotraceError, match="different shapes"):
        interop.read_emotion_vectors([tmp_path / "a_fear.json", tmp_path / "b_joy.json"])
    with pytest.raises(EmotraceError, match="every layer from 0"):
        interop.write_emotion_vectors(vectors().isel(layer=[1, 2]), tmp_path, "c")
    with pytest.raises(EmotraceError, match="dims"):
        interop.write_emotion_vectors(vectors().isel(emotion=0), tmp_path, "c")


def test_vectors_must_fit_the_model(tmp_path):
    lm = loaded()
    interop.write_emotion_vectors(vectors(dim=32), tmp_path / "fits", "m")
    interop.write_emotion_vectors(vectors(dim=32, layers=2), tmp_path / "short", "m")
    interop.write_emotion_vectors(vectors(dim=32, layers=4), tmp_path / "long", "m")
    interop.write_emotion_vectors(vectors(dim=6), tmp_path / "narrow", "m")
    assert interop.read_emotion_vectors(tmp_path / "fits", model=lm).shape == (5, 3, 32)
    for name, message in (
        ("short", "2 layers; the model has 3"),
        ("long", r"4 layers \(up to 3\); the model has 3"),
        ("narrow", "width 6; 'o_proj_out' of the model is 32 wide"),
    ):
        with pytest.raises(EmotraceError, match=message):
            interop.read_emotion_vectors(tmp_path / name, model=lm)
    with pytest.raises(EmotraceError, match="unknown site 'o_proj'"):
        interop.read_emotion_vectors(tmp_path / "fits", site="o_proj", model=lm)


@pytest.fixture(scope="module")
def published(oracles):
    return interop.read_emotion_vectors(
        [oracles.path(f"emotion_vectors/qwen2.5_{e}.json") for e in ("anger", "fear", "joy")]
    )


NORMS = {
    0: (0.688, 0.552, 0.669), 7: (3.031, 2.511, 2.663), 14: (4.962, 4.820, 6.782), 19: (11.746, 10.440, 11.309),
    23: (17.032, 13.626, 14.532), 25: (15.420, 11.311, 12.925), 27: (18.453, 19.051, 19.347),
}  # fmt: skip
COSINES = {
    0: (0.692, 0.506, 0.632), 7: (0.763, 0.527, 0.654), 14: (0.754, 0.675, 0.755), 19: (0.777, 0.682, 0.732),
    23: (0.821, 0.766, 0.787), 25: (0.704, 0.673, 0.655), 27: (0.648, 0.692, 0.679),
}  # fmt: skip


def test_published_norms_and_cosines(published):
    """§C7, for the emotions present: anger, fear, joy."""
    assert published.shape == (3, 28, 3584)
    assert published["emotion"].values.tolist() == ["anger", "fear", "joy"]
    for layer, wanted in NORMS.items():
        np.testing.assert_allclose(published["norm"].sel(layer=layer).values, wanted, atol=6e-4)
    cos = directions.similarity(published)
    pairs = (("anger", "fear"), ("anger", "joy"), ("fear", "joy"))
    for layer, wanted in COSINES.items():
        got = [cos.sel(layer=layer, emotion=a, emotion_other=b).item() for a, b in pairs]
        np.testing.assert_allclose(got, wanted, atol=6e-4)
    mean = [cos.sel(emotion=a, emotion_other=b).mean("layer").item() for a, b in pairs]
    np.testing.assert_allclose(mean, (0.717, 0.600, 0.682), atol=6e-4)
    flat = published.values.reshape(3, -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    whole = [flat[0] @ flat[1], flat[0] @ flat[2], flat[1] @ flat[2]]
    np.testing.assert_allclose(whole, (0.7073, 0.6570, 0.6823), atol=6e-5)


def test_published_combinations(published):
    """§C7: row norms at five layers, Frobenius norm and sum, of the mixtures of the emotions present."""
    wanted = {
        "anger=1": ((0.68795, 3.03135, 4.96211, 8.31855, 18.45289), 42.504324, 65.056922),
        "anger=.5,joy=.5": ((0.58880, 2.48941, 5.38609, 7.33998, 17.38474), 37.674937, 42.056723),
    }
    for mix, (rows, frobenius, total) in wanted.items():
        m = directions.mixed(published, mix)
        np.testing.assert_allclose(m["norm"].sel(layer=[0, 7, 14, 21, 27]).values, rows, atol=6e-6, rtol=1e-6)
        values = m.values.astype(np.float64)
        assert np.linalg.norm(values) == pytest.approx(frobenius, abs=6e-6)
        assert values.sum() == pytest.approx(total, abs=1e-5)
    first = published.sel(emotion="anger")
    np.testing.assert_allclose(first.values[0, :4], (0.00405574, 0.00553499, 0.01399248, -0.02003131), atol=6e-9)
    np.testing.assert_allclose(first.values[27, :4], (-0.1544476, -0.08462285, -0.02119715, -0.00331864), atol=6e-8)
    assert published.sel(emotion="fear").values[27, 2570] == pytest.approx(-8.690, abs=6e-4)
    assert published.sel(emotion="joy").values[27, 2570] == pytest.approx(-5.220, abs=6e-4)
    assert first.values[23, 2570] == pytest.approx(6.1506, abs=6e-5)


def test_a_published_file_is_written_back_to_the_byte(oracles, published, tmp_path):
    (file,) = interop.write_emotion_vectors(published.sel(emotion=["anger"]), tmp_path, "qwen2.5")
    assert file.read_bytes().strip() == oracles.path("emotion_vectors/qwen2.5_anger.json").read_bytes().strip()
