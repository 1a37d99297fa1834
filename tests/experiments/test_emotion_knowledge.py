"""The study of emotion knowledge from texts to report, on a model of a second's training; numbers are not what is tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from emotrace.datasets.goemotions import LABELS, read_goemotions
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning import answer_ids
from emotrace.prompt_tuning.tasks import PARTS

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "ratings": ROOT / "data" / "illustrative_ratings.csv", "human": None, "preset": None, "emotions": "joy,fear,anger,sadness",
    "seeds": "1,3", "k": "0.1", "draws": 2, "match": "none", "how": "zero", "stage": "neuron", "prompt_length": 4, "epochs": 1,
    "learning_rate": 0.05, "limit": 4, "words": "negative,positive", "processes": 1, "device": "auto", "dtype": None, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def modules():
    """The two scripts as modules."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        spec = importlib.util.spec_from_file_location(
            "emotion_knowledge", ROOT / "experiments" / "emotion_knowledge.py"
        )
        study = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(study)
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    yield study, study.train_tiny_masked
    sys.modules.pop("train_tiny_masked", None)


@pytest.fixture(scope="module")
def trained(modules, tmp_path_factory):
    _, train = modules
    out, threads = tmp_path_factory.mktemp("masked"), torch.get_num_threads()
    torch.set_num_threads(1)
    texts = train.compose(train.DATA / "emotion_phrases.json", train.DATA / "goemotions_sample.csv", (5, 4, 4))
    train.write(texts, out)
    report = train.fit(texts, out, train.SMOKE)
    torch.set_num_threads(threads)
    return out, texts, report


def test_texts_are_in_the_format_of_goemotions_and_no_pair_is_in_two_parts(trained):
    out, texts, _ = trained
    seen: set[str] = set()
    for part in PARTS:
        assert read_goemotions(out / f"{part}.csv") == texts[part]
        now = {" ".join(sorted(t.text.rstrip(".").split(". "))) for t in texts[part]}
        assert not now & seen
        seen |= now
    for label in LABELS:
        assert sum(label in t.labels for t in texts["test"]) >= 4


def test_the_model_knows_the_answers_and_names_as_single_tokens(modules, trained):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    _, train = modules
    out, _, report = trained
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(set(answer_ids(("negative", "positive"), tokenizer))) == 2
    assert all(len(tokenizer(name, add_special_tokens=False)["input_ids"]) == 1 for name in LABELS)
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]
    assert set(report["names_recovered"]) == set(PARTS)
    again = train.fit(trained[1], out / "again", train.SMOKE)
    assert again["loss"] == report["loss"]


def test_names_are_masked_and_prompt_places_are_never_predicted(modules):
    _, train = modules
    recipe = train.replace(train.SMOKE, name_masked=1.0, masked=0.5)
    rows = [([0, 50, 51, 52, 2], 40), ([0, 60, 2], 41)]
    ids, mask, truth = train.batch(rows, recipe, train.random.Random(0), 4)
    assert ids.shape == (2, 1 + recipe.room + 5)
    assert truth[:, 0].tolist() == [40, 41]
    assert (ids[:, : 1 + recipe.room] == 4).all()
    assert (truth[:, 1 : 2 + recipe.room] == -100).all()
    assert mask[1].tolist() == [1] * (4 + recipe.room) + [0, 0]
    hidden = truth != -100
    assert (ids[hidden] == 4).all()


@pytest.fixture(scope="module")
def done(modules, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("knowledge") / "run"
    modules[0].main(model=str(trained[0]), texts=trained[0], out=out, **SMALL)
    return out


def test_everything_lands_in_the_folder(done):
    files = {
        "manifest.json",
        "report.json",
        "report.html",
        "prompts",
        "activations.zarr",
        "masks",
        "masked",
        "figures",
        "tables",
    }
    assert files <= {p.name for p in done.iterdir()}
    report = json.loads((done / "report.json").read_text())
    assert report["emotions"] == ["anger", "fear", "joy", "sadness"]
    assert any("illustrative" in w for w in report["warnings"])
    assert set(report["neurons"]["significant"]) == set(pd.read_csv(SMALL["ratings"]).columns[1:])
    table = pd.read_csv(done / "tables" / "masked_accuracy.csv", keep_default_na=False)
    assert len(table) == 8 * (1 + 14 + 2)
    page = (done / "report.html").read_text(encoding="utf-8")
    (k,) = report["masks"]["k"]
    for name in ("rdms", "selective_neurons", f"top_neurons_{k}", f"masked_{k}", f"human_link_{k}"):
        assert f"figures/{name}.png" in page
        assert (done / "figures" / f"{name}.png").is_file()


def test_the_same_command_continues_and_another_is_refused(modules, trained, done, monkeypatch):
    def never(*_):
        raise AssertionError("tuned again")

    before = (done / "report.json").read_bytes()
    monkeypatch.setattr("emotrace.prompt_tuning.jobs.tune", never)
    monkeypatch.setattr("emotrace.prompt_tuning.masked._score", never)
    modules[0].main(model=str(trained[0]), texts=trained[0], out=done, **SMALL)
    assert (done / "report.json").read_bytes() == before
    with pytest.raises(EmotraceError, match="draws: 2 there, 3 now"):
        modules[0].main(model=str(trained[0]), texts=trained[0], out=done, **{**SMALL, "draws": 3})


WRONG = (
    ({"emotions": "joy,jpy"}, "unknown emotion 'jpy'"),
    ({"k": "many"}, "--k 'many'"),
    ({"k": "9e9"}, "the model has 96 neurons"),
    ({"how": "noise"}, "--how"),
)


def test_bad_arguments_are_refused(modules, trained, tmp_path):
    for i, (options, message) in enumerate(WRONG):
        with pytest.raises(EmotraceError, match=message):
            modules[0].main(model=str(trained[0]), texts=trained[0], out=tmp_path / str(i), **{**SMALL, **options})
