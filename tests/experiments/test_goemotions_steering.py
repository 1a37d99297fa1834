"""Steering from labelled texts, from a file to a report, on a random model and data of a stranger."""

import json

import pandas as pd
import pytest

import emotrace as et
from emotrace import directions
from emotrace.datasets import read_jsonl
from emotrace.labels import EmotraceError
from tests.experiments.studies import COMMON, ROOT, experiment, strangers

PICTURES = {"auroc", "doses", "sweep", "matrix", "differences", "largest", "geometry", "neighbours"}
TEXTS = [
    {"id": f"{name}{i}", "text": text, "labels": [name]}
    for name, texts in {
        "fear": ("It is dark.", "I hear steps.", "Do not go in.", "My hands shake."),
        "joy": ("We won.", "What a cake.", "The sun is out.", "I sing."),
        "neutral": ("The bus is red.", "It is noon.", "A door.", "Two chairs.", "Page four."),
    }.items()
    for i, text in enumerate(texts)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    settings = {
        **COMMON, **strangers(folder), "train": str(folder / "texts.json"), "trial": folder / "theirs.json",
        "questions": str(ROOT / "data" / "truthfulqa_mc_sample.json"), "emotions": "fear,joy", "against": "neutral",
        "grouping": None, "keep": 4, "layers": None, "system": "", "limit": 4, "out": folder / "run",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, experiment("goemotions_steering", patch) as module:
        module.main(**settings)
        yield module, settings


def test_the_report_has_every_figure_table_and_control(place):
    done = place[1]["out"]
    assert {p.stem for p in (done / "figures").iterdir()} == PICTURES
    assert {p.stem for p in (done / "tables").iterdir()} == {
        "methods",
        "test",
        "sweep",
        "equal_kl",
        "auroc",
        "texts",
        "truthfulqa",
    }
    report = json.loads((done / "report.json").read_text())
    assert {line["method"] for line in report["methods"]} == {
        "none", "prompt", "steer", "random_0", "wrong_emotion_0", "shuffled_0", *(f"prefill_{n}" for n in (1, 2, 4)),
    }  # fmt: skip
    assert [line["variant"] for line in report["equal_kl"]] == [
        "whole", "4 largest coordinates", "4 largest by Cohen's d", "without what emotions share",
    ]  # fmt: skip
    assert [line["vector"] for line in report["truthfulqa"]] == ["none", "fear", "joy"]
    assert all(line["n"] == 4 for line in report["truthfulqa"])
    assert "plumbing" in report["warnings"][-1]
    assert report["texts_of"] == {"fear": 3, "joy": 3}
    acts, made = et.open_activations(done / "extraction" / "activations.zarr"), et.directions.load(done / "vectors")
    assert {e: set(row) for e, row in report["along"].items()} == {
        e: {str(layer) for layer in made["layer"].values} for e in ("fear", "joy")
    }
    assert len(acts) == len(set(acts.column("key")))
    texts = pd.DataFrame(report["texts"])
    assert set(texts["method"]) == {"difference", "pca", "lat", "probe", "shuffled labels"}
    assert texts["auroc"].between(texts["lo"], texts["hi"]).all()
    assert (texts["n"] == 1).all()
    by_layer = pd.DataFrame(report["auroc"])
    stored = directions.load(done / "extraction" / "vectors", "auroc")
    assert by_layer["auroc"].tolist() == [
        float(stored.sel(emotion=r.emotion, layer=r.layer)) for r in by_layer.itertuples()
    ]
    vectors = directions.load(done / "vectors")
    assert vectors.attrs["site"] == "resid_post"
    names = [(r["key"], r["method"], r.get("draw", 0)) for _, r in read_jsonl(done / "generations.jsonl")]
    assert len(set(names)) == len(names)


def test_other_settings_are_refused(place):
    module, settings = place
    for wrong, words in (
        ({"keep": 5}, "keep: 4 there, 5 now"),
        ({"emotions": "fear,glee"}, "unknown emotion 'glee'"),
        ({"doses": "a"}, "--doses a"),
        ({"questions": "none.json"}, "no such file"),
    ):
        with pytest.raises(EmotraceError, match=words):
            module.main(**{**settings, **wrong})
