"""The study of emotion knowledge from texts to report, on a model of a second's training; numbers are not what is tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import emotrace as et
from emotrace.datasets.goemotions import LABELS, read_goemotions
from emotrace.labels import EmotraceError
from emotrace.presets import preset
from emotrace.prompt_tuning import answer_ids
from emotrace.prompt_tuning.tasks import PARTS
from emotrace.testing import tiny

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "ratings": ROOT / "data" / "illustrative_ratings.csv", "human": None, "preset": None, "emotions": "joy,fear,anger,sadness",
    "seeds": "1,3", "position": None, "k": "0.1", "draws": 2, "match": None, "how": None, "stage": None, "prompt_length": 4,
    "epochs": 1, "learning_rate": None, "limit": 4, "words": None, "processes": 1, "device": "auto", "dtype": None, "seed": 0,
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
    study.study.PERMUTATIONS = study.study.DRAWS = 50
    yield study, study.train_tiny_masked
    sys.modules.pop("knowledge_study", None)
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
    ids, truth, hidden = train.batch(rows, recipe, torch.Generator().manual_seed(0), 4)
    assert ids.shape == (2, 1 + recipe.room + 5)
    assert truth[:, 0].tolist() == [40, 41]
    assert (ids[:, : 1 + recipe.room] == 4).all()
    assert hidden[:, 0].all()
    assert not hidden[:, 1 : 2 + recipe.room].any()  # no place of the prompt, nor <s>
    assert truth[1].tolist() == [41, *[4] * recipe.room, 0, 60, 2, 1, 1]
    assert not hidden[truth < 5].any()
    assert (ids[hidden] == 4).all()
    assert (ids[~hidden] == truth[~hidden]).all()
    whole = torch.cat([train.batch(rows * 200, recipe, torch.Generator().manual_seed(1), 4)[2][:, 2 + recipe.room]])
    assert 0.4 < whole.float().mean() < 0.6


def test_the_loss_is_that_of_the_whole_model(modules, trained):
    from transformers import RobertaForMaskedLM

    _, train = modules
    model = RobertaForMaskedLM.from_pretrained(trained[0])
    rows = [([0, 50, 51, 52, 2], 40), ([0, 60, 2], 41)]
    ids, truth, hidden = train.batch(rows, train.SMOKE, torch.Generator().manual_seed(0), 4)
    labels = truth.masked_fill(~hidden, -100)
    expected = model(input_ids=ids, attention_mask=(truth != 1).long(), labels=labels).loss
    torch.testing.assert_close(train.loss_of(model, ids, truth, hidden), expected)


def test_names_are_counted_text_by_text(modules, trained):
    """The share of texts whose masked name is filled rightly, one forward per text."""
    from transformers import AutoTokenizer, RobertaForMaskedLM

    _, train = modules
    out, texts, report = trained
    model, tokenizer = RobertaForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    every = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in LABELS]
    some, right = texts["test"][:70], 0
    for t in some:
        ids = torch.tensor([[*[tokenizer.mask_token_id] * 9, *tokenizer(t.text)["input_ids"]]])
        with torch.no_grad():
            right += LABELS[int(model(input_ids=ids).logits[0, 0, every].argmax())] in t.labels
    assert train.named(model, tokenizer, some, 8) == pytest.approx(right / len(some))
    assert report["names_recovered"]["test"] == train.named(model, tokenizer, texts["test"], 8)


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
    assert set(report["rsa"]["controls"]) == {"words of the texts", "embedding of the name"}
    assert report["rsa"]["human"]["lo"] <= report["rsa"]["human"]["hi"]
    assert {"lower", "upper"} <= set(report["rsa"]["reliability_over_seeds"])
    assert report["tuned"]["ci95"][0] <= report["tuned"]["mean"] <= report["tuned"]["ci95"][1]
    assert set(report["neurons"]["significant"]) == set(pd.read_csv(SMALL["ratings"]).columns[1:])
    assert report["neurons"]["test"] == "max-statistic"
    assert report["neurons"]["mantel"]["by_chance"] == pytest.approx(0.05 * (96 - report["neurons"]["undefined"]))
    acts = et.open_activations(done / "activations.zarr")
    assert list(report["apart"]) == report["emotions"]
    mean = {e: acts.sel("neuron", layer=1, emotion=e).values.mean(0) for e in report["emotions"]}
    rest = np.mean([v for e, v in mean.items() if e != "fear"], axis=0)
    cosine = mean["fear"] @ rest / np.linalg.norm(mean["fear"]) / np.linalg.norm(rest)
    assert report["apart"]["fear"]["1"] == pytest.approx(1 - cosine, rel=1e-3, abs=1e-6)
    table = pd.read_csv(done / "tables" / "masked_accuracy.csv", keep_default_na=False)
    assert len(table) == 8 * (1 + 14 + 2)
    page = (done / "report.html").read_text(encoding="utf-8")
    assert "How far the neurons of an emotion" in page
    (k,) = report["masks"]["k"]
    for name in ("prompts", "rdms", "selective_neurons", f"top_neurons_{k}", f"masked_{k}", f"human_link_{k}"):
        assert f'id="figure-{name}"' in page
        assert (done / "figures" / f"{name}.png").is_file()


def flat(value, name=""):
    """Every value of nested JSON under its path."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, one in items for k, v in flat(one, f"{name}/{key}").items()}
    return {name: value}


