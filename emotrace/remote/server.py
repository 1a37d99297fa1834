"""Server: what an NDIF server is asked over HTTP, and what its refusals mean.

Jobs are submitted without blocking: the server keeps a job's status and result under its id, so that it can be asked again
after the connection, or this computer, was gone.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch
import zstandard
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel

from emotrace.labels import EmotraceError
from emotrace.remote.deployments import Deployment, listed
from emotrace.remote.words import say
from emotrace.secrets import Hidden, mask_logs, redacted
from emotrace.texts import from_json, one_line
from emotrace.wire import WebAddress, check_key, origin

if TYPE_CHECKING:
    import httpx

R = TypeVar("R")
_KEY_FORM = re.compile("api[ -]?key", re.IGNORECASE)
CONNECT, READ, ANSWER = 10.0, 600.0, 90.0
"""Seconds for a connection to be made, for an upload or a download to go on, and for the answer to a question: a server that
gathers its status says 504 itself after 60."""
BUSY = 300.0
"""Seconds for which a server that answers that it cannot now is asked for its models again."""
CRITICAL = {"nnsight": 2, "transformers": 1, "torch": 1}
"""Packages of which so many leading parts of the version must agree: the protocol, module trees, tensors on the wire."""


class Unreachable(Exception):
    """The server did not answer, or answered that it cannot now: to be tried again."""


class Busy(Unreachable):
    """The server is there, and says that it cannot now."""


class Gone(Exception):
    """A result that is no longer there: its job must run again."""


def patiently(
    ask: Callable[[], R], unless: type[Unreachable], seconds: float, told: Callable[[Unreachable], None], pause: float
) -> R:
    """Ask until there is an answer, with pauses that grow to ten seconds.

    Args:
        ask: for it.
        unless: what says that there is none yet.
        seconds: after which that is raised.
        told: called with it before each pause.
        pause: before the second time, in seconds.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except unless as error:
            if time.monotonic() >= until:
                raise
            told(error)
        time.sleep(pause)
        pause = min(10.0, 2 * pause)


