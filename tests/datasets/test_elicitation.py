"""Elicitation: prompts of every way to ask, their plain counterparts, files of one's own, and the worked examples that ship."""

import json
from pathlib import Path

import pytest

from emotrace.datasets import Skeleton, card, elicitation, elicitations, read_elicitations, read_jsonl, read_sev, sev
from emotrace.labels import EMOTIONS, EmotraceError

DATA = Path(__file__).resolve().parents[2] / "data"
ONE = [Skeleton("work_00", "Work/Job", "I sold {it}", {"neutral": "It rained."})]
OWN = {"asked": "{scenario}. {event} My {emotion} answer: ", "plain": "{scenario}. {event} My answer: "}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_instruct_is_what_was_published():
    (asked,) = sev(ONE, emotions=["anger"])
    assert [m["content"] for m in asked.messages] == [
        "Always reply in anger.\nKeep the reply to at most two sentences.",
        "I sold {it}\nIt rained.",
    ]
    (plain,) = sev(ONE, instruction=False)
    assert plain.messages[0]["content"] == "Keep the reply to at most two sentences."
    assert "elicitation" not in asked.labels


def test_few_shot_goes_on_after_the_examples_and_its_plain_counterpart_names_no_emotion_there():
    way = elicitation("fewshot")
    (asked,) = sev(ONE, emotions=["fear"], elicit=way)
    (plain,) = sev(ONE, instruction=False, elicit="fewshot")
    asked_end, plain_end = (p.text.removeprefix(way.asked.split("{scenario}")[0]) for p in (asked, plain))
    assert asked_end == 'I sold {it}. It rained.\nFrightened reaction: "'
    assert plain_end == 'I sold {it}. It rained.\nReaction: "'
    assert all(f'\n{way.words[e].capitalize()} reaction: "' in plain.text for e in EMOTIONS)
    assert asked.labels["elicitation"] == plain.labels["elicitation"] == f"fewshot@{way.digest}"
    assert (asked.key, plain.key) == ("work_00__neutral__fear", "work_00__neutral")
    assert way.stop[0] == '"'


def test_the_digest_is_of_what_is_asked_and_not_of_the_name(tmp_path):
    a, b = (read_elicitations(write(tmp_path / f"{name}.json", OWN))[0] for name in "ab")
    assert (a.name, b.name) == ("a", "b")
    assert a.digest == b.digest
    for change in ({"stop": ["."]}, {"words": {"anger": "angry"}}, {"plain": OWN["plain"].replace("My", "Our")}):
        assert read_elicitations(write(tmp_path / "c.json", OWN | change))[0].digest != a.digest
    found = {one.digest for one in elicitations()}
    assert len(found) == len(elicitations()) >= 4


def test_a_file_of_ones_own_may_ask_by_messages_in_other_words_and_of_other_emotions(tmp_path):
    user = {"role": "user", "content": "{scenario} {event}"}
    asked = [{"role": "system", "content": "{examples}{Emotion}!"}, user]
    plain = [{"role": "system", "content": "{examples}"}, user]
    examples = [{"emotion": "pride", "scenario": "I ran.", "event": "I won.", "reply": "I did it."}]
    own = {
        "asked": asked,
        "plain": plain,
        "words": {"pride": "proud"},
        "example": "{Emotion}: {reply} ",
        "examples": examples,
    }
    way = elicitation(write(tmp_path / "own.json", own))
    assert way.chat
    first, second = sev(ONE, emotions=["pride", "awe"], elicit=way)
    assert first.messages[0]["content"] == "Proud: I did it. Proud!"
    assert second.messages[0]["content"] == "Proud: I did it. Awe!"


def test_the_ways_that_compete():
    names = [one.name for one in elicitations("auto")]
    assert names[:2] == ["instruct", "fewshot"]
    assert [one.name for one in elicitations("fewshot")] == names[1:]
    assert len(names) >= 4
    assert [one.name for one in elicitations("fewshot_2")] == ["fewshot_2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "JSON object"),
        ({"asked": OWN["asked"]}, "'plain' is missing"),
        (OWN | {"stops": []}, "stops"),
        (OWN | {"stop": '"'}, "stop is a list"),
        (OWN | {"words": ["angry"]}, "words maps"),
        (OWN | {"asked": "{scenario} {event}: "}, "{emotion} or {Emotion}"),
        (OWN | {"plain": "{scenario} {event} {emotion}: "}, "plain has {emotion}"),
        (OWN | {"plain": "{scenario} {event}"}, "end alike"),
        (OWN | {"examples": [{"emotion": "fear"}]}, "example 1"),
        (OWN | {"examples": [dict.fromkeys(("emotion", "scenario", "event", "reply"), "x")]}, "examples need example"),
        (OWN | {"examples": [], "sets": {"a": []}}, "one of them"),
        (OWN | {"asked": 3}, "a text or a list"),
    ],
)
def test_a_broken_file_is_refused_by_name(content, said, tmp_path):
    path = write(tmp_path / "own.json", content)
    with pytest.raises(EmotraceError, match=said.replace("{", r"\{")) as error:
        elicitation(path)
    assert "own" in str(error.value)


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(EmotraceError, match=r"fewshots.*auto, instruct, fewshot"):
        elicitation("fewshots")


def test_the_worked_examples_are_in_no_other_set():
    sets = [one.examples for one in elicitations("fewshot")]
    assert all({e.emotion for e in examples} == set(EMOTIONS) for examples in sets)
    scenarios = [e.scenario for examples in sets for e in examples]
    told = [f"{e.scenario} {e.event}" for examples in sets for e in examples]
    skeletons = [s for name in ("sev.jsonl", "test_set.jsonl") for s in read_sev(DATA / name)]
    corpus = {r.get("scenario") or r["text"] for _, r in read_jsonl(DATA / "tiny_corpus.jsonl")}
    assert len(set(told)) == len(told)
    assert max(card.nearest(scenarios)).jaccard < 0.35
    assert max(card.nearest(scenarios, [*(s.scenario for s in skeletons), *corpus])).jaccard < 0.35
    assert max(card.nearest(told, [card.whole(s) for s in skeletons])).jaccard < 0.2
    assert not card.EMOTION_WORDS.search(" ".join(told))
