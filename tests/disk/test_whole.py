"""Whole files: the old one or the new one; full and unwritable disks; what killed processes left."""

import json
import os

import pytest

from emotrace import disk
from emotrace.labels import EmotraceError


def test_a_file_is_replaced_and_its_folder_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("emotrace.disk.whole.sync_folder", synced.append)
    disk.write_json(tmp_path / "x" / "m.json", {"a": "é"})
    disk.write_json(tmp_path / "x" / "m.json", {"a": 2})
    assert json.loads((tmp_path / "x" / "m.json").read_text()) == {"a": 2}
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["m.json"]
    assert synced == [tmp_path / "x"] * 2
    disk.write_rows(tmp_path / "r.jsonl", [{"a": 1}, {"a": 2}])
    assert (tmp_path / "r.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        disk.write_json(tmp_path / "m", {"a": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        disk.write_rows(tmp_path / "m", [{"a": 1}, {"a": float("nan")}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "message"), [(28, "disk is full"), (122, "disk is full"), (30, "cannot be written")]
)
def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch, number, message):
    disk.replace_file(tmp_path / "m", b"old")

    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("emotrace.disk.whole.os.fsync", fails)
    with pytest.raises(EmotraceError, match=message):
        disk.replace_file(tmp_path / "m", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m", b"old")]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(EmotraceError, match=r"f/m cannot be written"):
        disk.replace_file(tmp_path / "f" / "m", b"")


def test_what_a_dead_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    dead, mine = tmp_path / f".m.json.{child}.partial", disk.partial(tmp_path / "m.json")
    folder, older = tmp_path / f".model.{child}.partial", tmp_path / ".m.json.partial"
    folder.mkdir()
    for path in (dead, mine, older, folder / "x", tmp_path / ".other.partial", tmp_path / "m.json"):
        path.write_text("{")
    assert disk.clear_leftovers(tmp_path, "m.json") == [dead, older]
    assert disk.clear_leftovers(tmp_path) == [folder, tmp_path / ".other.partial"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, "m.json"])
    assert disk.clear_leftovers(tmp_path / "nowhere") == []


def test_a_lock_is_held_by_one(tmp_path):
    fd = disk.lock(tmp_path / "deep" / ".lock", tmp_path / "store")
    with pytest.raises(EmotraceError, match=r"another process is writing to .*store"):
        disk.lock(tmp_path / "deep" / ".lock", tmp_path / "store")
    os.close(fd)
    os.close(disk.lock(tmp_path / "deep" / ".lock"))
