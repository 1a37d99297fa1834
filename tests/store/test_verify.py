import json
import zlib

import numpy as np
import pytest

from emotrace import disk, store
from emotrace.labels import EmotraceError
from emotrace.store import layout


def test_a_sound_store_has_no_damage_also_while_it_is_written(make, stored, tmp_path):
    path, plan, whole = stored
    assert store.verify(path) == []
    make.write(tmp_path / "b", plan, whole, groups={2})
    assert store.verify(tmp_path / "b") == []


def test_every_kind_of_damage_is_named(stored):
    path, _, _ = stored
    chunk = path / "residual/residual/c.1.0.2.0"
    data = bytearray(chunk.read_bytes())
    data[17] ^= 4
    chunk.write_bytes(data)
    (path / "residual/residual/c.0.0.0.0").unlink()
    cut = path / "z/z/c.1.3.0.0"
    cut.write_bytes(cut.read_bytes()[:-1])
    labels = path / "prompts/labels/emotion/c/0"
    labels.write_bytes(labels.read_bytes()[::-1])
    (path / "row_groups/commit/000004.json").write_text("")
    found = {d.path: d for d in store.verify(path)}
    assert set(found) == {
        "residual/residual/c.1.0.2.0",
        "residual/residual/c.0.0.0.0",
        "z/z/c.1.3.0.0",
        "prompts/labels/emotion/c/0",
        "row_groups/commit/000004.json",
    }
    assert str(found["residual/residual/c.1.0.2.0"]).endswith("changed: the checksum differs (row group 2)")
    assert found["residual/residual/c.0.0.0.0"].problem == "missing"
    assert found["z/z/c.1.3.0.0"].problem.startswith("truncated")
    assert found["prompts/labels/emotion/c/0"].group is None


def test_a_store_of_the_version_before_is_checked_by_its_own_checksums(stored):
    path, _, whole = stored
    for record in (path / "row_groups/commit").glob("[0t]*.json"):
        told = json.loads(record.read_text())
        for name, entry in (told.get("chunks") or told["files"]).items():
            assert entry[1].startswith("crc32c:")
            entry[1] = f"{zlib.crc32((path / name).read_bytes()):08x}"
        record.write_bytes(layout.dump(told))
    assert store.verify(path) == []
    np.testing.assert_array_equal(store.open_activations(path).residual.values, whole["residual"])
    chunk = path / "residual/residual/c.1.0.2.0"
    data = bytearray(chunk.read_bytes())
    data[17] ^= 4
    chunk.write_bytes(data)
    assert [d.path for d in store.verify(path)] == ["residual/residual/c.1.0.2.0"]


def test_info_and_ls(stored):
    path, plan, _ = stored
    info = store.info(path)
    assert info["rows"] == info["rows_committed"] == 21
    assert info["bytes"] == 21 * sum(v.row_bytes for v in plan.variables)
    assert info["variables"]["residual"]["shape"] == {"layer": 3, "sublayer": 2, "token": 21, "dim": 8}
    assert info["attrs"]["model_id"] == "tiny"
    assert store.ls(path).variable.tolist() == ["residual", "z"]
    assert store.ls(path, by="emotion").to_dict("list") == {"emotion": ["anger", "fear"], "rows": [9, 12]}
    with pytest.raises(EmotraceError, match="unknown label 'emotoin'"):
        store.ls(path, by="emotoin")


def test_free_bytes_of_a_place_that_does_not_exist_yet(tmp_path):
    assert disk.free_bytes(tmp_path / "a/b/c") > 0
