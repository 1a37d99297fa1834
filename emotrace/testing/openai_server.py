"""OpenAI server: a loopback endpoint that speaks chat completions and misbehaves to order.

```python
with OpenAIServer([rate_limited(1), server_error(), says("anger")]) as server:
    client = openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)
```
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKENS = (100, 10)
"""Prompt and completion tokens that each answer reports."""


@dataclass(frozen=True)
class Reply:
    """What the server does with one request: wait, then answer or drop the connection."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delay: float = 0.0
    drop: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it came in; ``time`` is monotonic."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    time: float

    @property
    def text(self) -> str:
        """The last message's content."""
        return str(self.body["messages"][-1]["content"])


Step = Reply | Callable[[Request], Reply]


def completion(content: str | None, *, refusal: str | None = None, finish: str = "stop", usage: bool = True) -> Reply:
    """A chat completion with this content."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    payload: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "loopback"}
    payload["choices"] = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}]
    if usage:
        payload["usage"] = {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
    return Reply(body=json.dumps(payload).encode())


def says(emotion: str, reason: str = "because") -> Reply:
    """A well-formed blind answer."""
    return completion(json.dumps({"emotion": emotion, "reason": reason}))


def matches(match: object, reason: str = "because") -> Reply:
    """A well-formed answer to the target-aware question."""
    return completion(json.dumps({"match": match, "reason": reason}))


def told(body: object, status: int = 200) -> Reply:
    """Any JSON, by default with 200: how routers tell of failures."""
    return Reply(status, json.dumps(body).encode())


def fails(status: int, message: str = "no", code: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    """An error in OpenAI's schema."""
    error = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Reply(status, json.dumps(error).encode(), headers or {})


def rate_limited(retry_after: float | str | None = None) -> Reply:
    """429, with ``Retry-After`` where given."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return fails(429, "slow down", "rate_limit_exceeded", headers)


def server_error(status: int = 500) -> Reply:
    """A 5xx whose body is not even JSON."""
    return Reply(status, b"<html>oops</html>", content_type="text/html")


def hang(seconds: float = 30.0) -> Reply:
    """Nothing, until the server closes or the time is over; then the connection is dropped."""
    return Reply(delay=seconds, drop=True)


def drop() -> Reply:
    """The connection is closed without an answer."""
    return Reply(drop=True)


def slow(reply: Reply, seconds: float) -> Reply:
    """The same reply, later."""
    return replace(reply, delay=seconds)


def wrong_content_type(reply: Reply) -> Reply:
    """The same reply, called HTML."""
    return replace(reply, content_type="text/html")


def malformed_body() -> Reply:
    """200 with a body that breaks off."""
    return Reply(body=b'{"choices": [{"message": ')


def malformed_content() -> Reply:
    """A completion whose content is broken JSON."""
    return completion('{"emotion": "anger", ')


def missing_field() -> Reply:
    """A completion whose JSON lacks the answer."""
    return completion('{"reason": "I forgot the answer"}')


def outside_enum() -> Reply:
    """A completion that answers outside the choices."""
    return says("melancholy")


def refusal() -> Reply:
    """A refusal."""
    return completion(None, refusal="I cannot help with that.")


def empty() -> Reply:
    """A completion without content."""
    return completion("")


def fenced(emotion: str) -> Reply:
    """A well-formed answer in a code fence, with words around it."""
    return completion(f'Here you are:\n```json\n{{"emotion": "{emotion}", "reason": "fenced"}}\n```\nAnything else?')


def rejects(parameter: str, reply: Reply, kind: str | None = None) -> Step:
    """400 for requests with this parameter (``response_format``: of this kind), the reply for others."""

    def step(request: Request) -> Reply:
        given = request.body.get(parameter)
        if given is None or (kind is not None and given["type"] != kind):
            return reply
        return fails(400, f"Unsupported parameter: '{parameter}'")

    return step


class OpenAIServer:
    """A chat-completions endpoint on 127.0.0.1 that follows a script.

    Args:
        script: what happens to each request, in order of arrival.
        default: what happens to requests after the script.

    Attributes:
        requests: the requests so far, bodies and headers included.
        most_in_flight: the most requests that were being answered at one time.
    """

    def __init__(self, script: Iterable[Step] = (), default: Step | None = None) -> None:
        self._script = iter(script)
        self._default = default or says("neutral")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._in_flight = 0
        self.most_in_flight = 0
        self.requests: list[Request] = []
        self._http = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def count(self) -> int:
        """Requests so far."""
        return len(self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _take(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            step = next(self._script, self._default)
        reply = step(request) if callable(step) else step
        if request.path.partition("?")[0] != "/v1/chat/completions":
            reply = fails(404, f"no such path: {request.path}")
        if reply.delay:
            self._closing.wait(reply.delay)
        return reply

    def _give_back(self) -> None:
        with self._lock:
            self._in_flight -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for every handler and no socket is left behind

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that went away are part of the game."""


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answer one request as the script says; every answer closes the connection."""
            self.close_connection = True
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = server._take(Request(self.path, headers, body, time.monotonic()))
            server._give_back()
            if reply.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(reply.status)
            for name, value in {"Content-Type": reply.content_type, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
