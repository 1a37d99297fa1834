"""The study of emotion vectors from queries to report, on a random model and queries of a stranger."""

import json

import numpy as np
import pytest

import emotrace as et
from emotrace import directions, interop
from emotrace.datasets import read_jsonl
from emotrace.labels import EmotraceError
from tests.experiments.studies import COMMON, FEW, experiment, strangers

PICTURES = {"doses", "sweep", "matrix", "geometry", "neighbours"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    settings = {
        **COMMON, **strangers(folder), "train": folder / "theirs.json", "site": "o_proj_out", "over": "mean_generated",
        "neutral": "", "out": folder / "run",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, experiment("emotion_vectors", patch) as module:
        module.main(**settings)
        yield module, settings


def test_everything_lands_in_the_folder(place):
    done = place[1]["out"]
    assert {p.name for p in done.iterdir()} >= {
        "manifest.json", "report.json", "report.html", "generations.jsonl", "figures", "tables", "vectors", "published",
        "extraction", "parts",
    }  # fmt: skip
    assert {p.stem for p in (done / "figures").iterdir()} == PICTURES
    page = (done / "report.html").read_text()
    assert all(f'id="figure-{name}"' in page for name in PICTURES)
    vectors = directions.load(done / "vectors")
    assert vectors["emotion"].values.tolist() == ["fear", "joy"]
    assert (interop.read_emotion_vectors(done / "published").values == vectors.values).all()


def test_the_report_holds_every_dose_and_control(place):
    report = json.loads((place[1]["out"] / "report.json").read_text())
    chosen = report["chosen"]["dose"]
    assert chosen in (1, 3)
    assert [line["dose"] for line in report["test"] if line["emotion"] == "all"] == sorted({*FEW, chosen})
    begun = {f"prefill_{n}" for n in (1, 2, 4)}
    known = {"none", "prompt", "steer", "random_0", "wrong_emotion_0", *begun}
    assert {line["method"] for line in report["methods"]} == known
    assert all(0 <= line["from_third"] <= 1 for line in report["methods"])
    assert [line["dose"] for line in report["base"]] == list(FEW)
    assert [claim["name"] for claim in report["claims"]] == ["steers", "opening_steer", "steering_beats_prompting"]
    assert len(report["paired"]) == 5
    page = (place[1]["out"] / "report.html").read_text()
    assert "not shown: the vectors make the model express" in page  # a random model
    assert set(report["diagonal"]) == {"fear", "joy"}
    assert report["equal_kl"][0]["variant"] == "whole"
    assert {c: [line["n"] for line in found.values()] for c, found in report["elicited"].items()} == {
        "neutral": [4, 2, 2], "emotional": [4, 2, 2],
    }  # fmt: skip
    assert any("asking elicits nothing here" in said for said in report["warnings"])  # a random model
    target = report["chosen"]["kl"]
    assert target > 0
    for line in report["equal_kl"]:
        assert line["kl"] == pytest.approx(target, rel=0.06) or not line["reached"]
    assert report["queries"]["test"]["n_leaked"] == 1
    assert report["n"]["test"] == 2
    assert "1 test queries are in the file" in report["warnings"][-2]
    assert "does not raise its own emotion" in report["warnings"][-1]


def test_where_in_an_answer_the_vector_is_comes_out_of_the_store(place):
    done = place[1]["out"]
    report = json.loads((done / "report.json").read_text())
    acts = et.open_activations(done / "extraction" / "activations.zarr")
    vectors = directions.load(done / "vectors")
    shift = {(line["emotion"], line["tokens"]): line["shift"] for line in report["within"]}
    first = (acts.column("position_from_end") < 5).all()
    assert {tokens for _, tokens in shift} == {"all stored", "first 5"} | (set() if first else {"later"})
    for emotion in ("fear", "joy"):
        assert shift[emotion, "all stored"] == pytest.approx(1, rel=1e-4)  # the vector is that very mean difference
        one = acts.sel("o_proj_out", emotion=emotion, position_from_end=slice(0, 4)).transpose("token", "layer", "dim")
        v = vectors.sel(emotion=emotion)
        p = np.einsum("tld,ld->tl", one.values, (v / v["norm"] ** 2).values)
        by = {
            c: np.mean([p[(one["key"] == k).values].mean(0) for k in set(one["key"].values) if k.endswith(c)], axis=0)
            for c in ("emotional", "neutral")
        }
        assert shift[emotion, "first 5"] == pytest.approx((by["emotional"] - by["neutral"]).mean(), rel=1e-4, abs=1e-6)
    assert "Where in an answer the vector is" in (done / "report.html").read_text()


def test_every_reply_has_an_identity_of_its_own(place):
    rows = [row for _, row in read_jsonl(place[1]["out"] / "generations.jsonl")]
    names = [(row["key"], row["method"], row.get("draw", 0)) for row in rows]
    assert len(set(names)) == len(names) == 2 * 2 * (len({*FEW, rows[-1]["dose"]}) + 6)
    assert {method for _, method, _ in names} >= {
        "none",
        "steer",
        "prompt",
        "prefill_4",
        "random",
        "wrong_emotion",
        "dose_-1",
        "dose_2",
    }


def test_again_it_says_the_same(place, undrawn):
    module, settings = place
    done = settings["out"]
    before = (done / "report.json").read_bytes()
    made = {p: p.stat().st_mtime_ns for p in done.rglob("*.jsonl") if p.parent.name != "run"}
    module.main(**settings)
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
def test_wrong_settings_are_refused(place, wrong, words):
    module, settings = place
    with pytest.raises(EmotraceError, match=words):
        module.main(**{**settings, **wrong})