class Server:
    """An NDIF server.

    Args:
        host: URL; None takes nnsight's own configuration (``NDIF_HOST``, its configuration file, NDIF).
        key: API key; None takes ``NDIF_API_KEY`` or nnsight's configuration.

    Raises:
        EmotraceError: for a host that is no URL, or a key that no header can hold.
    """

    def __init__(self, host: str | None = None, key: str | None = None) -> None:
        url = host or os.environ.get("NDIF_HOST") or CONFIG.API.HOST
        self.address = WebAddress.of(url, "remote", "http://127.0.0.1:8000 (or True, or 'local')")
        self._key = Hidden(key or os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or "")
        key = None  # no traceback that shows variables shows it
        check_key(self._key, "NDIF_API_KEY")
        self._client: httpx.Client | None = None
        self.sent = self.received = 0
        mask_logs()

    @property
    def host(self) -> str:
        """The URL, without a password."""
        return self.address.url

    def __repr__(self) -> str:
        return f"Server({self.host!r})"  # never the key

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; the next question makes one anew."""
        client = getattr(self, "_client", None)
        if client is not None:
            self._client = None
            client.close()

    @property
    def has_key(self) -> bool:
        """Whether a key is known here."""
        return bool(self._key)

    def submit(self, model_key: str, env: dict[str, Any], blob: bytes, compressed: bool) -> str:
        """Take a job to the server; its id."""
        request = RequestModel(model_key=model_key, compress=compressed, env=env)
        headers = {"ndif-timestamp": repr(time.time()), "nnsight-version": version("nnsight")}
        answer = self._ask(
            "POST", "/request", headers=headers | {"python-version": sys.version}, data={"data": request.metadata()},
            files={"blob": ("request", blob, "application/octet-stream")},
        )  # fmt: skip
        self.sent += len(blob)
        return self._parsed(answer, ResponseModel.model_validate_json).id

    def state(self, job: str) -> ResponseModel | None:
        """The last status of a job; None where the server knows none (yet, or any more)."""
        answer = self._ask("GET", f"/response/{job}", missing=True)
        return None if answer is None else self._parsed(answer, ResponseModel.model_validate_json)

    def result(self, response: ResponseModel, compressed: bool) -> dict[str, Any]:
        """The saved values of a completed job.

        Raises:
            Gone: where its URL has expired, or what lies there cannot be read.
            Unreachable: where the connection broke.
        """
        if origin(str(response.data or "")) is None:
            raise Gone(f"job {response.id} was completed without a result")
        answer = self._send("GET", str(response.data), follow_redirects=True)  # without the key
        if answer.status_code in (403, 404, 410):
            raise Gone(f"the result of job {response.id} is gone ({answer.status_code})")
        if not answer.is_success:
            raise Unreachable(redacted(f"{self.host}: the result of job {response.id}: {answer.status_code}"))
        data = answer.content
        self.received += answer.num_bytes_downloaded
        try:
            whole = _decompressed(data) if compressed else data
            return torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
        except Exception as error:  # cut short or damaged on the way, in whatever words
            raise Gone(redacted(f"the result of job {response.id} cannot be read: {error}")) from None

    def deployments(self) -> list[Deployment]:
        """Its models, those that are not up too.

        Raises:
            Unreachable: where nobody answers.
        """
        return listed(self._patiently(lambda: self._parsed(self._ask("GET", "/status"), _object)))

    def check(self) -> dict[str, str]:
        """Versions of the packages that matter, at the server.

        Raises:
            EmotraceError: where one differs so far from ours that a trace would not mean the same there, no key is known, or
                nobody answers.
        """
        if not self.has_key and self.host == "https://api.ndif.us":
            raise EmotraceError(_key_advice(f"{self.host} needs an API key, and there is none"))
        try:
            answer = self._patiently(lambda: self._ask("GET", "/env", missing=True))
            theirs = {} if answer is None else self._parsed(answer, _object).get("packages", {})
        except Unreachable as error:
            raise EmotraceError(f"{error}: the server does not answer.") from None
        for package, parts in CRITICAL.items():
            here, there = version(package), str(theirs.get(package, ""))
            if there and here.split(".")[:parts] != there.split(".")[:parts]:
                raise EmotraceError(f"{self.host} runs {package} {there}, this is {here}: install {package}=={there}.")
        return {package: str(theirs[package]) for package in CRITICAL if package in theirs}

    def _patiently(self, ask: Callable[[], R]) -> R:
        """Ask again while the server says that it cannot now; a server that is not there is not waited for."""
        return patiently(ask, Busy, BUSY, lambda error: say(f"{error}: asked again, for at most {BUSY:.0f} s"), 1.0)

    def _parsed(self, answer: httpx.Response, read: Callable[[str], R]) -> R:
        """What an answer says.

        Raises:
            Unreachable: for an answer that is no NDIF server's, such as the page of a network that wants a log-in.
        """
        try:
            return read(answer.text)
        except ValueError:  # its words may hold the answer
            raise Unreachable(redacted(f"{answer.url}: not an answer of an NDIF server")) from None

    def _http(self) -> httpx.Client:
        if self._client is None:
            import httpx

            try:
                self._client = httpx.Client(timeout=httpx.Timeout(READ, connect=CONNECT))
            except (ValueError, ImportError, httpx.InvalidURL) as error:
                raise EmotraceError(f"no connection can be made (is HTTP_PROXY right?): {error}") from None
        return self._client

    def _send(self, method: str, url: str, **content: Any) -> httpx.Response:
        """One answer, whatever it says.

        Raises:
            Unreachable: where there is none. Nothing of the request, which holds the key, comes with the error.
        """
        import httpx

        try:
            return self._http().request(method, url, **content)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            problem = redacted(f"{self.host}: {error or type(error).__name__}")
        raise Unreachable(problem)

    def _signed(self, request: httpx.Request) -> httpx.Request:
        """The request with the key in its header."""
        if self._key:
            request.headers["ndif-api-key"] = self._key.reveal()
        if self.address.basic:
            request.headers["authorization"] = self.address.basic
        return request

    @overload
    def _ask(self, method: str, path: str, missing: Literal[False] = False, **content: Any) -> httpx.Response: ...
    @overload
    def _ask(self, method: str, path: str, missing: Literal[True], **content: Any) -> httpx.Response | None: ...
    def _ask(self, method: str, path: str, missing: bool = False, **content: Any) -> httpx.Response | None:
        """One request; None for 404 where that may be.

        Raises:
            Unreachable: where the server does not answer, or says that it cannot now.
            EmotraceError: where it refuses.
        """
        import httpx

        if method == "GET":
            content["timeout"] = httpx.Timeout(ANSWER, connect=CONNECT)
        answer = self._send(method, self.host + path, params=self.address.query or None, auth=self._signed, **content)
        if answer.has_redirect_location:
            moved = self.address.stay(answer.headers["location"])
            raise EmotraceError(f"{self.host} has moved to {moved}: give that address.")
        if answer.status_code == 404 and missing:
            return None
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            full = answer.status_code < 500 or answer.status_code in (502, 503, 504)  # or starting; else broken
            kind = Busy if full else Unreachable
            raise kind(redacted(f"{self.host}{path}: {answer.status_code} {self._detail(answer)}"))
        if answer.status_code in (401, 403) or (answer.status_code == 400 and _KEY_FORM.search(answer.text)):
            what = (
                f"refuses the API key ({self._detail(answer)})"
                if self.has_key
                else "needs an API key, and there is none"
            )
            raise EmotraceError(_key_advice(f"{self.host} {what}"))
        if answer.status_code >= 400:
            raise EmotraceError(f"{self.host}{path}: {answer.status_code} {self._detail(answer)}")
        return answer

    def _detail(self, answer: httpx.Response) -> str:
        """What a refusal says, masked before it is cut: a server repeats a key that is none, and that may be a short word."""
        try:
            found = from_json(answer.content)
            said = str(found.get("detail", found) if isinstance(found, dict) else found)
        except (ValueError, RecursionError):
            said = answer.text[:10_000]
        return one_line(self._key.masked(redacted(said)), 300)


def _key_advice(problem: str) -> str:
    return f"{problem}. Set NDIF_API_KEY, or run `nnsight login` once."


def _object(text: str) -> dict[str, Any]:
    found = from_json(text)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _decompressed(data: bytes) -> bytes:
    """What zstd made of a result, whether or not it wrote down how long that is."""
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as stream:
        return stream.read()
