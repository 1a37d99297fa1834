"""Measures of one reply, ratings, probabilities: against counts by hand, and proxies that say so."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import judges, scoring
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from emotrace.suite import EmotionClassifier, measure, measures, overlap, raters
from emotrace.testing import openai_server as srv
from tests.helpers import loaded
from tests.judges.test_classifier import LABELS, PLANT, build

ROWS = [
    {"key": "a", "method": "none", "emotion": "anger", "gen_text": "the rage", "query": "Was the bus late?"},
    {"key": "b", "method": "none", "emotion": "joy", "gen_text": "joyful bus", "query": "Was the bus late?"},
    {"key": "c", "method": "none", "emotion": "fear", "gen_text": "  ", "query": "Was the bus late?"},
]


def test_of_text_by_hand():
    found = measures.of_text({"gen_text": "No no no! As an AI I can't.</s>", "token_ids": [5, 6, 7, 5, 6, 7]})
    assert found["words"] == 8
    assert found["tokens"] == 6
    assert found["distinct_1"] == 7 / 8  # no, no!, as, an, ai, i, can't: "no" twice
    assert found["repetition"] == 1 / 4
    assert (found["exclamations"], found["disclaimer"], found["empty"]) == (1, 1, 0)
    empty = measures.of_text({"gen_text": "<eos> "})
    assert (empty["empty"], empty["words"], empty["repetition"]) == (1, 0, 0)
    assert math.isnan(empty["distinct_1"])
    assert math.isnan(empty["tokens"])
    assert measures.of_text({"gen_text": "a b c A B c"})["repetition"] == 1 / 4
    assert measures.of_text({"gen_text": "As a digital assistant, no."})["disclaimer"] == 0
    assert measures.of_text({"gen_text": "As a digital assistant, no."})["disclaimer_wide"] == 1
    profile = measures.of_text({"gen_text": "I am furious and angry!"})
    assert max(measures.PROFILE, key=lambda n: profile[n]) == "lexicon_anger"
    with pytest.raises(EmotraceError, match="gen_text"):
        measures.of_text({"key": "x"})


def test_overlap_is_the_share_of_the_querys_content_words():
    assert overlap("Buses are late, I know.", "Why was the bus late again?") == 0.5  # buses is not bus
    assert overlap("The bus! The bus!", "How do you feel about the bus?") == 1
    assert overlap("Cake.", "How do you feel about the bus?") == 0
    assert math.isnan(overlap("Cake.", "How do you feel?"))
    assert overlap("dogs", "dog") == overlap("dog", "dogs") == 1


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlap_is_a_share_and_whole_for_itself(reply, query):
    value = overlap(reply, query)
    assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(value) or overlap(query, query) == 1


def test_proxies_say_that_they_are():
    assert raters.make("topic").name.startswith("proxy:")
    assert raters.make("intensity").name.startswith("proxy:")
    strong, weak = (
        r["value"]
        for r in raters.make("intensity").rate(["I am furious, so angry!", "The bus came at nine."], ["anger"] * 2)
    )
    assert strong > weak == 0
    for what, spec in (("topics", "proxy"), ("topic", "lexicon")):
        with pytest.raises(EmotraceError, match="unknown"):
            raters.make(what, spec)
    with pytest.raises(EmotraceError, match="Choices"):
        raters.make("intensity").rate(["x"], ["boredom"])


def answers(value):
    message = {"role": "assistant", "content": json.dumps({"rating": value, "reason": "so"})}
    return srv.Reply(
        body=json.dumps(
            {"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        ).encode()
    )


def test_an_endpoint_rates_on_a_scale_and_texts_are_never_searched_for_places(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with srv.OpenAIServer([answers(3), answers(9), answers(9), answers(9)]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        rater = raters.make("topic", "openai:some", backoff=0.001, concurrency=1)
        one, two = rater.rate(["a {asked} reply", "b"], ["a {text} query", "q"])
        assert one == {"value": 0.75, "judge": "openai:some", "reason": "so"}
        assert two["value"] is None
        assert "malformed" in two["reason"]
        assert server.requests[0].text == "Question:\na {text} query\n\nReply:\na {asked} reply"
        assert server.requests[0].body["response_format"]["json_schema"]["schema"]["properties"]["rating"]["enum"] == [
            0, 1, 2, 3, 4,
        ]  # fmt: skip
        rater.close()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return EmotionClassifier(build(tmp_path_factory.mktemp("planted"), LABELS, plant=PLANT), batch_size=2)


def test_probabilities_are_of_the_output_and_labels_that_are_missing_are_errors(planted, tmp_path):
    p = planted.table(["the rage", "tears", "", "plain"])
    np.testing.assert_allclose(p[[0, 1, 3]].sum(1), 1)
    assert np.isnan(p[2]).all()
    joyful = float(planted.table(["joyful"])[0, 2])
    assert planted.probability(["joyful", "joyful"], ["joy", "happiness"]).tolist() == pytest.approx([joyful] * 2)
    assert joyful > 0.9
    with pytest.raises(EmotraceError, match="admiration"):
        planted.probability(["x"], ["admiration"])
    wide = EmotionClassifier(build(tmp_path, ["admiration", "anger", "joy", "other"]), label_map={"other": "neutral"})
    assert wide.has_neutral
    assert wide.columns("admiration") == [0]
    assert wide.columns("neutral") == [3]
    with pytest.raises(EmotraceError, match="LABEL_9"):
        EmotionClassifier(tmp_path, label_map={"LABEL_9": "anger"})


def test_a_table_equals_transformers_own_forward(planted):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = planted.name.removeprefix("classifier:")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path)
    for text in ("the rage", "a spooky tears the"):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
        np.testing.assert_allclose(planted.table(["odd", text])[1], torch.softmax(logits, -1).numpy(), atol=1e-6)


def test_measure_puts_all_of_them_into_the_rows(planted):
    lm = loaded()
    rows = [{**row, "token_ids": [40 + i, 41][: 2 - i // 2]} for i, row in enumerate(ROWS)]
    found = measure(
        rows, model=lm, judge=judges.make("lexicon"), topic=raters.make("topic"), intensity=raters.make("intensity"),
        classifier=planted, progress=False,
    )  # fmt: skip
    assert [row["measures"]["topic"] for row in found[:2]] == [0, 0.5]
    assert math.isnan(found[2]["measures"]["topic"])  # nothing to rate in an empty text
    assert found[0]["measures"]["emotion_probability"] > 0.9
    assert found[0]["measures"]["emotional_probability"] > 0.9
    assert math.isnan(found[2]["measures"]["emotion_probability"])
    assert found[1]["measures"]["on_target"] == 1
    assert found[0]["ratings"]["topic"]["judge"] == "proxy:content-words"
    chat = Prompts.of([[{"role": "user", "content": "Was the bus late?"}]])
    ids = lm.sites.encoder.ids(chat)[0]
    wanted, *_ = scoring.perplexity(lm, [{"token_ids": ids, "reply_ids": row["token_ids"]} for row in rows])
    assert found[0]["measures"]["perplexity"] == wanted
    assert found[0]["measures"]["nats_per_token"] == pytest.approx(math.log(wanted))
    assert "measures" not in rows[0]


class Counting:
    name = "counting"

    def __init__(self):
        self.asked = []

    def rate(self, texts, asked, *, progress=False):
        self.asked += texts
        return [{"value": 0.5, "judge": self.name, "reason": ""} for _ in texts]


def test_ratings_are_kept_and_not_asked_for_twice(tmp_path):
    rater = Counting()
    rows = [*ROWS, {**ROWS[0], "key": "d"}]
    first = measure(rows, topic=rater, out=tmp_path, progress=False)
    assert rater.asked == ["the rage", "joyful bus"]
    assert repr(measure(rows, topic=rater, out=tmp_path, progress=False)) == repr(first)
    assert len(rater.asked) == 2
    with pytest.raises(EmotraceError, match=r"ratings_topic\.jsonl: the rating of row 'a' .*text: "):
        measure([{**rows[0], "gen_text": "other"}], topic=rater, out=tmp_path, progress=False)


def test_a_verdict_or_perplexity_of_another_text_is_not_kept():
    lm, judge = loaded(), judges.make("lexicon")
    rows = [{**ROWS[0], "token_ids": [40, 41]}]
    found = measure(rows, model=lm, judge=judge, progress=False)
    other = measure([{**found[0], "token_ids": [50, 41]}], model=lm, judge=judge, progress=False)
    fresh = measure([{**rows[0], "token_ids": [50, 41]}], model=lm, judge=judge, progress=False)
    assert other[0]["meta"]["perplexity"] == fresh[0]["meta"]["perplexity"] != found[0]["meta"]["perplexity"]
    with pytest.raises(EmotraceError, match=r"row 'a': its verdict .*text: "):
        measure([{**found[0], "gen_text": "joyful bus"}], judge=judge, progress=False)


def test_what_a_measure_needs_is_said():
    bare = [{"key": "a", "method": "none", "gen_text": "x"}]
    with pytest.raises(EmotraceError, match="no rows"):
        measure([])
    with pytest.raises(EmotraceError, match="'query'"):
        measure(bare, topic=raters.make("topic"), progress=False)
    with pytest.raises(EmotraceError, match="token_ids"):
        measure(bare, model=loaded(), progress=False)
