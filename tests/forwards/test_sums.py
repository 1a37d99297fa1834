from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from emotrace.attribution import Sums
from emotrace.forwards import sums
from emotrace.labels import EmotraceError

IDENTITY = {"model_id": "tiny", "layers": range(3), "seed": np.int64(0), "command": "a"}
WORK = "import sys; from tests.forwards.test_sums import work; work(sys.argv[1], pause=0.05)"


def work(folder, pause=0.0):
    total = Sums(folder, {"model_id": "tiny"})
    for at in range(total.done, 40):
        total.add("x", np.random.default_rng(at).normal(size=(2, 3)) / 3)
        total.add("n", at)
        total.commit(at + 1)
        print(at, flush=True)
        time.sleep(pause)


def test_totals_are_float64_and_committed_per_chunk(tmp_path):
    total = Sums(tmp_path, IDENTITY)
    assert total.done == 0
    assert "x" not in total
    for at in range(3):
        total.add("x", np.full((2, 2), 0.1, dtype=np.float32))
        total.commit(10 * (at + 1))
    again = Sums(tmp_path, {**IDENTITY, "command": "b", "versions": {}})
    assert again.done == 30
    assert again["x"].dtype == np.float64
    np.testing.assert_array_equal(again["x"], total["x"])
    assert again["x"][0, 0] == 3 * float(np.float32(0.1))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["sums.30.safetensors", "sums.json"]


def test_what_was_added_after_the_last_commit_is_not_there(tmp_path):
    total = Sums(tmp_path, IDENTITY)
    total.add("x", 1.0)
    total.commit(1)
    total.add("x", 5.0)
    assert Sums(tmp_path, IDENTITY)["x"] == 1.0


def test_other_settings_are_refused_and_the_difference_named(tmp_path):
    total = Sums(tmp_path, IDENTITY)
    total.add("x", 1.0)
    total.commit(1)
    for change, word in (
        ({"layers": [0, 1]}, r"layers: \[0, 1, 2\] there, \[0, 1\] now"),
        ({"k": 2}, "k: '.nothing.' there, 2 now"),
    ):
        with pytest.raises(EmotraceError, match=word):
            Sums(tmp_path, {**IDENTITY, **change})


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path):
    command = [sys.executable, "-c", WORK, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            process.kill()
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert 5 < Sums(tmp_path / "killed", {"model_id": "tiny"}).done < 40
    work(tmp_path / "killed")
    work(tmp_path / "whole")
    killed, whole = (tmp_path / name / "sums.40.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


def test_a_kill_between_numbers_and_manifest_leaves_the_commit_before(tmp_path, monkeypatch):
    total = Sums(tmp_path, IDENTITY)
    total.add("x", 1.0)
    total.commit(1)

    def killed(path, obj):
        raise KeyboardInterrupt

    monkeypatch.setattr(sums, "write_json", killed)
    total.add("x", 1.0)
    with pytest.raises(KeyboardInterrupt):
        total.commit(2)
    monkeypatch.undo()
    again = Sums(tmp_path, IDENTITY)
    assert (again.done, again["x"]) == (1, 1.0)
    again.add("x", 1.0)
    again.commit(2)
    assert Sums(tmp_path, IDENTITY)["x"] == 2.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sums.2.safetensors", "sums.json"]


def test_damage_is_refused(tmp_path):
    total = Sums(tmp_path, IDENTITY)
    total.add("x", np.arange(4.0))
    total.commit(1)
    numbers, manifest = tmp_path / "sums.1.safetensors", tmp_path / "sums.json"
    blob = bytearray(numbers.read_bytes())
    blob[-1] ^= 1
    whole = numbers.read_bytes()
    numbers.write_bytes(blob)
    with pytest.raises(EmotraceError, match="sha256"):
        Sums(tmp_path, IDENTITY)
    numbers.unlink()
    with pytest.raises(EmotraceError, match="does not exist"):
        Sums(tmp_path, IDENTITY)
    numbers.write_bytes(whole)
    assert Sums(tmp_path, IDENTITY).done == 1
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(EmotraceError, match="damaged"):
        Sums(tmp_path, IDENTITY)
    manifest.write_text(json.dumps({"done": 1}))
    with pytest.raises(EmotraceError, match="damaged"):
        Sums(tmp_path, IDENTITY)


def test_two_that_commit_to_one_folder_are_told(tmp_path):
    one, other = Sums(tmp_path, IDENTITY), Sums(tmp_path, {**IDENTITY, "seed": 1})
    for total in (one, other):
        total.add("x", 1.0)
    one.commit(1)
    with pytest.raises(EmotraceError, match="another process is writing to"):
        other.commit(1)
    assert Sums(tmp_path, IDENTITY).done == 1


def test_in_memory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    total = Sums(None, IDENTITY)
    total.add("x", 1.0)
    total.commit(1)
    assert total["x"] == 1.0
    assert not list(tmp_path.iterdir())


def test_bad_values_are_refused():
    total = Sums(None, IDENTITY)
    total.add("x", np.zeros(3))
    with pytest.raises(EmotraceError, match="shape"):
        total.add("x", np.zeros(2))
    with pytest.raises(EmotraceError, match="finite"):
        total.add("x", np.array([0.0, np.nan, 0.0]))
    total.commit(4)
    with pytest.raises(EmotraceError, match="committed already"):
        total.commit(4)
    with pytest.raises(EmotraceError, match="JSON"):
        Sums(None, {"x": object()})


def test_the_first_value_is_copied():
    value = np.ones(2)
    total = Sums(None, IDENTITY)
    total.add("x", value)
    total.add("x", value)
    assert value.tolist() == [1, 1]
    assert total["x"].tolist() == [2, 2]
