"""Acceptance: which way of asking is taken, why one is not, and that it takes no emotion out."""

from pathlib import Path

import pytest

import emotrace as et
from emotrace import acceptance, replies
from emotrace.datasets import Skeleton, elicitations, read_elicitations
from emotrace.evaluation import Evaluation
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.testing import tiny

EVENTS = {"positive": "It went well.", "neutral": "It went on.", "negative": "It went wrong."}
ONE = [Skeleton("work_00", "Work/Job", "I sold the boat", EVENTS)]
NEW = 8


def shares(**values):
    """Shares of nine replies, 1 where nothing is said."""
    rows = [
        {"key": f"{e}{i}", "skeleton_id": str(i), "emotion": e, "valence": "neutral",
         "verdict": {"predicted": e, "match": int(i < 9 * values.get(e, 1))}}
        for e in EMOTIONS for i in range(9)
    ]  # fmt: skip
    return replies.accuracy_table(rows)["by_emotion"]


@pytest.fixture(scope="module")
def bare():
    """A model without a chat template."""
    model = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer(chat_template=None))
    model.sites.encoder.max_length = 4000
    return model


def told(monkeypatch, found):
    """What each way is taken as, and the ways asked about."""
    asked = []

    def accepted(study, way, prompts):
        asked.append(way.name)
        return found[way.name]

    monkeypatch.setattr(acceptance, "_accepted", accepted)
    return asked


def test_the_way_with_the_highest_mean_over_emotions_is_taken_and_all_are_shown(bare, monkeypatch):
    found = {
        "fewshot": shares(surprise=0, disgust=0),
        "fewshot_2": shares(surprise=0),
        "fewshot_3": shares(fear=0, anger=0),
    }
    asked = told(monkeypatch, found)
    tried = acceptance.tried(Evaluation(bare), elicitations("auto"), ONE, NEW)
    assert asked == ["fewshot", "fewshot_2", "fewshot_3"]
    assert "chat template" in tried[0].why_not
    assert acceptance.best(tried).way.name == "fewshot_2"
    record = acceptance.record(tried, "auto", 1)
    assert record["chosen"] == "fewshot_2"
    assert record["fewshot"]["accepted"]["surprise"]["value"] == 0
    assert {"value", "n", "ci95"} <= set(record["fewshot_2"]["accepted"]["anger"])
    assert record["spread"]["fear"] == {"lowest": 0, "highest": 1, "n_sets": 3}
    assert "surprise 0/9" in acceptance.said(tried)[1]


def test_a_model_without_a_template_is_told_to_take_few_shot(bare):
    with pytest.raises(EmotraceError, match=r"instruct: it needs a chat template.*--elicit fewshot"):
        acceptance.tried(Evaluation(bare), elicitations("instruct"), ONE, NEW)


def test_prompts_that_do_not_fit_or_end_in_another_token_are_no_way(bare, monkeypatch, tmp_path):
    monkeypatch.setattr(bare.sites.encoder, "max_length", 100)
    assert "the model takes at most 100" in acceptance.unfit(bare, elicitations("fewshot")[0], ONE, NEW)
    monkeypatch.setattr(bare.sites.encoder, "max_length", 1200)
    assert "do not fit the 1200 positions" in acceptance.unfit(bare, elicitations("fewshot")[0], ONE, 400)
    path = tmp_path / "own.json"
    path.write_text('{"asked": "{scenario} {event} {emotion}", "plain": "{event} {scenario}"}')
    with pytest.raises(EmotraceError, match="end alike"):
        read_elicitations(path)


def test_the_shipped_model_takes_the_instruction(tmp_path):
    model = et.load(str(Path(__file__).parents[1] / "data" / "tiny_model"))
    study = Evaluation(model, et.judges.make("lexicon"), tmp_path, decoding={"max_new_tokens": 16}, progress=False)
    tried = acceptance.tried(study, elicitations("auto"), et.datasets.read_sev("data/sev.jsonl")[:1], 16)
    assert acceptance.best(tried).way.name == "instruct"
    assert tried[0].mean > acceptance.ENOUGH
    assert {one.why_not for one in tried[1:]} == {"instruct reached 90%"}
    assert len((tmp_path / "elicit_instruct.jsonl").read_text().splitlines()) == 18


def test_an_emotion_that_is_not_elicited_stays_in_every_other_figure():
    accepted = shares(surprise=0.3)
    assert acceptance.elicited(accepted) == [e for e in EMOTIONS if e != "surprise"]
    rows = [
        {"key": e, "skeleton_id": "a", "emotion": e, "valence": "neutral", "method": "steer", "meta": {"fluent": True},
         "verdict": {"predicted": e, "match": int(e == "surprise")}}
        for e in EMOTIONS
    ]  # fmt: skip
    beside = acceptance.over_elicited(rows, accepted)
    assert beside["accuracy"]["steer"]["value"] == 0
    assert beside["accuracy"]["steer"]["n"] == 5
    assert replies.accuracy_over_draws(rows)["overall"]["n"] == 6