def test_the_same_command_continues_and_another_is_refused(modules, trained, done, monkeypatch, undrawn):
    def never(*_):
        raise AssertionError("tuned again")

    files = [done / "tables" / f"{name}.csv" for name in ("prompts", "masked_accuracy", "selective_neurons")]
    before, tables = flat(json.loads((done / "report.json").read_text())), [f.read_bytes() for f in files]
    monkeypatch.setattr("emotrace.prompt_tuning.jobs.tune", never)
    monkeypatch.setattr("emotrace.prompt_tuning.masked._measured", never)
    modules[0].main(model=str(trained[0]), texts=trained[0], out=done, **SMALL)
    assert [f.read_bytes() for f in files] == tables
    assert flat(json.loads((done / "report.json").read_text())) == pytest.approx(before, abs=1e-9, nan_ok=True)
    with pytest.raises(EmotraceError, match="draws: 2 there, 3 now"):
        modules[0].main(model=str(trained[0]), texts=trained[0], out=done, **{**SMALL, "draws": 3})


WRONG = (
    ({"emotions": "joy,jpy"}, "unknown emotion 'jpy'"),
    ({"k": "many"}, "--k many: give numbers"),
    ({"k": "9e9"}, "the model has 96 neurons"),
    ({"how": "noise"}, "--how"),
    ({"position": "first"}, "--position"),
    ({"preset": "goemotions"}, "Choices: model_emotion"),
    ({"emotions": "joy,fear"}, "at least 4"),
)


def test_bad_arguments_are_refused(modules, trained, tmp_path):
    for i, (options, message) in enumerate(WRONG):
        with pytest.raises(EmotraceError, match=message):
            modules[0].main(model=str(trained[0]), texts=trained[0], out=tmp_path / str(i), **{**SMALL, **options})


def test_the_preset_is_the_published_protocol(modules):
    study = modules[0].study
    plan, whole = study.Protocol.of("model_emotion"), preset("model_emotion")
    assert (plan.rule, plan.level, plan.decimals) == ("published", 0.01, None)
    assert (plan.draws, plan.match, plan.shared, plan.part) == (1, "none", False, "dev")
    assert (plan.seeds, plan.k, plan.eval_batch) == (whole["seeds"], whole["masking"]["k"], 100)
    assert study.Protocol.of("model_emotion", draws=5, how=None).draws == 5
    assert (plan.neuron_permutations, plan.link) == (0, "emotion")
    assert (study.Protocol.of(None).neuron_permutations, study.Protocol.of(None).link) == (1000, "attribute")


def test_the_preset_runs_as_published(modules, trained, tmp_path, undrawn):
    """Its way of correcting, choosing and averaging, on a small model with few epochs."""
    changes = {
        "preset": "model_emotion",
        "seeds": "1",
        "k": "5",
        "draws": None,
        "words": "negative,positive",
        "limit": None,
    }
    modules[0].main(model=str(trained[0]), texts=trained[0], out=tmp_path / "run", **{**SMALL, **changes})
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["neurons"]["test"] == "asymptotic, FDR (published)"
    link = report["human_link"]
    assert not link or "df" in link[0]
    assert report["part"] == "dev"
    table = pd.read_csv(tmp_path / "run" / "tables" / "masked_accuracy.csv", keep_default_na=False)
    assert len(table) == 4 * (1 + 14 + 14)  # each attribute has one random mask of its own
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["recipe"]["negatives"] == "contaminated"
    assert manifest["eval_batch"] == 100


def test_a_decoder_is_searched_at_the_last_token_of_plain_sentences(modules, trained, tmp_path, undrawn):
    options = {"position": "last", "seeds": "1", "words": "-,+", "limit": 3, "draws": 1}
    tiny.save("llama", tmp_path / "model")
    modules[0].main(model=str(tmp_path / "model"), texts=trained[0], out=tmp_path / "run", **{**SMALL, **options})
    masks = json.loads((tmp_path / "run" / "masks" / "masks.json").read_text())
    assert masks["attrs"]["ranking_activations_position"] == "last"
    assert (tmp_path / "run" / "figures" / "top_neurons_14.png").is_file()
