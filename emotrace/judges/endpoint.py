"""Endpoint: chat completions over HTTP: asked for until they come, in the form that the endpoint takes, and metered.

Failures on the way (429, 5xx, timeouts, lost connections, and the same told in a body with 200) are sent again with exponential
backoff and jitter, or after what the endpoint asks for. Options that it refuses are left out from then on. Text and key go to
this address only, whatever it answers.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import openai
import tenacity

from emotrace import wire
from emotrace.judges.failures import Failure, read_failure
from emotrace.judges.questions import FORMATS, JudgeQuestion
from emotrace.judges.retries import AgainError, Patience
from emotrace.labels import EmotraceError
from emotrace.secrets import mask_logs, redacted
from emotrace.texts import from_json, one_line, whole

DEFAULT_URL: Final = "https://api.openai.com/v1"
FORM: Final = "response_format"
ROOM: Final = (4096, 32768)
"""Tokens for an answer after one that was cut off, and at most."""
LONGEST: Final = 10_000
"""Characters of a body that are looked at for what is shown of it."""
BESIDE: Final = ("choices", "usage", "id", "model", "created", "index")
"""Fields beside an error that are no part of it."""
PAGES: Final = 3
"""Answers that are no completions, before any that was one, after which the address is taken for a wrong one."""
_MEANT: Final[dict[str, tuple[str, ...]]] = {
    "temperature": (), "seed": ("random_seed",), "max_tokens": ("max_output_tokens", "maxoutputtokens"),
    "max_completion_tokens": (),
    FORM: (
        "json_schema", "json_object", "structured_outputs", "guided_json", "responseformat", "response_schema", "responseschema",
    ),
}  # fmt: skip
"""Options that can be left out, with further words that mean them."""


class RejectedError(Exception):
    """The endpoint will not take this request, whenever it is sent."""


class UnanswerableError(Exception):
    """The endpoint will not judge this one text."""


class StoppedError(Exception):
    """The run ended while this text was waiting."""


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        name: of who asks, for messages.
        model: the endpoint's name of the model.
        base_url: None takes ``OPENAI_BASE_URL``, else OpenAI's own.
        concurrency: requests in flight at most.
        patience: how often and how long an answer is waited for.
        seed: sent along; the n-th answer is asked for with ``seed + n``.

    Raises:
        EmotraceError: for a missing or malformed key, or a base URL that is none.
    """

    def __init__(
        self, name: str, model: str, base_url: str | None, concurrency: int, patience: Patience, seed: int
    ) -> None:
        self.name, self.model, self.patience, self.seed = name, model, patience, seed
        given = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_URL
        key = wire.key(os.environ.get("OPENAI_API_KEY"), f"judge {name!r}: OPENAI_API_KEY")
        if not key:
            raise EmotraceError(
                f"judge {name!r} needs a key: set the environment variable OPENAI_API_KEY (any word for a local endpoint, "
                "whose address goes into OPENAI_BASE_URL)."
            )
        self.address = wire.WebAddress.of(given, f"{name}: the base URL (OPENAI_BASE_URL)", "https://HOST/v1")
        headers = {"Authorization": self.address.basic} if self.address.basic else None
        mask_logs()
        self._client = openai.OpenAI(
            api_key=key, base_url=self.address.url, default_query=self.address.query, default_headers=headers, max_retries=0,
            http_client=openai.DefaultHttpxClient(timeout=patience.timeout, event_hooks={"request": [self.address.guard]}),
        )  # fmt: skip
        self._create: Any = self._client.chat.completions.with_raw_response.create
        self._slots = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self.meter: dict[str, int] = dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "requests", "retries", "unreported"), 0
        )
        self._form = 0  # index in FORMATS of what the endpoint is known to take
        self._options: dict[str, float] = {"temperature": 0.0, "seed": seed}
        self._room: int | None = None
        self._room_names = ["max_tokens", "max_completion_tokens"]
        self._answered, self._pages = False, 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def settings(self) -> dict[str, Any]:
        """Address, seed, and the form and options that it takes."""
        return {"base_url": redacted(self.address.url), "seed": self.seed, "format": FORMATS[self._form]} | {
            "options": dict(self._options)
        }

    def count(self, **more: int) -> None:
        """Add to the meter."""
        with self._lock:
            for name, n in more.items():
                self.meter[name] += n

    def choice(
        self, question: JudgeQuestion, messages: list[dict[str, str]], nth: int, stop: threading.Event
    ) -> dict[str, Any]:
        """The first choice of a completion, however often it must be asked for.

        Raises:
            EmotraceError: for a refused key, spent credits, an address that is none of an API, a redirect elsewhere.
            AgainError: where all attempts failed.
            RejectedError: the endpoint will not take this request, whenever it is sent.
            UnanswerableError: it will not judge this one text.
            StoppedError: the run ended while the text was waiting.
        """

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return self.patience.pause_after(state.attempt_number, getattr(error, "wait", None))

        def pausing(seconds: float) -> None:
            stop.wait(seconds)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.patience.attempts),
            wait=pause,
            retry=tenacity.retry_if_exception_type(AgainError),
            sleep=pausing,
            before_sleep=lambda _: self.count(retries=1),
            reraise=True,
        )
        sent = [{**message, "content": whole(message["content"])} for message in messages]
        return retrying(self._completion, question, sent, nth, stop)

    def _completion(
        self, question: JudgeQuestion, messages: Sequence[Mapping[str, str]], nth: int, stop: threading.Event
    ) -> dict[str, Any]:
        """One completion; an option or format that the endpoint refuses is left out from then on."""
        with self._lock:
            form, options, room, names = self._form, dict(self._options), self._room, list(self._room_names)
        while True:
            if "seed" in options:
                options["seed"] = self.seed + nth
            asked = {**options, **question.response_format(FORMATS[form])} | (
                {names[0]: room} if room and names else {}
            )
            status, headers, body = self._sent(messages, asked, stop)
            found = self._read(status, headers, body)
            if isinstance(found, dict):
                with self._lock:
                    self._form, self._answered = max(self._form, form), True
                    self._options = {name: value for name, value in self._options.items() if name in options}
                    self._room_names = [name for name in self._room_names if name in names]
                return found
            blamed = found.names({name: _MEANT[name] for name in asked if name in _MEANT})
            if room and names and found.kind == "text":  # more room than the model's context has
                blamed = [names[0]]
            elif found.kind != "request" and not (found.unsure and blamed):
                self._give_up(found)
            if names and names[0] in blamed:
                names.pop(0)
            elif mine := [name for name in blamed if name in options]:
                for name in mine:
                    del options[name]
            elif form + 1 < len(FORMATS):
                form += 1
            else:
                raise RejectedError(found.why)

    def _sent(
        self, messages: Sequence[Mapping[str, str]], asked: Mapping[str, Any], stop: threading.Event
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one answer, whatever they say; nothing of the request comes with an error."""
        elsewhere = None
        with self._slots:
            if stop.is_set():
                raise StoppedError
            self.count(requests=1)
            try:
                raw = self._create(model=whole(self.model), messages=messages, **asked)
                return raw.status_code, raw.headers, raw.content
            except openai.APIStatusError as error:
                return error.status_code, error.response.headers, error.response.content
            except openai.APITimeoutError:
                problem = "timeout"
            except openai.APIConnectionError as error:
                problem = "connection lost or refused"
                elsewhere = str(error.__cause__) if isinstance(error.__cause__, wire.ElsewhereError) else None
        if elsewhere is not None:
            raise wire.ElsewhereError(f"{self.name}: {elsewhere}")
        raise AgainError(problem)

    def _read(self, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any] | Failure:
        """The choice that an answer brings, or what it says instead."""
        payload = _json(body)
        text = body[:LONGEST].decode(errors="replace").strip()
        if status >= 300:
            plain = None if text.startswith("<") else text
            return read_failure(status, plain if payload is None else payload, headers)
        whole_body: dict[str, Any] = payload if isinstance(payload, dict) else {}
        choices = whole_body.get("choices")
        first: dict[str, Any] = (
            choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        )
        parts = [part for part in (payload if isinstance(payload, list) else [whole_body]) if _failed(part)]
        if told := parts or [first] * _failed(first):
            return read_failure(status, [{k: v for k, v in part.items() if k not in BESIDE} for part in told], headers)
        if isinstance(first.get("message"), dict):
            self._meter(whole_body.get("usage"))
            return first
        if "choices" in whole_body:
            raise AgainError(f"no message in {text!r}")
        if payload is None and text.startswith(("{", "[")):
            raise AgainError(f"the body breaks off or is not JSON: {text!r}")
        raise self._page(text)

    def _page(self, text: str) -> AgainError:
        """What is to be done about an answer that is none of an API, such as the page of a network that wants a log-in."""
        why = f"not a chat completion: {text!r}" if text else "an empty answer"
        with self._lock:
            self._pages += 1
            wrong = not self._answered and self._pages >= min(PAGES, self.patience.attempts)
        if wrong:
            raise EmotraceError(
                f"{self.name}: {self.address.url} is the address of no API, or of one that wants a log-in: it answers with "
                f"{one_line(redacted(why), 160)}. OPENAI_BASE_URL says where to ask."
            )
        return AgainError(why)

    def _give_up(self, failure: Failure) -> None:
        """Raise what the kind of failure calls for."""
        if failure.kind == "key":
            raise EmotraceError(
                f"{self.name}: {self.address.url} refused the key in OPENAI_API_KEY ({one_line(redacted(failure.why), 160)})."
            )
        if failure.kind == "hopeless":
            raise EmotraceError(f"{self.name} at {self.address.url}: {one_line(redacted(failure.why), 300)}")
        if failure.kind == "text":
            raise UnanswerableError(failure.why)
        raise AgainError(failure.why, failure.wait)

    def more_room(self) -> bool:
        """Ask for longer answers from now on; False where that is not possible."""
        with self._lock:
            before, self._room = self._room, min(ROOM[1], 4 * self._room) if self._room else ROOM[0]
            return bool(self._room_names) and self._room != before

    def _meter(self, used: object) -> None:
        """Count the tokens of an answer; also malformed ones are paid for."""
        found = [
            _tokens(used, *names)
            for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        ]
        if None in found:
            self.count(unreported=1)
        else:
            self.count(prompt_tokens=found[0] or 0, completion_tokens=found[1] or 0)


def _json(body: bytes) -> Any:
    """JSON of a body in any encoding that JSON may have, bytes that are none replaced; None for what is no JSON."""
    try:
        return from_json(body)
    except ValueError:
        with suppress(ValueError):
            return from_json(body.decode(json.detect_encoding(body), "replace"))
    return None


def _failed(part: object) -> bool:
    """Whether a body or a choice tells of an error."""
    if not isinstance(part, dict):
        return False
    told = any(part.get(name) for name in ("error", "errors", "detail", "fault")) or part.get("object") == "error"
    chosen = bool(part.keys() & {"choices", "index", "finish_reason"})
    bare = any(isinstance(part.get(name), str) for name in ("message", "msg", "error_msg")) or "base_resp" in part
    return told or (bare and not chosen) or str(part.get("finish_reason")).lower() == "error"


def _tokens(used: object, *names: str) -> int | None:
    """A count of tokens, under one of its names; None where there is none that can be one."""
    value: Any = next((used[name] for name in names if name in used), None) if isinstance(used, dict) else None
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15 or value != int(value):
        return None
    return int(value)
