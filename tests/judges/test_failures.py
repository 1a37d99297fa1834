"""Errors in the words of many endpoints, each read for its kind and its pause."""

from typing import Any

import pytest

from emotrace.judges.failures import read_failure
from emotrace.judges.retries import seconds_in, seconds_said

SEEN: dict[str, tuple[int, Any, str]] = {
    "OpenAI key": (
        401,
        {"error": {"type": "invalid_request_error", "code": "invalid_api_key"}},
        "key",
    ),
    "Google key": (
        400,
        [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "a": [{"reason": "API_KEY_INVALID"}]}}],
        "key",
    ),
    "OpenAI quota": (
        429,
        {"error": {"message": "You exceeded", "type": "insufficient_quota", "code": None}},
        "hopeless",
    ),
    "OpenRouter credits": (200, {"error": {"message": "Insufficient credits", "code": 402}}, "hopeless"),
    "no model": (404, {"error": {"code": "model_not_found", "message": "The model does not exist"}}, "hopeless"),
    "moderation": (403, {"error": {"code": 403, "message": "flagged", "metadata": {"flagged_input": "x"}}}, "text"),
    "Azure filter": (
        400,
        {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        "text",
    ),
    "vLLM length": (400, {"object": "error", "message": "maximum context length is 8 tokens", "code": 400}, "text"),
    "too large": (413, None, "text"),
    "Google rate": (429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], "again"),
    "Anthropic load": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "again"),
    "load in a 200": (200, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "again"),
    "words only": (200, {"error": "Rate limit reached, add credits for more"}, "again"),
    "nothing told": (200, {"error": {"message": "?"}}, "again"),
    "wrapped": (
        200,
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"code": 503}}'}}},
        "again",
    ),
    "FastAPI": (
        422,
        {"detail": [{"loc": ["body", "seed"], "msg": "not permitted", "type": "extra_forbidden"}]},
        "request",
    ),
    "unnamed": (400, {"error": {"message": "Bad", "type": "invalid_request_error"}}, "request"),
    "request in a 200": (200, {"error": {"message": "no", "type": "invalid_request_error"}}, "request"),
    "key told in a text": (200, {"detail": "Not authenticated: missing credentials"}, "key"),
    "a tag of its own": (
        200,
        {"error": {"message": "max_tokens is not supported, use max_completion_tokens"}},
        "request",
    ),
}


@pytest.mark.parametrize(("status", "payload", "kind"), SEEN.values(), ids=SEEN)
def test_kinds(status: int, payload: Any, kind: str) -> None:
    assert read_failure(status, payload, {}).kind == kind


@pytest.mark.parametrize(
    ("payload", "headers", "wait"),
    [
        ({"error": {"code": 429}}, {"retry-after": "7"}, 7.0),
        ({"error": {"code": 429, "retry_after": 2.5}}, {}, 2.5),
        ({"error": {"code": 429, "retry_after_ms": 250}}, {}, 0.25),
        ({"error": {"code": 429, "metadata": {"headers": {"Retry-After": "3"}}}}, {}, 3.0),
        ({"error": {"details": [{"retryDelay": "17s"}], "code": 429}}, {}, 17.0),
        ({"error": "Model is loading", "estimated_time": 20.0}, {}, 20.0),
        ({"error": {"message": "Please try again in 1m30.5s. Visit us."}}, {}, 90.5),
        ({"error": {"message": "Please retry in 20ms"}}, {}, 0.02),
        ({"error": {"message": "again in a while; 3 seats left"}}, {}, None),
        ({"error": {"retry_after": float("nan")}}, {}, None),
        ({"error": {"retry_after": -1}}, {}, 0.0),
    ],
)
def test_pauses(payload: Any, headers: dict[str, str], wait: float | None) -> None:
    found = read_failure(200, payload, headers)
    assert found.kind == "again"
    assert found.wait == (wait if wait is None else pytest.approx(wait))


def test_spans_of_time() -> None:
    assert seconds_in("1h2m3s", "x") == 3723.0
    assert seconds_in("250 milliseconds", "x") == 0.25
    assert seconds_in("soon", "x") is None
    assert seconds_in(True, "x") is None
    assert seconds_said("wait for 2 minutes") == 120.0


def test_an_error_without_end_is_read_in_part() -> None:
    deep: Any = "slow down"
    for _ in range(50_000):
        deep = [deep]
    assert read_failure(200, {"error": deep}, {}).kind == "again"
    assert read_failure(503, {"error": ["x"] * 10**5}, {}).why.startswith("HTTP 503")
