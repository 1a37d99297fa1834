"""The OpenAI judge against a loopback endpoint that misbehaves in each known way."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from emotrace.judges.base import StreamingTargetJudge, is_final
from emotrace.judges.openai_compatible import OpenAIJudge
from emotrace.judges.questions import BLIND
from emotrace.judges.retries import Patience, retry_after
from emotrace.judges.rows import judge_rows
from emotrace.labels import ANSWERS, EmotraceError
from emotrace.runlog import Log
from emotrace.testing import openai_server as srv

KEY = "sk-test-0123456789abcdef"
Make = Callable[..., tuple[OpenAIJudge, srv.OpenAIServer]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    opened: list[Any] = []

    def build(
        *script: srv.Step, default: srv.Step | None = None, **options: Any
    ) -> tuple[OpenAIJudge, srv.OpenAIServer]:
        server = srv.OpenAIServer(script, default)
        server.__enter__()
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        judge = OpenAIJudge(**{"backoff": 0.001, "timeout": 5.0, "attempts": 4} | options)
        opened.extend((judge, server))
        return judge, server

    yield build
    for one in opened:
        one.__exit__(None, None, None)


def test_blind_question_shows_only_the_text_and_asks_for_one_of_seven(make: Make) -> None:
    judge, server = make(srv.says("anger", "shouting"))
    assert judge.judge(["Get {emotion} out! {text}"]) == [
        {"predicted": "anger", "judge": "openai:gpt-4o-mini", "reason": "shouting"}
    ]
    body = server.requests[0].body
    assert body["model"] == "gpt-4o-mini"
    assert (body["temperature"], body["seed"]) == (0, 0)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "Text:\nGet {emotion} out! {text}"
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["properties"]["emotion"]["enum"] == list(ANSWERS)
    assert form["schema"]["required"] == ["emotion", "reason"]
    assert isinstance(judge, StreamingTargetJudge)


def test_target_question_has_the_published_wording(make: Make) -> None:
    judge, server = make(srv.matches(1), srv.matches(0), srv.matches(True), srv.matches("0"), concurrency=1)
    got = judge.judge_target(["a", "b", "c", "d"], ["anger", "joy", "fear", "fear"])
    assert [v["match"] for v in got] == [1, 0, 1, 0]
    system, user = (m["content"] for m in server.requests[0].body["messages"])
    assert system == (
        "You are a careful rater.\nGiven a target emotion and a text,\ndecide if the text's STYLE matches the target "
        "emotion among:\n['anger', 'sadness', 'happiness', 'fear', 'surprise', 'disgust']\n"
        "Focus on tone/attitude, not content valence."
    )
    assert user == (
        "Target emotion: anger\nText:\na\nDecide if the text's STYLE matches the target emotion.\n"
        'Return a compact JSON with keys exactly:\n{\n"match": <0 or 1>,\n"reason": <short string>\n}'
    )
    assert server.requests[1].text.startswith("Target emotion: happiness\n")
    schema = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["match"] == {"type": "integer", "enum": [0, 1]}


def test_target_question_refuses_what_it_cannot_ask(make: Make) -> None:
    judge, server = make()
    with pytest.raises(EmotraceError, match="2 texts but 1 targets"):
        judge.judge_target(["a", "b"], ["anger"])
    with pytest.raises(EmotraceError, match=r"unknown emotion 'angry'.*Did you mean 'anger'"):
        judge.judge_target(["a"], ["angry"])
    assert server.count == 0


PASSING = {
    "429": srv.rate_limited(),
    "429 with Retry-After": srv.rate_limited(0.01),
    "408": srv.fails(408),
    "500": srv.server_error(),
    "503": srv.server_error(503),
    "drop": srv.drop(),
    "429 in a 200": srv.told({"error": {"message": "slow down", "code": 429}}),
    "503 in a choice": srv.told(
        {"choices": [{"error": {"message": "upstream", "code": "503"}, "finish_reason": "error"}]}
    ),
    "an error without a code": srv.told({"error": "overloaded"}),
    "no choices": srv.told({"choices": []}),
    "a body that breaks off": srv.malformed_body(),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_failures_on_the_way_are_sent_again(make: Make, failure: srv.Reply) -> None:
    judge, server = make(failure, failure, srv.says("fear"))
    assert judge.judge(["x"])[0]["predicted"] == "fear"
    assert server.count == 3
    assert judge.usage["requests"] == 3
    assert judge.usage["retries"] == 2
    assert len({r.body["seed"] for r in server.requests}) == 1


def test_one_page_among_answers_is_asked_again(make: Make) -> None:
    page = srv.wrong_content_type(srv.Reply(body=b"<html>moving</html>"))
    judge, _ = make(page, page, srv.says("fear"), page, page, page, srv.says("anger"), concurrency=1)
    assert [v["predicted"] for v in judge.judge(["a", "b"])] == ["fear", "anger"]


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>log in", b'{"status": "up"}', b"OK", b"null", b"[]", b'"hello"'])
def test_an_address_that_is_no_api_ends_the_run(make: Make, body: bytes) -> None:
    judge, server = make(default=srv.Reply(body=body))
    with pytest.raises(EmotraceError, match="is the address of no API"):
        judge.judge(list("abcdefghij"))
    assert server.count <= 24


def test_a_hanging_endpoint_is_timed_out_and_asked_again(make: Make) -> None:
    judge, server = make(srv.hang(), srv.says("fear"), timeout=0.3)
    assert judge.judge(["x"])[0]["predicted"] == "fear"
    assert server.count == 2


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_attempts_are_bounded_and_the_text_is_unjudged(make: Make, failure: srv.Reply) -> None:
    judge, server = make(default=failure, attempts=3)
    (verdict,) = judge.judge(["x"])
    assert verdict["predicted"] is None
    assert verdict["reason"].startswith("endpoint: ")
    assert not is_final(verdict)
    assert server.count == 3


def test_retry_after_is_honoured(make: Make) -> None:
    judge, server = make(srv.rate_limited(0.3), srv.says("fear"))
    judge.judge(["x"])
    assert server.requests[1].time - server.requests[0].time >= 0.3


def patient(max_wait: float) -> Patience:
    return Patience(attempts=8, timeout=60.0, backoff=1.0, max_wait=max_wait)


def test_pauses_grow_with_jitter_and_are_bounded() -> None:
    for attempt in range(1, 6):
        pauses = [patient(1000.0).pause_after(attempt, None) for _ in range(50)]
        assert all(2 ** (attempt - 1) / 2 <= pause <= 2 ** (attempt - 1) for pause in pauses)
        assert len(set(pauses)) > 1
    assert patient(60.0).pause_after(500, None) == 60.0
    assert patient(60.0).pause_after(1, 20.0) == 20.0
    assert patient(60.0).pause_after(1, 3600.0) == 60.0


def test_retry_after_headers() -> None:
    assert retry_after({}) is None
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after": "-5"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    late = retry_after({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)})
    assert late is not None
    assert 60 < late <= 100


MALFORMED = {
    "malformed content": (srv.malformed_content(), "not a JSON object"),
    "missing field": (srv.missing_field(), "no field 'emotion'"),
    "outside the choices": (srv.outside_enum(), "'melancholy' is none of anger"),
    "two answers": (srv.says("anger, fear"), "none of anger"),
    "null answer": (srv.completion('{"emotion": null}'), "none of anger"),
    "list": (srv.completion('["anger"]'), "not a JSON object"),
    "refusal": (srv.refusal(), "refusal: I cannot help"),
    "empty content": (srv.empty(), "empty content"),
    "cut off": (srv.completion('{"emot', finish="length"), "not a JSON object"),
}


@pytest.mark.parametrize(("reply", "why"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_answers_are_asked_again_then_unjudged(make: Make, reply: srv.Reply, why: str) -> None:
    judge, server = make(reply, srv.says("disgust"), default=reply, concurrency=1)
    good, bad = judge.judge(["one", "two"])
    assert good["predicted"] == "disgust"
    assert bad["predicted"] is None
    assert why in bad["reason"]
    assert is_final(bad)
    assert [r.body["seed"] for r in server.requests] == [0, 1, 0, 1, 2]
    assert judge.usage["retries"] == 3


@pytest.mark.parametrize(
    "reply",
    [
        srv.fenced("fear"),
        srv.wrong_content_type(srv.says("fear")),
        srv.slow(srv.says("fear"), 0.2),
        srv.says(" Fear "),
        srv.completion('<think>{"emotion": "anger"}</think>{"emotion": "fear", "reason": "x"}'),
        srv.completion('It is {"emotion": "fear"} I think'),
    ],
    ids=["fenced", "wrong content type", "slow", "case and blanks", "thinking", "words around"],
)
def test_odd_but_well_formed_answers_count(make: Make, reply: srv.Reply) -> None:
    judge, server = make(reply)
    assert judge.judge(["x"])[0]["predicted"] == "fear"
    assert server.count == 1


def test_joy_is_happiness(make: Make) -> None:
    judge, _ = make(srv.says("joy"))
    assert judge.judge(["x"])[0]["predicted"] == "happiness"


def test_blank_texts_cost_nothing(make: Make) -> None:
    judge, server = make()
    for verdict in judge.judge(["", " \n"]):
        assert verdict["predicted"] is None
        assert verdict["reason"] == "empty text"
    assert judge.judge_target([""], ["fear"])[0]["match"] is None
    assert server.count == 0


@pytest.mark.parametrize(
    ("step", "forms"),
    [
        (srv.rejects("response_format", srv.says("fear"), "json_schema"), ["json_schema", "json_object"]),
        (srv.rejects("response_format", srv.says("fear")), ["json_schema", "json_object", "text"]),
    ],
)
def test_rejected_response_format_falls_back_and_is_remembered(make: Make, step: srv.Step, forms: list[str]) -> None:
    judge, server = make(default=step, concurrency=1)
    assert [v["predicted"] for v in judge.judge(["x", "y"])] == ["fear", "fear"]
    asked = [r.body.get("response_format", {"type": "text"})["type"] for r in server.requests]
    assert asked == [*forms, forms[-1]]
    assert judge.settings["format"] == forms[-1]


REFUSALS = {
    "param": lambda o: (400, {"error": {"message": "Unsupported value.", "param": o}}),
    "detail": lambda o: (
        422,
        {"detail": [{"loc": ["body", o], "msg": "Extra inputs", "type": "extra_forbidden"}]},
    ),
    "list": lambda o: (400, [{"error": {"code": 400, "message": f'Unknown name "{o}": cannot find field'}}]),
    "violation": lambda o: (
        400,
        {"error": {"code": 400, "details": [{"fieldViolations": [{"field": f"request.{o}"}]}]}},
    ),
    "backticks": lambda o: (
        400,
        {"message": f"`{o}` is not supported, unlike temperature and seed", "code": "BadRequest"},
    ),
    "plain text": lambda o: (400, f"unexpected keyword argument '{o}'"),
    "wrapped": lambda o: (
        400,
        {"error": {"message": "upstream", "metadata": {"raw": json.dumps({"error": {"param": o}})}}},
    ),
    "in a 200": lambda o: (200, {"error": {"message": f"Unsupported parameter: {o}", "code": 400}}),
    "in a 200 without a code": lambda o: (200, {"error": {"message": f"Unsupported parameter: {o}"}}),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_options_are_left_out_one_after_another_however_they_are_named(make: Make, refusal: Any) -> None:
    def picky(request: srv.Request) -> srv.Reply:
        for option in ("temperature", "seed", "response_format"):
            if option in request.body and (
                option != "response_format" or request.body[option]["type"] == "json_schema"
            ):
                status, body = refusal("response_format.json_schema" if option == "response_format" else option)
                return srv.Reply(status, body.encode()) if isinstance(body, str) else srv.told(body, status)
        return srv.says("fear")

    judge, server = make(default=picky, concurrency=1)
    assert [v["predicted"] for v in judge.judge(["x", "y"])] == ["fear", "fear"]
    assert server.count == 5
    assert judge.settings["options"] == {}
    assert judge.settings["format"] == "json_object"


def test_an_answer_that_was_cut_is_asked_for_with_more_room(make: Make) -> None:
    def short(request: srv.Request) -> srv.Reply:
        if "max_tokens" in request.body:
            return srv.fails(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if request.body.get("max_completion_tokens", 0) < 10_000:
            return srv.completion('<think>It may be {"emotion": "anger"}, but', finish="length")
        return srv.says("fear")

    judge, server = make(default=short, concurrency=1)
    assert [v["predicted"] for v in judge.judge(["x", "y"])] == ["fear", "fear"]
    assert [r.body.get("max_completion_tokens") for r in server.requests if "max_tokens" not in r.body] == [
        None,
        4096,
        16384,
        16384,
    ]
    assert "seed" in judge.settings["options"]


def test_more_room_than_there_is_is_not_asked_for(make: Make) -> None:
    def small(request: srv.Request) -> srv.Reply:
        if "max_tokens" in request.body or "max_completion_tokens" in request.body:
            return srv.fails(
                400, "max_tokens is too large: the maximum context length is 512 tokens", "context_length_exceeded"
            )
        return srv.completion("<think>long", finish="length")

    judge, _ = make(default=small, concurrency=1)
    (verdict,) = judge.judge(["x"])
    assert verdict["predicted"] is None
    assert verdict["reason"].startswith("malformed answer, 3 times: the thinking does not end")
    assert is_final(verdict)


@pytest.mark.parametrize("parameter", ["temperature", "seed"])
def test_rejected_options_are_left_out(make: Make, parameter: str) -> None:
    judge, server = make(default=srv.rejects(parameter, srv.says("fear")), concurrency=1)
    assert [v["predicted"] for v in judge.judge(["x", "y"])] == ["fear", "fear"]
    assert [parameter in r.body for r in server.requests] == [True, False, False]
    assert parameter not in judge.settings["options"]
    assert server.requests[-1].body["response_format"]["type"] == "json_schema"


def test_a_filtered_text_is_unjudged_for_good(make: Make) -> None:
    judge, server = make(srv.fails(400, "filtered", "content_filter"), give_up=1)
    (verdict,) = judge.judge(["x"])
    assert verdict["predicted"] is None
    assert "filtered" in verdict["reason"]
    assert is_final(verdict)
    assert server.count == 1


def test_an_answer_that_was_taken_back_is_unjudged_for_good(make: Make) -> None:
    judge, server = make(srv.completion('{"emotion": "fear"}', finish="content_filter"))
    (verdict,) = judge.judge(["x"])
    assert verdict["predicted"] is None
    assert is_final(verdict)
    assert server.count == 1


def test_odd_text_is_sent_and_kept(make: Make) -> None:
    judge, server = make(srv.completion('{"emotion": "fear", "reason": "half \\ud83d,\\u0000 \\u202e"}'))
    assert judge.judge(["half \ud83d and \x00"]) == [
        {"predicted": "fear", "judge": "openai:gpt-4o-mini", "reason": "half \ufffd,\ufffd \ufffd"}
    ]
    assert server.requests[0].text == "Text:\nhalf \ufffd and \x00"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_carries_no_text_elsewhere(make: Make, status: int) -> None:
    with srv.OpenAIServer(default=srv.says("fear")) as other:
        judge, server = make(default=srv.Reply(status, headers={"Location": f"{other.url}/chat/completions"}))
        with pytest.raises(EmotraceError, match=f"{server.url} sends its requests on to {other.url[:-3]}") as caught:
            judge.judge(["a secret text"])
        assert caught.value.__cause__ is None
        assert other.count == 0
    assert server.count == 1


def test_a_redirect_on_the_same_server_is_followed(make: Make) -> None:
    moved = srv.Reply(307, headers={"Location": "/v1/chat/completions"})
    judge, server = make(moved, srv.says("fear"))
    assert judge.judge(["x"])[0]["predicted"] == "fear"
    assert server.requests[1].text == "Text:\nx"


def test_concurrency_is_used_and_bounded_and_order_kept(make: Make) -> None:
    full, lock, seen = threading.Event(), threading.Lock(), [0]

    def step(request: srv.Request) -> srv.Reply:
        with lock:
            seen[0] += 1
            if seen[0] == 4:
                full.set()
        full.wait(5)  # the first four are answered only when all four are there
        return srv.says(ANSWERS[int(request.text.split()[-1]) % 7])

    judge, server = make(default=step, concurrency=4)
    verdicts = judge.judge([f"text {i}" for i in range(40)])
    assert [v["predicted"] for v in verdicts] == [ANSWERS[i % 7] for i in range(40)]
    assert server.most_in_flight == 4
    assert server.count == 40


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (srv.fails(401, f"Incorrect API key: {KEY}"), "refused the key in OPENAI_API_KEY"),
        (srv.fails(404, "no model 'gpt-4o-mini'"), "no model 'gpt-4o-mini'"),
        (srv.fails(429, "pay first", "insufficient_quota"), "pay first"),
        (srv.told({"error": {"message": "no credentials", "code": 401}}), "refused the key in OPENAI_API_KEY"),
        (srv.told({"error": {"message": "pay first", "code": "402"}}), "pay first"),
        (srv.told({"error": "Invalid API key"}), "refused the key in OPENAI_API_KEY"),
    ],
    ids=["key", "model", "quota", "key in a 200", "credits in a 200", "key in words"],
)
def test_hopeless_errors_end_the_run(make: Make, reply: srv.Reply, message: str) -> None:
    judge, server = make(default=reply, concurrency=2)
    with pytest.raises(EmotraceError, match=message):
        judge.judge([str(i) for i in range(50)])
    assert server.count <= 4


def test_a_dead_endpoint_ends_the_run(make: Make) -> None:
    judge, server = make(default=srv.server_error(), concurrency=2, attempts=2, give_up=3)
    with pytest.raises(EmotraceError, match=r"[34] texts in a row failed .*HTTP 500"):
        judge.judge([str(i) for i in range(50)])
    assert server.count <= 10


def test_a_wrong_request_ends_the_run_without_retries(make: Make) -> None:
    judge, _ = make(default=srv.fails(400, "no such thing"), concurrency=1, give_up=2)
    with pytest.raises(EmotraceError, match=r"2 texts in a row failed .*no such thing"):
        judge.judge([str(i) for i in range(50)])
    assert judge.usage["requests"] == 6
    assert judge.usage["retries"] == 0


def test_failures_apart_do_not_end_the_run(make: Make) -> None:
    bad, good = srv.server_error(), srv.says("fear")
    judge, _ = make(bad, good, bad, good, bad, good, attempts=1, give_up=2, concurrency=1)
    assert [v["predicted"] for v in judge.judge(list("abcdef"))] == [None, "fear"] * 3


def test_verdicts_stream_and_closing_early_stops_the_requests(make: Make) -> None:
    judge, server = make(default=srv.slow(srv.says("fear"), 0.02), concurrency=2)
    stream = judge.iter_judge([str(i) for i in range(500)])
    assert next(stream)["predicted"] == "fear"
    stream.close()  # type: ignore[attr-defined]
    assert server.count < 100
    assert not [t for t in threading.enumerate() if t.name.startswith("judge")]


def test_tokens_and_cost(make: Make) -> None:
    judge, _ = make(srv.server_error(), srv.outside_enum(), price=(0.15, 0.60), concurrency=1)
    assert judge.usage["cost"] == 0
    judge.judge(["a", "b"])
    assert judge.usage == {
        "prompt_tokens": 300,  # the malformed answer is paid for as well
        "completion_tokens": 30,
        "requests": 4,
        "retries": 2,
        "unreported": 0,
        "cost": pytest.approx((300 * 0.15 + 30 * 0.60) / 1e6),
    }


def test_cost_is_never_guessed(make: Make) -> None:
    judge, _ = make()
    judge.judge(["a"])
    assert judge.usage["cost"] is None
    judge, _ = make(srv.completion('{"emotion": "fear"}', usage=False), price=(1, 1))
    judge.judge(["a", "b"])
    assert judge.usage["unreported"] == 1
    assert judge.usage["cost"] is None


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": "100", "completion_tokens": 10.0}, (100, 10)),
        ({"input_tokens": 100, "output_tokens": 10}, (100, 10)),
        (None, None),
        ({"prompt_tokens": 100, "completion_tokens": None}, None),
        ({"prompt_tokens": -1, "completion_tokens": 10}, None),
        ({"prompt_tokens": True, "completion_tokens": 10}, None),
        ({"prompt_tokens": 1e400, "completion_tokens": 10}, None),
        ([100, 10], None),
    ],
)
def test_odd_counts_of_tokens_are_read_or_reported_missing(
    make: Make, usage: Any, counted: tuple[int, int] | None
) -> None:
    body = json.loads(srv.says("fear").body) | {"usage": usage}
    judge, _ = make(srv.told(body), price=(1, 1))
    assert judge.judge(["a"])[0]["predicted"] == "fear"
    assert judge.usage["unreported"] == int(counted is None)
    assert judge.usage["cost"] == (None if counted is None else sum(counted) / 1e6)


def test_progress_goes_to_stderr(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    judge, _ = make()
    judge.judge(["a", "b"], progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err


def test_the_key_is_sent_and_nowhere_else(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def echo(request: srv.Request) -> srv.Reply:
        key = request.headers["authorization"]
        replies = {
            "reason": srv.says("fear", key),
            "refusal": srv.completion(None, refusal=key),
            "words": srv.completion("x" * 105 + key),
            "body": srv.Reply(body=("x" * 70 + key).encode()),
            "field": srv.completion(json.dumps({"a": key})),
            "400": srv.fails(400, key),
            "500": srv.fails(500, key),
            "401": srv.fails(401, key),
            "404": srv.fails(404, key),
        }
        return replies[request.text.split()[-1]]

    judge, server = make(default=echo)
    with caplog.at_level(logging.DEBUG):
        kept = [judge.judge([kind]) for kind in ("reason", "refusal", "words", "body", "field", "400", "500")]
        errors = []
        for kind in ("401", "404"):
            with pytest.raises(EmotraceError) as caught:
                judge.judge([kind])
            errors.append(str(caught.value))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = json.dumps([kept, errors, judge.settings, judge.usage]) + repr(judge) + str(judge) + caplog.text
    assert KEY[:12] not in shown
    assert "[key]" in shown


def test_settings_hide_the_password_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIJudge(base_url="http://me:pw@localhost:1/v1?token=t") as judge:
        assert judge.settings["base_url"] == "http://localhost:1/v1"
        assert "pw" not in repr(judge)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency=0\\): at least 1"),
        ({"attempts": 0}, "attempts=0\\): at least 1"),
        ({"price": (1,)}, "price="),
        ({"price": (1, float("nan"))}, "price="),
        ({"price": (1, float("inf"))}, "price="),
        ({"concurrency": 2.5}, "whole number"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"seed": "x"}, "seed=.x"),
        ({"price": "12"}, "two figures"),
        ({"model": " "}, "model="),
        ({"base_url": "localhost"}, "must look like https"),
    ],
)
def test_settings_out_of_range(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(EmotraceError, match=message):
        OpenAIJudge(**options)


def test_a_key_with_a_strange_character_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk-sécret", "sk-s\ncret", "sk-s cret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(EmotraceError, match="OPENAI_API_KEY holds") as caught:
            OpenAIJudge()
        assert "cret" not in str(caught.value)


def test_a_key_in_the_query_and_a_password_are_sent_and_not_shown(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    _, server = make()
    url = server.url.replace("//", "//me:Tr0ub4dor@") + "?api_key=0a1b2c3d4e&version=2"
    with caplog.at_level(logging.DEBUG), OpenAIJudge(base_url=url) as judge:
        assert judge.judge(["x"])[0]["predicted"] == "neutral"
    (request,) = server.requests
    assert request.path == "/v1/chat/completions?api_key=0a1b2c3d4e&version=2"
    assert request.headers["authorization"] == "Basic bWU6VHIwdWI0ZG9y"
    shown = caplog.text + repr(judge) + json.dumps(judge.settings)
    assert not [secret for secret in ("Tr0ub4dor", "0a1b2c3d4e", "bWU6VHIw") if secret in shown]


def test_the_blind_question_names_no_target() -> None:
    assert "{emotion}" not in BLIND.user
    assert all(answer in BLIND.system for answer in ANSWERS)


def test_what_was_judged_before_an_outage_is_kept_and_the_rest_is_asked_for_elsewhere(
    make: Make, tmp_path: Path
) -> None:
    rows = [{"key": k, "method": "none", "emotion": "fear", "gen_text": f"half \ud83d {k}"} for k in "abcdef"]
    ok, down = srv.says("fear", "half \\ud83d"), srv.told({"error": {"message": "slow down", "code": 429}})
    judge, _ = make(ok, ok, default=down, concurrency=1, attempts=2, give_up=3)
    with Log(tmp_path / "log.jsonl") as log, pytest.raises(EmotraceError, match="3 texts in a row failed"):
        judge_rows(rows, judge, log=log, progress=False)
    judge, server = make(default=ok)
    with Log(tmp_path / "log.jsonl") as log:
        judged = judge_rows(rows, judge, log=log, progress=False)
    assert [row["verdict"]["predicted"] for row in judged] == ["fear"] * 6
    assert server.count == 4


@pytest.mark.parametrize("status", [200, 422])
@pytest.mark.parametrize(
    "refusal",
    [
        {"title": "One or more validation errors occurred.", "errors": {"seed": ["no such option"]}},
        {"detail": "Unexpected parameter seed"},
        {"message": "seed: no"},
    ],
)
def test_an_option_that_is_refused_by_name_alone_is_left_out(make: Make, refusal: Any, status: int) -> None:
    judge, server = make(
        default=lambda request: srv.told(refusal, status) if "seed" in request.body else srv.says("fear")
    )
    assert [v["predicted"] for v in judge.judge(["a"])] == ["fear"]
    assert server.count == 2


@pytest.mark.parametrize(
    "body", [{"base_resp": {"status_code": 1002, "status_msg": "busy"}}, {"code": 1001, "msg": "too many requests"}]
)
def test_a_failure_told_in_other_words_with_200_is_sent_again(make: Make, body: Any) -> None:
    judge, server = make(*[srv.told(body)] * 3, default=srv.says("fear"))
    assert [v["predicted"] for v in judge.judge(["a"])] == ["fear"]
    assert server.count == 4


def test_an_answer_in_another_charset_is_read(make: Make) -> None:
    body = srv.says("fear", "déjà").body.decode()
    text = json.dumps(json.loads(body), ensure_ascii=False)
    judge, _ = make(srv.Reply(body=text.encode("utf-16")), srv.Reply(body=text.encode("latin-1")))
    assert [v["predicted"] for v in judge.judge(["a"]) + judge.judge(["b"])] == ["fear", "fear"]


@pytest.mark.parametrize("texts", ["one text", [None], [b"x"], {"a": 1}, None])
def test_what_is_no_list_of_texts_is_not_judged(make: Make, texts: Any) -> None:
    judge, server = make()
    with pytest.raises(EmotraceError, match="due"):
        judge.judge(texts)
    assert not server.count
