"""Answers: what a chat completion says, and nothing that it was only thinking.

An answer counts if the text that was spoken holds one answer: JSON objects with the field, all of the same mind. Thinking is left
out in whatever way it is marked; thinking that was cut off leaves no answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from emotrace.judges.questions import JudgeQuestion
from emotrace.labels import ALIASES
from emotrace.texts import integer

CUT: Final = ("length", "max_tokens", "model_length", "max_output_tokens", "token_limit")
"""Reasons to finish that mean: the answer was longer than allowed."""
FILTERED: Final = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content")
_NAME = (
    r"(?:think|thinking|thoughts?|reasoning|rationale|reflection|analysis|scratchpad|cot|chain[-_]of[-_]thought|deliberation"
    r"|(?:internal|inner)[-_]?(?:monologue|thoughts?)|monologue|draft|planning|brainstorm\w*)"
)
_LESS, _MORE = r"(?:<|&lt;)\|?", r"\|?(?:>|&gt;)"
_OPENS = re.compile(
    rf"(?i:{_LESS}(?:start_|begin_of_)?(?:seed:)?{_NAME}(?:\s[^<>]*)?{_MORE}|◁{_NAME}▷|<unused94>)|\[THINK\]"
)
_CLOSES = re.compile(rf"(?i:{_LESS}(?:/|end_of_|end_)(?:seed:)?{_NAME}\s*{_MORE}|◁/{_NAME}▷|<unused95>)|\[/THINK\]")
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|^\W*analysis(?=\S).*assistantfinal", re.DOTALL
)
_CHANNEL = re.compile(r"<\|channel\|>|^\W*(?:analysis|commentary)(?=[A-Z{\"])")
_FENCE = re.compile(r"\s*(?:```\w*\s*)?")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.0*)?")
_TRIES: Final = 200


class MalformedError(Exception):
    """The endpoint answered, but not the question; ``cut`` where it had no room to."""

    def __init__(self, why: str, cut: bool = False) -> None:
        super().__init__(why)
        self.cut = cut


class FilteredError(Exception):
    """The endpoint kept its answer to this text back."""


class _Twice:
    """In the place of a value that an object gives twice, differently."""


def read_answer(question: JudgeQuestion, choice: Mapping[str, Any]) -> tuple[Any, str]:
    """Answer and reason in a choice of a chat completion; the content may be fenced, or stand among other words.

    Raises:
        MalformedError: says what is wrong with it.
        FilteredError: where the endpoint says that it took the answer back.
    """
    finish = str(choice.get("finish_reason") or "").lower()
    cut = finish in CUT
    if finish in FILTERED:
        raise FilteredError(f"finish_reason {finish}")
    message = choice["message"]
    if message.get("refusal"):
        raise MalformedError(f"refusal: {shown(message['refusal'])}")
    content = _content(message.get("content"), question)
    if isinstance(content, str):
        if not content.strip():
            raise MalformedError(_nothing(message, finish), cut)
        objects = _spoken(content, cut)
    else:
        objects = [content]
    named = [(found, name) for found in objects for name in found if name.strip().lower() == question.field]
    if not objects:
        raise MalformedError(f"not a JSON object: {shown(content)}", cut)
    if not named:
        raise MalformedError(f"no field {question.field!r} in {shown(objects[0])}", cut)
    answers = [_answer(question, found[name]) for found, name in named]
    if any(answer != answers[0] for answer in answers):
        raise MalformedError(f"several answers: {', '.join(shown(found[name]) for found, name in named)}", cut)
    reason = next((found[name] for found, _ in named for name in found if name.strip().lower() == "reason"), None)
    return answers[0], shown(reason) if reason else "no reason given"


def shown(value: object) -> str:
    """A value in a message: a text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=lambda _: "given twice, differently")
    except (RecursionError, ValueError):
        return "(nested too deeply)"


