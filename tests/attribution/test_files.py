from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emotrace import bundles, disk
from emotrace.attribution import load_scores, save_scores
from emotrace.labels import EMOTIONS, EmotraceError


def some(seed=0):
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "mean": (("emotion", "layer", "unit"), rng.normal(size=(6, 2, 5)), {"sign": "positive raises"}),
            "vector": (("emotion", "dim"), rng.normal(size=(6, 4)).astype(np.float32)),
            "n": ("emotion", np.arange(6)),
            "chosen": (("layer", "unit"), rng.random((2, 5)) > 0.5),
            "token": ("unit", ["a", "b", "ç", "", "e e"]),
            "sigma": ((), 0.1),
        },
        {
            "emotion": list(EMOTIONS),
            "layer": [3, 7],
            "unit": np.arange(5),
            "dose": ("dose", np.array([0.1, 0.3, np.pi])),
            "norm": (("emotion", "layer"), rng.normal(size=(6, 2)).astype(np.float32)),
            "sublayer": "resid_post",
        },
        {"method": "x", "layers": [1, 2], "share": 0.1, "nested": {"a": None}},
    )


def test_a_dataset_comes_back_as_it_was(tmp_path):
    dataset = some()
    manifest = save_scores(dataset, tmp_path / "a" / "b")
    assert manifest == tmp_path / "a" / "b" / "dataset.json"
    back = load_scores(tmp_path / "a" / "b")
    xr.testing.assert_identical(back, dataset)
    for name in dataset.variables:
        if dataset[name].dtype.kind != "U":
            assert back[name].dtype == dataset[name].dtype
    assert sorted(f.name for f in manifest.parent.iterdir()) == ["dataset.json", "dataset.safetensors"]


@given(
    values=hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.int8, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
    )
)
def test_numbers_come_back_bit_by_bit(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_scores(xr.Dataset({"x": (tuple("abc")[: values.ndim], values)}), folder)
    back = load_scores(folder)["x"].values
    assert back.dtype == values.dtype
    assert back.tobytes() == values.tobytes()


def test_labels_of_type_object_and_a_transposed_array(tmp_path):
    dataset = some().assign_coords(emotion=np.array(EMOTIONS, dtype=object)).transpose("unit", ...)
    save_scores(dataset, tmp_path, "other")
    back = load_scores(tmp_path, "other")
    xr.testing.assert_equal(back, dataset)
    assert back["mean"].dims == ("unit", "emotion", "layer")


def test_numpy_attrs_become_plain(tmp_path):
    dataset = some().assign_attrs(k=np.int64(3), v=np.array([1.5, 2.5]), t=(1, "a"))
    save_scores(dataset, tmp_path)
    assert load_scores(tmp_path).attrs == {**some().attrs, "k": 3, "v": [1.5, 2.5], "t": [1, "a"]}


def test_damage_is_refused(tmp_path):
    save_scores(some(), tmp_path)
    numbers, manifest = tmp_path / "dataset.safetensors", tmp_path / "dataset.json"
    whole, text = numbers.read_bytes(), manifest.read_text()
    early = {k: v for k, v in json.loads(text).items() if k != bundles.CONTENT}
    cases = [
        (lambda: numbers.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])), "sha256"),
        (lambda: numbers.write_bytes(whole[:-7]), "sha256"),
        (lambda: numbers.unlink(), "does not exist"),
        (lambda: manifest.unlink(), "does not exist"),
        (lambda: manifest.write_text(text[:100]), "damaged"),
        (lambda: manifest.write_text("[]"), "damaged"),
        (lambda: manifest.write_text(json.dumps({**json.loads(text), "format": 9})), "format 9"),
        (lambda: manifest.write_text(json.dumps({**json.loads(text), "variables": {}})), "does not say what was"),
        (lambda: manifest.write_text(json.dumps({**early, "variables": {}})), "no manifest"),
        (lambda: manifest.write_text(json.dumps({**early, "data": ["absent"]})), "no manifest"),
    ]
    for damage, word in cases:
        numbers.write_bytes(whole)
        manifest.write_text(text)
        damage()
        with pytest.raises(EmotraceError, match=word):
            load_scores(tmp_path)


def test_an_interrupted_save_keeps_the_old_pair_or_is_refused(tmp_path, monkeypatch):
    save_scores(some(), tmp_path)
    real = bundles.replace_file

    def only_numbers(path, data):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(bundles, "replace_file", only_numbers)
    with pytest.raises(KeyboardInterrupt):
        save_scores(some(seed=1), tmp_path)
    with pytest.raises(EmotraceError, match="sha256"):
        load_scores(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "word"),
    [
        (xr.Dataset({"when": ("a", np.array(["2024-01-01"], dtype="datetime64[ns]"))}), "datetime64"),
        (xr.Dataset({"mixed": ("a", np.array(["a", 1], dtype=object))}), "object"),
        (xr.Dataset({"x": ("a", [1.0])}, attrs={"f": object()}), "attr 'f'"),
        (xr.Dataset({"x": ("a", [1.0], {"f": object()})}), "attr 'f'"),
    ],
)
def test_what_no_file_holds_is_refused_before_anything_is_written(tmp_path, dataset, word):
    with pytest.raises(EmotraceError, match=word):
        save_scores(dataset, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmotraceError, match="cannot be written"):
        save_scores(some(), tmp_path / "file")


def test_the_digest_sees_numbers_and_labels_but_not_attrs():
    x = some()["mean"]
    assert disk.digest(x) == disk.digest(x.assign_attrs(other=1))
    different = (x + 1, x.rename(unit="head"), x.assign_coords(layer=[3, 8]), x.isel(unit=slice(4)))
    assert len({disk.digest(y) for y in (x, *different)}) == 5
