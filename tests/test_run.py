"""Run: one folder that the same settings continue, and that nothing else may use."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from emotrace import run as run_
from emotrace.labels import EmotraceError
from emotrace.run import Run, records

SETTINGS = {"model": {"model_id": "m", "dtype": "float32"}, "seed": 0, "doses": (0.1, 0.2), "limit": None}


def test_a_new_folder_has_a_manifest_at_once(tmp_path):
    run = Run(tmp_path / "deep" / "run", SETTINGS)
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert manifest["doses"] == [0.1, 0.2]
    assert {"command", "versions", "python", "started"} <= set(manifest)
    assert manifest["versions"]["torch"]
    assert "finished" not in manifest
    run.finish()
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert manifest["seconds"] >= 0
    assert manifest["finished"] >= manifest["started"]


def test_the_same_settings_continue_whatever_the_command_and_versions(tmp_path, monkeypatch):
    first = Run(tmp_path / "run", SETTINGS)
    first.path("parts", "rows.jsonl").write_text("{}\n")
    first.finish()
    monkeypatch.setattr("sys.argv", ["elsewhere/experiment.py", "--other"])
    monkeypatch.setattr("emotrace.run.versions", lambda: {"torch": "99"})
    again = Run(tmp_path / "run", dict(reversed(SETTINGS.items())))
    assert again.manifest["command"] == "experiment.py --other"
    assert again.manifest["versions"] == {"torch": "99"}
    assert again.path("parts", "rows.jsonl").read_text() == "{}\n"


def test_other_settings_are_refused_naming_each_difference(tmp_path):
    Run(tmp_path / "run", SETTINGS)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    other = {**SETTINGS, "seed": 1, "doses": [0.1], "new": True}
    other.pop("limit")
    with pytest.raises(EmotraceError) as caught:
        Run(tmp_path / "run", {**other, "limit": 5})
    message = str(caught.value)
    for part in (
        "doses: [0.1, 0.2] there, [0.1] now",
        "seed: 0 there, 1 now",
        "limit: None there, 5 now",
        "new: '(nothing)' there",
    ):
        assert part in message
    assert "model" not in message.split("(")[1]
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before, "a refused run changes nothing"


def test_foreign_places_are_refused_and_left_alone(tmp_path):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("all my work")
    with pytest.raises(EmotraceError, match="not empty and holds no run"):
        Run(foreign, SETTINGS)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(EmotraceError, match=r"thesis\.txt is a file"):
        Run(foreign / "thesis.txt", SETTINGS)
    with pytest.raises(EmotraceError, match=r"thesis\.txt is a file"):
        Run(foreign / "thesis.txt" / "run", SETTINGS)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\ud800"], ids=["torn", "list", "number", "not text"])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(EmotraceError, match=r"manifest\.json is damaged"):
        Run(tmp_path, SETTINGS)


def test_an_empty_folder_and_a_first_write_that_was_killed_are_begun(tmp_path):
    Run(tmp_path, SETTINGS)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".manifest.json.partial").write_text("{")
    assert Run(killed, SETTINGS).manifest["seed"] == 0


def test_another_process_at_work_in_the_folder_is_refused_until_it_has_finished(tmp_path):
    out = tmp_path / "run"
    code = f"""
import sys
from emotrace.run import Run
run = Run({str(out)!r}, {SETTINGS!r})
print("begun", flush=True)
sys.stdin.readline()
run.finish()
print("finished", flush=True)
sys.stdin.readline()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "begun\n"
        before = (out / "manifest.json").read_bytes()
        with pytest.raises(EmotraceError, match=rf"another process is writing to --out {out}; wait for it"):
            Run(out, SETTINGS)
        assert (out / "manifest.json").read_bytes() == before
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "finished\n"
        assert Run(out, SETTINGS).out == out
    finally:
        other.communicate("\n")


def test_a_run_that_failed_is_begun_again_in_the_same_process(tmp_path):
    failed = Run(tmp_path, SETTINGS)
    again = Run(tmp_path, SETTINGS)
    assert again._hold is failed._hold
    again.finish()
    failed.finish()
    assert tmp_path.resolve() not in run_._HELD


def test_records_are_json_whatever_the_table_holds():
    table = pd.DataFrame({"n": [1, 2], "value": [0.5, np.nan], "spread": [np.inf, 1.0], "name": ["a", None]})
    found = records(table.assign(both=[np.int64(3), "x"]))
    assert found == [
        {"n": 1, "value": 0.5, "spread": None, "name": "a", "both": 3},
        {"n": 2, "value": None, "spread": 1.0, "name": None, "both": "x"},
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