def _content(content: object, question: JudgeQuestion) -> str | dict[str, Any]:
    """The text of a message: as it is, or of the parts of it that are spoken; an object may be the answer itself."""
    if isinstance(content, dict) and any(str(name).strip().lower() == question.field for name in content):
        return content
    out = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, dict) and part.get("thought") is True:
            continue
        elif isinstance(part, dict) and part.get("type", "text") in ("text", "output_text", "message"):
            text = part.get("text", part.get("content"))
            text = text.get("value") if isinstance(text, dict) else text
            out += [text] if isinstance(text, str) else []
        elif isinstance(part, dict) and part.get("type") == "refusal":
            raise MalformedError(f"refusal: {shown(part.get('refusal'))}")
    return "".join(out)


def _nothing(message: Mapping[str, Any], finish: str) -> str:
    """Why a message has no content."""
    if message.get("tool_calls") or message.get("function_call"):
        return "it called a tool instead"
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details", "thinking"))
    return f"{'only thinking, no answer' if thought else 'empty content'} (finish_reason {finish!r})"


def _spoken(content: str, cut: bool) -> list[dict[str, Any]]:
    """The JSON objects of a text that was spoken.

    Of a text that was cut, only one that begins with its answer: what comes before may be thinking that nothing marks.

    Raises:
        MalformedError: where nothing but thinking is there.
    """
    channels = list(_FINAL.finditer(content))
    if channels:
        content = content[channels[-1].end() :].partition("<|channel|>")[0]
    elif _CHANNEL.search(content):
        raise MalformedError(f"only thinking, no answer: {content}", cut)
    objects = _objects(content)
    spans = [(start, end) for start, end, _ in objects]
    begin = max((end for _, end in _outside(_CLOSES, content, spans)), default=0)
    stop = min((start for start, _ in _outside(_OPENS, content, spans) if start >= begin), default=len(content))
    kept = [(start, found) for start, _, found in objects if begin <= start < stop]
    if stop < len(content) and not kept:
        raise MalformedError(f"the thinking does not end: {content}", cut)
    leading = _FENCE.match(content, begin)
    if cut and kept and leading is not None and kept[0][0] != leading.end():
        raise MalformedError(f"cut off: {content}", cut)
    return [found for _, found in kept]


def _outside(pattern: re.Pattern[str], text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where a pattern stands outside the spans; within, it is part of an answer's words."""
    found = [m.span() for m in pattern.finditer(text)]
    return [(start, end) for start, end in found if not any(a <= start < b for a, b in spans)]


def _objects(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """Every JSON object in a text, with its place, none inside another."""
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=integer, strict=False)
    out: list[tuple[int, int, dict[str, Any]]] = []
    end = 0
    for nth, brace in enumerate(re.finditer(r"\{", text)):
        if nth >= _TRIES:
            break
        if brace.start() >= end:
            try:
                found, end = decoder.raw_decode(text, brace.start())
            except (ValueError, RecursionError):
                continue
            out.append((brace.start(), end, found))
    return out


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        out[name] = _Twice() if name in out and out[name] != value else value
    return out


def _answer(question: JudgeQuestion, given: object) -> str | int:
    """The choice that a value means: in any case, between quotes and marks, by its alias, or as a number.

    Raises:
        MalformedError: where it means none.
    """
    one = given[0] if isinstance(given, list) and len(given) == 1 else given
    words: dict[str, Any] = {str(choice).lower(): choice for choice in question.choices}
    if isinstance(question.choices[0], int):
        words |= {"true": 1, "false": 0} if question.choices == (0, 1) else {}
        word = str(one).strip().strip("\"'`").strip().lower() if isinstance(one, (str, int, float)) else ""
        word = str(int(float(word))) if _WHOLE_NUMBER.fullmatch(word) else word
    else:
        words |= {alias: name for alias, name in ALIASES.items() if name in words}
        word = (
            re.sub(r"^[\W_]+|[\W_]+$", "", unicodedata.normalize("NFKC", one).lower()) if isinstance(one, str) else ""
        )
    if word not in words:
        raise MalformedError(f"{question.field} {shown(given)!r} is none of {', '.join(map(str, question.choices))}")
    return words[word]
