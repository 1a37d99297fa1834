from __future__ import annotations

import json

import pytest
import xarray as xr

from emotrace import directions
from emotrace.labels import EmotraceError


def test_round_trip_is_exact(plant, tmp_path):
    d = directions.centered_mean(plant()[0])
    manifest = directions.save(d, tmp_path / "new" / "folder")
    assert sorted(p.name for p in manifest.parent.iterdir()) == ["directions.json", "directions.safetensors"]
    xr.testing.assert_identical(directions.load(manifest.parent), d)
    assert json.loads(manifest.read_text())["attrs"]["method"] == "centered_mean"


def test_other_shapes_round_trip(plant, tmp_path):
    x, _ = plant()
    for i, d in enumerate(
        [directions.pca(x, k=2), directions.mean_rms(x), directions.centered_mean(x).isel(sublayer=1)]
    ):
        directions.save(d, tmp_path, name=f"n{i}")
        xr.testing.assert_identical(directions.load(tmp_path, f"n{i}"), d)


def test_damage_is_named(plant, tmp_path):
    with pytest.raises(EmotraceError, match="does not exist"):
        directions.load(tmp_path)
    d = directions.centered_mean(plant()[0])
    directions.save(d, tmp_path)
    numbers, manifest = tmp_path / "directions.safetensors", tmp_path / "directions.json"
    good = numbers.read_bytes()
    numbers.write_bytes(good[:-4] + b"\0\0\0\1")
    with pytest.raises(EmotraceError, match="sha256"):
        directions.load(tmp_path)
    numbers.write_bytes(good)
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(EmotraceError, match="format 9"):
        directions.load(tmp_path)
    manifest.write_text("[]")
    with pytest.raises(EmotraceError, match="no manifest"):
        directions.load(tmp_path)
