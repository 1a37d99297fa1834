"""Bundles: whole or refused."""

import json

import numpy as np
import pytest
import xarray as xr

from emotrace import bundles, directions
from emotrace.labels import EmotraceError

NUMBERS = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array([True, False])}


def test_what_is_written_is_read(tmp_path):
    path = bundles.write(tmp_path / "new" / "folder", "x", NUMBERS, {"words": ["é", "b"], "n": 3})
    about, tensors = bundles.read(path.parent, "x", "numbers")
    assert about == {"words": ["é", "b"], "n": 3}
    assert set(tensors) == set(NUMBERS)
    for name, values in NUMBERS.items():
        np.testing.assert_array_equal(tensors[name], values)  # in the order of its dims, though a is no C array
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.json", "x.safetensors"]


def test_other_formats_and_lost_files_are_refused(tmp_path):
    path = bundles.write(tmp_path, "x", NUMBERS, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(EmotraceError, match="format 99; this version reads 1"):
        bundles.read(tmp_path, "x", "numbers")
    path.unlink()
    with pytest.raises(EmotraceError, match=r"x\.json does not exist; numbers: a folder with x\.json"):
        bundles.read(tmp_path, "x", "numbers")


def test_a_write_that_fails_leaves_the_old_bundle(tmp_path, monkeypatch):
    bundles.write(tmp_path, "x", NUMBERS, {"n": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("emotrace.disk.whole.os.fsync", full)
    with pytest.raises(EmotraceError, match="disk is full"):
        bundles.write(tmp_path, "x", {"a": np.zeros(2)}, {"n": 2})
    monkeypatch.undo()
    about, tensors = bundles.read(tmp_path, "x", "numbers")
    assert about == {"n": 1}
    assert tensors["a"].shape == (3, 2)
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written is left beside it


def test_directions_whose_manifest_does_not_fit_are_one_error(tmp_path):
    array = xr.DataArray(np.ones((2, 3), "float32"), dims=("emotion", "dim"), coords={"emotion": ["joy", "fear"]})
    file = directions.save(array, tmp_path)
    told = json.loads(file.read_text())
    del told[bundles.CONTENT]  # as an earlier version wrote it
    whole = json.dumps(told)
    for old, new in (('"coords": {', '"coord": {'), ('"fear"', '"fear", "joy"'), ('"dims": [', '"dims": ["x", ')):
        assert old in whole
        file.write_text(whole.replace(old, new, 1))
        with pytest.raises(EmotraceError, match="does not describe its numbers"):
            directions.load(tmp_path)


def test_a_manifest_whose_labels_changed_is_refused_and_one_without_a_digest_is_read(tmp_path):
    array = xr.DataArray(np.eye(2, 3), dims=("emotion", "dim"), coords={"emotion": ["joy", "fear"]})
    file = directions.save(array, tmp_path)
    told = json.loads(file.read_text())
    told["coords"]["emotion"]["values"].reverse()
    file.write_text(json.dumps(told))
    with pytest.raises(EmotraceError, match="does not say what was written"):
        directions.load(tmp_path)
    told["coords"]["emotion"]["values"].reverse()
    del told[bundles.CONTENT]
    file.write_text(json.dumps(told))
    xr.testing.assert_identical(directions.load(tmp_path), array)


@pytest.mark.parametrize("found", ["[" * 100_000, '{"sha256": ' + "1" * 5000 + "}", "[]", "", '{"sha256"'])
def test_manifests_of_any_make_are_one_error(tmp_path, found):
    path = bundles.write(tmp_path, "x", NUMBERS, {})
    path.write_text(found)
    with pytest.raises(EmotraceError, match=r"x\.(json|safetensors) is"):
        bundles.read(tmp_path, "x", "numbers")
