"""The OpenAI judge: any endpoint that speaks chat completions; asked concurrently, retried, metered, never guessed.

A text gets a verdict only from a well-formed answer. Failures on the way (429, 5xx, timeouts, lost connections) are
sent again with exponential backoff and jitter, or after what ``Retry-After`` says. Malformed answers (no JSON, no
field, a word outside the choices, a refusal, nothing) are asked again with the next seed. After a bounded number of
either the text is *unjudged*. The key comes from ``OPENAI_API_KEY`` and goes nowhere but into the request header.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import openai
import tenacity
from tqdm import tqdm

from emotrace.judges.base import EMPTY, ENDPOINT, TargetVerdict, Verdict
from emotrace.judges.questions import BLIND, FORMATS, TARGET, MalformedError, Question, read_answer
from emotrace.judges.retries import AgainError, pause_after, retry_after
from emotrace.labels import EMOTIONS, EmotraceError, emotion

DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_URL = "https://api.openai.com/v1"
AGAIN = (408, 409, 425, 429)
FATAL = (401, 402, 403, 404, 405)
PER_TEXT = ("content_filter", "context_length_exceeded", "string_above_max_length")
_T = TypeVar("_T", Verdict, TargetVerdict)


class _RejectedError(Exception):
    """The endpoint will not take this request, whenever it is sent."""


class _UnanswerableError(Exception):
    """The endpoint will not judge this one text."""


class _StoppedError(Exception):
    """The run ended while this text was waiting."""


class OpenAIJudge:
    """A judge behind an OpenAI-compatible endpoint.

    Args:
        model: the endpoint's name of the model.
        base_url: of the endpoint; None takes ``OPENAI_BASE_URL``, else OpenAI's own.
        concurrency: requests in flight at most, over everything this judge is asked.
        attempts: requests per answer at most, where they fail on the way.
        answers: answers per text at most, where they are malformed.
        timeout: seconds for a request.
        backoff: seconds before the second attempt, doubled for each further one, times a random 0.5 to 1.
        max_wait: longest pause in seconds; also where ``Retry-After`` asks for more.
        give_up: texts in a row that may fail at the endpoint before the run ends with an error.
        seed: sent along; the n-th answer to a text is asked for with ``seed + n``.
        price: US dollars per million prompt and completion tokens; without it no cost is reported.

    Raises:
        EmotraceError: for a missing key, a base URL that is none, or a setting out of range.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        base_url: str | None = None,
        concurrency: int = 8,
        attempts: int = 8,
        answers: int = 3,
        timeout: float = 60.0,
        backoff: float = 1.0,
        max_wait: float = 60.0,
        give_up: int = 8,
        seed: int = 0,
        price: tuple[float, float] | None = None,
    ) -> None:
        self.model, self.name = model, f"openai:{model}"
        self._key = _key(self.name)
        self._url = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_URL
        if urlsplit(self._url).scheme not in ("http", "https") or not urlsplit(self._url).hostname:
            raise EmotraceError(f"{self.name}: the base URL (OPENAI_BASE_URL) must look like https://HOST/v1.")
        least = {"concurrency": concurrency, "attempts": attempts, "answers": answers, "give_up": give_up}
        for name, value in least.items():
            if value < 1:
                raise EmotraceError(f"{self.name}: {name}={value!r} must be at least 1.")
        if price is not None and (len(price) != 2 or min(price) < 0):
            raise EmotraceError(f"{self.name}: price={price!r} must be two figures, US dollars per million tokens.")
        self.concurrency, self.attempts, self.answers, self.give_up = concurrency, attempts, answers, give_up
        self.backoff, self.max_wait, self.seed, self.price = backoff, max_wait, seed, price
        self._client = openai.OpenAI(api_key=self._key, base_url=self._url, max_retries=0, timeout=timeout)
        self._create: Any = self._client.chat.completions.with_raw_response.create
        self._slots = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._meter: dict[str, int] = dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "requests", "retries", "unreported"), 0
        )
        self._form = 0  # index in FORMATS of what the endpoint is known to take
        self._options: dict[str, float] = {"temperature": 0.0, "seed": seed}
        self._failing = 0

    @property
    def _questions(self) -> tuple[Question, ...]:
        return BLIND, TARGET

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.model!r}, base_url={self.settings['base_url']!r})"

    def __enter__(self) -> OpenAIJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What a manifest says of this judge; no key, and no user or query part of the URL."""
        parts = urlsplit(self._url)
        url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        return {"judge": self.name, "base_url": self._clean(url), "seed": self.seed, "format": FORMATS[self._form]} | {
            "options": dict(self._options)
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on beside the model's name: endpoint, seed, temperature and the wording of the questions."""
        asked = {"url": self.settings["base_url"], "seed": self.seed, "temperature": 0.0}
        return {**asked, "questions": [[q.system, q.user, list(q.choices)] for q in self._questions]}

    @property
    def usage(self) -> dict[str, int | float | None]:
        """Tokens, requests and retries so far, and ``cost`` in US dollars.

        ``unreported`` counts answers that came without a token count; the cost is None then, and without a price.
        """
        with self._lock:
            meter = dict(self._meter)
        tokens = (meter["prompt_tokens"], meter["completion_tokens"])
        known = self.price is not None and not meter["unreported"]
        cost = sum(n * p for n, p in zip(tokens, self.price or (), strict=True)) / 1e6 if known else None
        return {**meter, "cost": cost}

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """Ask the blind question of each text; blank ones are unjudged without a request."""
        return list(self.iter_judge(texts, progress=progress))

    def judge_target(
        self, texts: Sequence[str], targets: Sequence[str], *, progress: bool = False
    ) -> list[TargetVerdict]:
        """Ask the published target-aware question of each (text, target)."""
        return list(self.iter_judge_target(texts, targets, progress=progress))

    def iter_judge(self, texts: Sequence[str], *, progress: bool = False) -> Iterator[Verdict]:
        """The verdicts of `judge`, in order, as they arrive."""

        def one(text: str, stop: threading.Event) -> Verdict:
            answer, reason = self._ask(BLIND, text, "", stop)
            return {"predicted": answer, "judge": self.name, "reason": reason}

        return self._each(one, list(texts), progress)

    def iter_judge_target(
        self, texts: Sequence[str], targets: Sequence[str], *, progress: bool = False
    ) -> Iterator[TargetVerdict]:
        """The verdicts of `judge_target`, in order, as they arrive."""
        if len(texts) != len(targets):
            raise EmotraceError(f"{self.name}: {len(texts)} texts but {len(targets)} targets.")
        asked = [emotion(target, EMOTIONS, f"target {i} of {self.name}") for i, target in enumerate(targets)]

        def one(pair: tuple[str, str], stop: threading.Event) -> TargetVerdict:
            answer, reason = self._ask(TARGET, *pair, stop)
            return {"match": answer, "judge": self.name, "reason": reason}

        return self._each(one, list(zip(texts, asked, strict=True)), progress)

    def _each(self, one: Callable[[Any, threading.Event], _T], items: list[Any], progress: bool) -> Iterator[_T]:
        """Ask about every item on ``concurrency`` threads; the first fatal error stops all of them."""
        stop, fatal = threading.Event(), list[BaseException]()

        def guarded(item: Any) -> _T:
            try:
                return one(item, stop)
            except _StoppedError:
                raise
            except BaseException as error:
                fatal.append(error)
                stop.set()
                raise

        self._failing = 0
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            with tqdm(total=len(items), desc=f"judge {self.name}", unit="text", disable=not progress) as bar:
                for verdict in pool.map(guarded, items):
                    bar.set_postfix(self._meter, refresh=False)
                    bar.update()
                    yield verdict
        except _StoppedError:
            raise fatal[0] from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, question: Question, text: str, target: str, stop: threading.Event) -> tuple[Any, str]:
        """One text: (answer, reason), or (None, why not)."""
        if not text.strip():
            return None, EMPTY
        messages = question.messages(text, target)
        why = ""
        for nth in range(self.answers):
            try:
                payload = self._deliver(question, messages, nth, stop)
                answer, reason = read_answer(question, payload)
            except MalformedError as error:
                why = str(error)
                self._count(retries=int(nth + 1 < self.answers))
                continue
            except _UnanswerableError as error:
                return None, self._clean(f"not judged by the endpoint: {error}")
            except (AgainError, _RejectedError) as error:
                return None, self._failed(str(error))
            return answer, self._clean(reason)
        return None, self._clean(f"malformed answer, {self.answers} times: {why}")

    def _failed(self, why: str) -> str:
        """The reason of a text that failed on the way; ends the run when nothing else happens any more."""
        with self._lock:
            self._failing += 1
            failing = self._failing
        if failing >= self.give_up:
            raise EmotraceError(
                self._clean(
                    f"{self.name}: {failing} texts in a row failed at {self.settings['base_url']}, last: {why}."
                )
                + " What was judged is kept; the same command continues."
            )
        return self._clean(ENDPOINT + why)

    def _deliver(self, question: Question, messages: Any, nth: int, stop: threading.Event) -> Any:
        """The endpoint's JSON, however often it must be asked for it."""

        def before_sleep(_: tenacity.RetryCallState) -> None:
            self._count(retries=1)

        def sleep(seconds: float) -> None:
            stop.wait(seconds)

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return pause_after(state.attempt_number, getattr(error, "wait", None), self.backoff, self.max_wait)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=pause,
            retry=tenacity.retry_if_exception_type(AgainError),
            sleep=sleep,
            before_sleep=before_sleep,
            reraise=True,
        )
        return retrying(self._request, question, messages, nth, stop)

    def _request(self, question: Question, messages: Any, nth: int, stop: threading.Event) -> Any:
        """One delivered request; an option or format that the endpoint rejects with 400 is left out from then on."""
        form, options = self._form, dict(self._options)
        while True:
            if "seed" in options:
                options["seed"] = self.seed + nth
            try:
                with self._slots:
                    if stop.is_set():
                        raise _StoppedError
                    self._count(requests=1)
                    asked_form = question.response_format(FORMATS[form])
                    body = self._create(model=self.model, messages=messages, **asked_form, **options).text
            except openai.APIStatusError as error:
                why = self._rejected(error)
                named = [name for name in options if re.search(rf"\b{name}\b", why)]
                if named:
                    options.pop(named[0])
                elif form + 1 < len(FORMATS):
                    form += 1
                else:
                    raise _RejectedError(why) from None
                continue
            except openai.APITimeoutError:
                raise AgainError("timeout") from None
            except openai.APIConnectionError:
                raise AgainError("connection lost or refused") from None
            with self._lock:
                self._form, self._failing = max(self._form, form), 0
                self._options = {name: value for name, value in self._options.items() if name in options}
            return self._metered(self._scrubbed(body))

    def _rejected(self, error: openai.APIStatusError) -> str:
        """What a 400 says; raises where the status, or its code, settles what to do."""
        body = error.body if isinstance(error.body, dict) else {}
        said = body.get("message") or (error.body if isinstance(error.body, str) else "")
        why = self._clean(f"HTTP {error.status_code} {body.get('code') or ''} {said}")
        if error.status_code in (401, 403):
            raise EmotraceError(
                f"{self.name}: {self.settings['base_url']} refused the key in OPENAI_API_KEY (HTTP {error.status_code})."
            ) from None
        if error.status_code in FATAL or body.get("code") == "insufficient_quota":
            raise EmotraceError(f"{self.name} at {self.settings['base_url']}: {why}") from None
        if error.status_code in AGAIN or error.status_code >= 500:
            raise AgainError(why, retry_after(error.response.headers)) from None
        if body.get("code") in PER_TEXT:
            raise _UnanswerableError(why) from None
        if error.status_code not in (400, 422):
            raise _RejectedError(why) from None
        return why

    def _metered(self, body: str) -> Any:
        """The JSON of an answer, its tokens counted; also the tokens of malformed answers are paid for."""
        try:
            payload = json.loads(body)
        except ValueError:
            payload = None
        used = payload.get("usage") if isinstance(payload, dict) else None
        match used:
            case {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}:
                self._count(prompt_tokens=prompt, completion_tokens=completion)
            case _:
                self._count(unreported=1)
        if payload is None:
            raise MalformedError(f"the body is not JSON: {body[:80]!r}")
        return payload

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, n in more.items():
                self._meter[name] += n

    def _clean(self, text: str) -> str:
        """A text of the endpoint's, fit to be kept: without the key, on one line, not endless."""
        return " ".join(self._scrubbed(text).split())[:300]

    def _scrubbed(self, text: str) -> str:
        """The text without the key (a shorter one, such as a local endpoint's ``none``, is a word, not a secret)."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text


def _key(name: str) -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise EmotraceError(
            f"judge {name!r} needs a key: set the environment variable OPENAI_API_KEY (any word for a local endpoint, "
            "whose address goes into OPENAI_BASE_URL)."
        )
    if not key.isascii() or not key.isprintable():
        raise EmotraceError(f"judge {name!r}: OPENAI_API_KEY holds a character that no key has.")
    return key
