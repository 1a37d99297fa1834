"""The OpenAI judge: any endpoint that speaks chat completions; asked concurrently, retried, metered, never guessed.

A text gets a verdict only from a well-formed answer. What fails on the way is sent again (`emotrace.judges.endpoint`); malformed
answers (no JSON, no field, a word outside the choices, a refusal, thinking without an answer) are asked again with the next seed,
and with more room where they were cut off. After a bounded number of either the text is *unjudged*. The key comes from
``OPENAI_API_KEY`` and goes nowhere but into the request header.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from emotrace import arguments
from emotrace.judges.answers import FilteredError, MalformedError, read_answer
from emotrace.judges.base import EMPTY, ENDPOINT, TargetVerdict, Verdict, texts_of
from emotrace.judges.endpoint import LONGEST, Endpoint, RejectedError, StoppedError, UnanswerableError
from emotrace.judges.questions import BLIND, TARGET, JudgeQuestion
from emotrace.judges.retries import AgainError, Patience
from emotrace.labels import ANSWERS, EMOTIONS, EmotraceError, emotion
from emotrace.secrets import redacted
from emotrace.shown import progress as progress_bar
from emotrace.texts import one_line

DEFAULT_MODEL = "gpt-4o-mini"
_T = TypeVar("_T", Verdict, TargetVerdict)


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

    choices = ANSWERS

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
        self.model, self.name = arguments.text("OpenAIJudge(model)", model), f"openai:{model}"
        least = {"concurrency": concurrency, "attempts": attempts, "answers": answers, "give_up": give_up}
        for name, value in least.items():
            arguments.whole(f"OpenAIJudge({name})", value, 1)
        arguments.number("OpenAIJudge(timeout)", timeout, above=0)
        for name, number in (("backoff", backoff), ("max_wait", max_wait)):
            arguments.number(f"OpenAIJudge({name})", number, least=0)
        arguments.seed("OpenAIJudge(seed)", seed)
        if base_url is not None:
            arguments.text("OpenAIJudge(base_url)", base_url)
        if price is not None:
            if not isinstance(price, Sequence) or isinstance(price, (str, bytes)) or len(price) != 2:
                raise EmotraceError(f"{self.name}: price={price!r} must be two figures, US dollars per million tokens.")
            for figure in price:
                arguments.number("OpenAIJudge(price)", figure, least=0)
        self.concurrency, self.answers, self.give_up, self.price = concurrency, answers, give_up, price
        self._endpoint = Endpoint(
            self.name, model, base_url, concurrency, Patience(attempts, timeout, backoff, max_wait), seed
        )
        self._lock = threading.Lock()
        self._failing = 0

    @property
    def _questions(self) -> tuple[JudgeQuestion, ...]:
        return BLIND, TARGET

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.model!r}, base_url={self.settings['base_url']!r})"

    def __enter__(self) -> OpenAIJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What a manifest says of this judge; no key, and no user or query part of the URL."""
        return {"judge": self.name, **self._endpoint.settings}

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the answers depend on beside the model's name: endpoint, seed, temperature and the wording of the questions.

        The endpoint is known by host and path: a local one has another port each time it is started.
        """
        asked = {"url": self._endpoint.address.place, "seed": self._endpoint.seed, "temperature": 0.0}
        return {**asked, "questions": [[q.system, q.user, list(q.choices)] for q in self._questions]}

    @property
    def usage(self) -> dict[str, int | float | None]:
        """Tokens, requests and retries so far, and ``cost`` in US dollars.

        ``unreported`` counts answers that came without a token count; the cost is None then, and without a price.
        """
        meter = dict(self._endpoint.meter)
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

        return self._each(one, texts_of(self.name, texts), progress)

    def iter_judge_target(
        self, texts: Sequence[str], targets: Sequence[str], *, progress: bool = False
    ) -> Iterator[TargetVerdict]:
        """The verdicts of `judge_target`, in order, as they arrive."""
        texts, targets = texts_of(self.name, texts), texts_of(f"{self.name}, targets", targets)
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

        def guarded(item: object) -> _T:
            try:
                return one(item, stop)
            except StoppedError:
                raise
            except BaseException as error:
                fatal.append(error)
                stop.set()
                raise

        self._failing = 0
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            with progress_bar(total=len(items), desc=f"judge {self.name}", unit="text", enabled=progress) as bar:
                for verdict in pool.map(guarded, items):
                    bar.set_postfix(self._endpoint.meter, refresh=False)
                    bar.update()
                    yield verdict
        except StoppedError:
            raise fatal[0] from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, question: JudgeQuestion, text: str, target: str, stop: threading.Event) -> tuple[Any, str]:
        """One text: (answer, reason), or (None, why not)."""
        if not text.strip():
            return None, EMPTY
        messages = question.messages(text, target)
        why = ""
        for nth in range(self.answers):
            try:
                choice = self._endpoint.choice(question, messages, nth, stop)
                with self._lock:
                    self._failing = 0
                answer, reason = read_answer(question, choice)
            except MalformedError as error:
                why = str(error)
                if error.cut:
                    self._endpoint.more_room()
                self._endpoint.count(retries=int(nth + 1 < self.answers))
            except (UnanswerableError, FilteredError) as error:
                return None, _clean(f"not judged by the endpoint: {error}")
            except (AgainError, RejectedError) as error:
                return None, self._failed(str(error))
            else:
                return answer, _clean(reason)
        return None, _clean(f"malformed answer, {self.answers} times: {why}")

    def _failed(self, why: str) -> str:
        """The reason of a text that failed on the way; ends the run when nothing else happens any more."""
        with self._lock:
            self._failing += 1
            failing = self._failing
        if failing >= self.give_up:
            raise EmotraceError(
                _clean(f"{self.name}: {failing} texts in a row failed at {self.settings['base_url']}, last: {why}.")
                + " What was judged is kept; the same command continues."
            )
        return _clean(ENDPOINT + why)


def _clean(text: str) -> str:
    """A text of the endpoint's, fit to be kept: without secrets, on one line, not endless."""
    return one_line(redacted(text[:LONGEST]), 300)
