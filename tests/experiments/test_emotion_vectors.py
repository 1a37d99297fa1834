"""The study of emotion vectors from queries to report, on the shipped model and a sliver of the data."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from emotrace import directions, interop
from emotrace.labels import EMOTIONS_EV, EmotraceError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model": str(ROOT / "data" / "tiny_model"), "train": ROOT / "data" / "emotion_query_sample.json",
    "test": ROOT / "data" / "emotion_query_plus_sample.json", "judge": "lexicon", "limit": 2, "site": "o_proj_out",
    "over": "mean_generated", "scale": "raw", "doses": "1,3", "neutral": "Keep the reply to at most two sentences.",
    "emotional": "Always reply in {emotion}.\nKeep the reply to at most two sentences.", "draws": 1, "label_map": None,
    "price": None, "max_new_tokens": 8, "batch_size": 32, "device": "auto", "dtype": None, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        spec = importlib.util.spec_from_file_location("emotion_vectors", ROOT / "experiments" / "emotion_vectors.py")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    yield found
    sys.modules.pop("vector_study", None)


@pytest.fixture(scope="module")
def done(module, tmp_path_factory):
    out = tmp_path_factory.mktemp("vectors") / "run"
    module.main(out=out, **SMALL)
    return out


def test_everything_lands_in_the_folder(done):
    assert {p.name for p in done.iterdir()} >= {
        "manifest.json", "report.json", "report.html", "generations.jsonl", "figures", "tables", "vectors", "published",
        "extraction", "parts",
    }  # fmt: skip
    assert {p.stem for p in (done / "figures").iterdir()} == {"doses", "sweep", "matrix", "geometry"}
    page = (done / "report.html").read_text()
    assert all(f"figures/{name}.png" in page for name in ("doses", "sweep", "matrix", "geometry"))
    vectors = directions.load(done / "vectors")
    assert vectors["emotion"].values.tolist() == list(EMOTIONS_EV)
    assert (interop.read_emotion_vectors(done / "published").values == vectors.values).all()


def test_the_report_holds_every_dose_and_control(done):
    report = json.loads((done / "report.json").read_text())
    assert [line["dose"] for line in report["test"] if line["emotion"] == "all"] == [-1, 0, 1, 2, 4] or report[
        "chosen"
    ]["dose"] not in (-1, 0, 1, 2, 4)
    assert {line["method"] for line in report["methods"]} == {"none", "prompt", "steer", "random_0", "shuffled_0"}
    assert [line["dose"] for line in report["base"]] == [-1, 0, 1, 2, 4]
    assert set(report["diagonal"]) == set(EMOTIONS_EV)
    assert len(report["equal_kl"]) == 3
    target = report["chosen"]["kl"]
    for line in report["equal_kl"]:
        assert line["kl"] == pytest.approx(target, rel=0.06) or not line["reached"]
    assert report["queries"]["test"]["n_leaked"] == 0
    assert "no findings" in " ".join(report["warnings"])


def test_again_it_says_the_same(done, module):
    before = (done / "report.json").read_bytes()
    made = {p: p.stat().st_mtime_ns for p in done.rglob("*.jsonl") if p.parent.name != "run"}
    module.main(out=done, **SMALL)
    assert (done / "report.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in made} == made


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"draws": 0}, "at least 1 draw"),
        ({"doses": "1,x"}, "numbers with commas"),
        ({"seed": 1}, "other settings"),
        ({"site": "o_proj"}, "other settings|unknown site"),
    ],
)
def test_wrong_settings_are_refused(done, module, wrong, words):
    with pytest.raises(EmotraceError, match=words):
        module.main(out=done, **{**SMALL, **wrong})
