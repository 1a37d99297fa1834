"""The main job from prompts to report, on the shipped model and a sliver of the data; numbers are not what is tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import emotrace as et
from emotrace.labels import METHODS, EmotraceError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model": str(ROOT / "data" / "tiny_model"), "train": ROOT / "data" / "sev.jsonl", "test": ROOT / "data" / "test_set.jsonl",
    "judge": "lexicon", "limit": 8, "sweep_limit": 1, "draws": 1, "curve_draws": 1, "neurons_per_layer": 20,
    "heads_per_layer": 2, "preset": None, "max_new_tokens": 14, "batch_size": 32, "target_aware": False, "label_map": None,
    "price": None, "attn_implementation": "eager", "device": "auto", "dtype": None, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def study():
    """The experiment's module, with one dose and one strength."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        spec = importlib.util.spec_from_file_location("emotion_circuits", ROOT / "experiments" / "emotion_circuits.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    module.DOSES, module.STRENGTHS, module.INFLUENCE_DOSES = (0.15,), (0.5, 1.0), (0.1,)
    return module


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    study.main(out=out, **SMALL)
    return out


def test_everything_lands_in_the_folder(done):
    names = {p.name for p in done.iterdir()}
    files = {
        "manifest.json",
        "report.json",
        "report.html",
        "generations.jsonl",
        "accuracy_stats.json",
        "activations.zarr",
    }
    assert files | {"figures", "tables", "directions", "circuit", "influence", "curves"} <= names
    drawn = {p.stem for p in (done / "figures").iterdir()}
    assert {"accuracy", "ablation", "circuit", "overlap", "curves", "influence", "attention", "comparison"} <= drawn
    assert et.store.verify(done / "activations.zarr") == []
    assert len(et.Circuit.load(done / "circuit").components) == 6 * 6 * 22


def test_every_method_answers_every_prompt(done):
    rows = [json.loads(line) for line in (done / "generations.jsonl").read_text().splitlines()]
    assert {r["method"] for r in rows} == set(METHODS)
    for method in METHODS:
        assert len({r["key"] for r in rows if r["method"] == method}) == 8 * 3 * 6
    assert all(r["verdict"]["match"] in (0, 1) and "fluent" in r["meta"] for r in rows)


def test_the_report_says_what_was_chosen_and_what_it_cost(done):
    report = json.loads((done / "report.json").read_text())
    chosen = report["chosen"]
    assert chosen["lambda"] in (0.5, 1.0)
    assert max(p["accuracy_fluent"] for p in report["sweep"]) == chosen["accuracy_fluent"]
    costs = {p["lambda"]: p["kl"] for p in report["comparison"] if p["method"] == "circuit"}
    assert 0 < costs[0.5] < costs[1.0]
    assert {(p["a"], p["b"]) for p in report["paired"]} >= {("circuit", "prompt"), ("circuit", "steer")}
    for method in METHODS:
        leaf = report["accuracy"][method]["overall"]
        assert leaf["ci95"][0] <= leaf["value"] <= leaf["ci95"][1]


def test_the_circuit_is_found_on_one_part_and_measured_on_the_others(done):
    report = json.loads((done / "report.json").read_text())
    assert report["directions"] == {"n_groups": report["directions"]["n_groups"], "fitted_on": 6, "chosen_on": 1}
    assert et.Circuit.load(done / "circuit").meta["n"]["anger"] <= 6 * 3


def test_again_it_computes_nothing_and_says_the_same(done, study):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (done / "parts").iterdir()}
    report = json.loads((done / "report.json").read_text())
    study.main(out=done, **SMALL)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (done / "parts").iterdir()} == before
    assert json.loads((done / "report.json").read_text()) == report


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"draws": 0}, "at least 1 draw"),
        ({"preset": "emotion_circus"}, "emotion_circuits"),
        ({"seed": 1}, "other settings"),
        ({"judge": "oracle"}, "lexicon"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(done, study, wrong, words):
    with pytest.raises(EmotraceError, match=words):
        study.main(out=done, **{**SMALL, **wrong})
