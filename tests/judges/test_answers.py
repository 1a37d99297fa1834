"""What counts as an answer, and what does not."""

import json
from typing import Any

import pytest

from emotrace.judges.answers import FilteredError, MalformedError, read_answer
from emotrace.judges.questions import BLIND, TARGET, JudgeQuestion
from emotrace.suite.raters import INTENSITY

FEAR, ANGER = '{"emotion": "fear", "reason": "x"}', '{"emotion": "anger", "reason": "y"}'


def read(content: Any, finish: str = "stop", question: JudgeQuestion = BLIND, **message: Any) -> Any:
    try:
        return read_answer(question, {"finish_reason": finish, "message": {"content": content, **message}})[0]
    except MalformedError:
        return None


THOUGHT = {
    "think": f"<think>{ANGER}</think>{FEAR}",
    "opened by the template": f"It may be {ANGER}</think>\n{FEAR}",
    "thinking": f"<thinking>\n{ANGER}\n</thinking>\n{FEAR}",
    "capitals": f"<THINK>{ANGER}</THINK>{FEAR}",
    "attributes": f'<reasoning effort="high">{ANGER}</reasoning>{FEAR}',
    "tokens": f"<|begin_of_thought|>{ANGER}<|end_of_thought|>{FEAR}",
    "Cohere": f"<|START_THINKING|>{ANGER}<|END_THINKING|><|START_RESPONSE|>{FEAR}<|END_RESPONSE|>",
    "Mistral": f"[THINK]{ANGER}[/THINK]{FEAR}",
    "Seed": f"<seed:think>{ANGER}</seed:think>{FEAR}",
    "Kimi": f"◁think▷{ANGER}◁/think▷{FEAR}",
    "Gemma": f"<unused94>thought {ANGER}<unused95>{FEAR}",
    "escaped": f"&lt;think&gt;{ANGER}&lt;/think&gt;{FEAR}",
    "channels": f"<|channel|>analysis<|message|>{ANGER}<|end|><|start|>assistant<|channel|>final<|message|>{FEAR}<|return|>",
    "channels without marks": f"analysisIt may be {ANGER}assistantfinal{FEAR}",
    "twice": f"<think>a</think><think>{ANGER}</think>{FEAR}",
}


@pytest.mark.parametrize("content", THOUGHT.values(), ids=THOUGHT)
def test_what_was_spoken_counts_and_what_was_thought_does_not(content: str) -> None:
    assert read(content) == "fear"
    thinking = content.replace(FEAR, "")
    assert read(thinking) is None
    for end in range(len(content) - len(FEAR)):  # the thinking may be cut off anywhere
        assert read(content[:end], "length") is None


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (FEAR, "fear"),
        (FEAR + " and so on and", "fear"),
        (f"```json\n{FEAR}", "fear"),
        (f"<think>hm</think>\n\n{FEAR} That", "fear"),
        (f"Perhaps {FEAR}, or", None),
        (FEAR[:-1], None),
    ],
)
def test_a_cut_answer_counts_where_it_begins_with_a_whole_one(content: str, answer: str | None) -> None:
    assert read(content, "length") == answer
    assert read(content, "MAX_TOKENS") == answer


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ([{"type": "text", "text": FEAR}], "fear"),
        ([{"type": "thinking", "thinking": ANGER}, {"type": "text", "text": FEAR}], "fear"),
        ([{"type": "reasoning", "text": ANGER}], None),
        ([{"type": "text", "text": FEAR[:12]}, {"type": "text", "text": FEAR[12:]}], "fear"),
        ([{"type": "output_text", "text": {"value": FEAR}}], "fear"),
        ([FEAR], "fear"),
        ([{"type": "refusal", "refusal": "no"}, {"type": "text", "text": FEAR}], None),
        ({"type": "text", "text": FEAR}, "fear"),
        (json.loads(FEAR), "fear"),
        ([], None),
        (7, None),
    ],
)
def test_content_may_come_in_parts(content: Any, answer: str | None) -> None:
    assert read(content) == answer


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"content": None, "refusal": "I cannot"}, "refusal: I cannot"),
        ({"content": None, "tool_calls": [{"function": {"arguments": FEAR}}]}, "called a tool"),
        ({"content": None, "reasoning_content": FEAR}, "only thinking, no answer"),
        ({"content": "", "reasoning": FEAR}, "only thinking, no answer"),
        ({}, "empty content"),
        ({"content": FEAR.replace("fear", "melancholy")}, "'melancholy' is none of anger"),
        ({"content": f"{FEAR} or {ANGER}"}, "several answers: fear, anger"),
        ({"content": '{"emotion": "fear", "emotion": "anger"}'}, "given twice, differently"),
        ({"content": '{"emotion": ["fear", "anger"]}'}, "is none of"),
        ({"content": "{" * 100_000}, "not a JSON object"),
        ({"content": '{"emotion": ' * 50_000}, "not a JSON object"),
        ({"content": '{"emotion": ' + "9" * 5000 + "}"}, "is none of"),
    ],
)
def test_what_is_no_answer_says_why(message: dict[str, Any], why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        read_answer(BLIND, {"message": message})


def test_an_answer_that_the_endpoint_took_back_is_none() -> None:
    with pytest.raises(FilteredError, match="content_filter"):
        read_answer(BLIND, {"finish_reason": "content_filter", "message": {"content": FEAR}})


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ('" Fear. "', "fear"),
        ('"**Joy**"', "happiness"),
        ('"ＦＥＡＲ"', "fear"),
        ('"fear 😱"', "fear"),
        ('["fear"]', "fear"),
        ('"fearful"', None),
        ('"not fear"', None),
        ("null", None),
        ("1", None),
        ("{}", None),
    ],
)
def test_labels_are_read_in_any_dress_and_never_guessed(given: str, answer: str | None) -> None:
    assert read(f'{{"emotion": {given}}}') == answer
    assert read(f'{{" Emotion": {given}, "reason": {"[" * 900 + "]" * 900}}}') == answer


@pytest.mark.parametrize(
    ("given", "match", "rating"),
    [
        ("1", 1, 1), ("1.0", 1, 1), ('"1"', 1, 1), ('" 1. "', 1, 1), ("true", 1, None), ('"False"', 0, None), ("4", None, 4),
        ("-1", None, None), ('"-1"', None, None), ("0.5", None, None), ('".5"', None, None), ("1e400", None, None),
        ("NaN", None, None), ('"1/4"', None, None), ('"٣"', None, None), ("10", None, None),
    ],
)  # fmt: skip
def test_numbers_are_read_and_never_rounded(given: str, match: int | None, rating: int | None) -> None:
    assert read(f'{{"match": {given}}}', question=TARGET) == match
    assert read(f'{{"rating": {given}}}', question=INTENSITY) == rating


def test_the_same_answer_twice_is_one() -> None:
    assert read(f"{FEAR}\n```json\n{FEAR}\n``` {{text}}") == "fear"
    assert (
        read('{"emotion": "fear", "emotion": "fear", "reason": "<think> is a tag", "more": {"emotion": "anger"}}')
        == "fear"
    )
