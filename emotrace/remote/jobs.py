"""Jobs: requests carried out by a server, several in flight, each answered exactly once, in order.

A job that is on its way is known by its id. Ids are kept in a small log, so that a client that was killed asks for the
results of the jobs that it had sent, and does not send them again.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nnsight.schema.response import Status

from emotrace.labels import EmotraceError
from emotrace.remote.server import Gone, Server, Unreachable
from emotrace.runlog import Log
from emotrace.secrets import redacted

R = TypeVar("R")

IN_FLIGHT = 4
"""Jobs that a server is given before the first of them is answered."""
ATTEMPTS = 3
"""How often a job is sent before its error is believed."""
PATIENCE = 300.0
"""Seconds for which an unreachable server is asked again."""
UNKNOWN = 60.0
"""Seconds after which a job of which the server knows nothing is taken for lost."""
STUCK = 3600.0
"""Seconds without any change of what a server says of a job after which it is sent again."""
POLL = (0.01, 2.0)
"""Seconds between two questions: at first, and at most."""
TOO_LONG = re.compile(r"tim(e|ed)[ -]?(out|limit)|deadline", re.IGNORECASE)
"""What a server says of a job that ran longer than it allows."""
_TOO_MUCH = re.compile(f"{TOO_LONG.pattern}|out of memory", re.IGNORECASE)


class Request(NamedTuple):
    """What one job does: ``function(model, *args)``, a function of `emotrace.traced`.

    Attributes:
        name: tells it apart from all others of its run, and says what it does: a hash over everything that it depends on.
        function: of `emotrace.traced`.
        args: makes its arguments; called when it is sent.
        about: anything that whoever asks wants back with the answer.
        parts: makes smaller requests that do the same together, for a server that allows no job of this length; None where
            there are none.
        here: does the same where the model is in this process and its values need no packing; None where that is no other.
    """

    name: str
    function: Any
    args: Callable[[], tuple]
    about: Any = None
    parts: Callable[[], Sequence[Request]] | None = None
    here: Callable[[], Any] | None = None


class TooLong(Exception):
    """A job ran longer than its server allows."""


@dataclass
class Job:
    """A request that was sent."""

    request: Request
    id: str
    attempts: int = 1
    since: float = field(default_factory=time.monotonic)
    said: str = "RECEIVED"


class Jobs:
    """Sends requests and takes in their answers.

    Args:
        server: where to.
        model_key: the model, as the server names it.
        env: what the server applies to it first.
        pack: turns a request into bytes.
        compressed: whether it compresses, and the server does.
        log: file of job ids, kept until `done`; None keeps none.
        tell: called with a few words on the job that is waited for.
        in_flight: most jobs sent and not answered.
    """

    def __init__(
        self, server: Server, model_key: str, env: dict[str, Any], pack: Callable[[Request], bytes], compressed: bool,
        log: Path | None = None, tell: Callable[[str], None] | None = None, in_flight: int = IN_FLIGHT,
    ) -> None:  # fmt: skip
        self.server, self.model_key, self.env = server, model_key, env
        self.pack, self.compressed, self.tell, self.in_flight = pack, compressed, tell, in_flight
        self.log = None if log is None else Log(log, ("request", "job"))
        rows = [] if self.log is None else self.log.rows()
        self.known = {row["request"]: row["job"] for row in rows if row["host"] == server.host}

    def results(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Any]]:
        """Requests with their answers, in order; requests are made while earlier ones run.

        In the place of a request that takes too long come its parts.

        Raises:
            EmotraceError: for a job that fails `ATTEMPTS` times, a refused key, or a server that stays away. Jobs that are on
                their way go on, and the same call continues with them.
        """
        waiting: deque[Job] = deque()
        coming = iter(requests)
        while True:
            while len(waiting) < self.in_flight and (request := next(coming, None)) is not None:
                waiting.append(self._sent(request))
            if not waiting:
                return
            request = waiting[0].request
            try:
                value = self._answer(waiting[0])
            except TooLong:
                waiting.popleft()
                waiting.extendleft([self._sent(part) for part in request.parts()][::-1])  # type: ignore[misc]
                continue
            waiting.popleft()
            yield request, value

    def done(self) -> None:
        """Everything that was asked for is safe elsewhere: the log goes."""
        if self.log is not None:
            self.log.close()
            self.log.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the log, which stays."""
        if self.log is not None:
            self.log.close()

    def _sent(self, request: Request) -> Job:
        if request.name in self.known:  # sent before this process began
            return Job(request, self.known.pop(request.name))
        return Job(request, self._submit(request))

    def _submit(self, request: Request) -> str:
        blob = self.pack(request)
        job = self._insisting(lambda: self.server.submit(self.model_key, self.env, blob, self.compressed))
        if self.log is not None:
            self.log.append({"request": request.name, "job": job, "host": self.server.host})
        return job

    def _again(self, job: Job, reason: str) -> None:
        if job.attempts >= ATTEMPTS:
            advice = " A smaller batch_size asks for less at a time." if _TOO_MUCH.search(reason) else ""
            raise EmotraceError(
                f"job {job.id} on {self.server.host} failed {job.attempts} times: {_short(reason)}{advice}"
            )
        job.attempts += 1
        job.id, job.since, job.said = self._submit(job.request), time.monotonic(), f"sent again ({_short(reason)})"

    def _answer(self, job: Job) -> Any:
        """Wait for a job; send it again where it or its result was lost."""
        pause = POLL[0]
        while True:
            response = self._insisting(lambda: self.server.state(job.id))
            waited = time.monotonic() - job.since
            if response is None:
                if waited > UNKNOWN:
                    self._again(job, "the server does not know it")
                    pause = POLL[0]
            elif response.status == Status.COMPLETED:
                try:
                    return self._insisting(partial(self.server.result, response, self.compressed))["found"][0]
                except (Gone, KeyError) as error:
                    self._again(job, str(error))
                    pause = POLL[0]
            elif response.status == Status.ERROR:
                if job.request.parts is not None and TOO_LONG.search(_short(response.description)):
                    raise TooLong
                self._again(job, response.description or "no reason given")
                pause = POLL[0]
            else:
                said = f"{response.status.value} {_short(response.description)}".strip()
                if said != job.said:
                    job.said, job.since = said, time.monotonic()
                elif waited > STUCK:
                    self._again(job, f"{said!r} for {waited:.0f} s without a change")
            if self.tell is not None:
                self.tell(job.said)
            time.sleep(pause)
            pause = min(POLL[1], 1.3 * pause)

    def _insisting(self, ask: Callable[[], R]) -> R:
        """Ask until the server answers."""
        until, pause = time.monotonic() + PATIENCE, 0.1
        while True:
            try:
                return ask()
            except Unreachable as error:
                if time.monotonic() > until:
                    raise EmotraceError(
                        f"{error} (asked for {PATIENCE:.0f} s). Repeat the same command to continue."
                    ) from None
                if self.tell is not None:
                    self.tell(f"no answer: {_short(str(error))}")
                time.sleep(pause)
                pause = min(5.0, 1.5 * pause)


def _short(text: str) -> str:
    """One line, without secrets: of a traceback the last, which says what was raised."""
    lines = [line.strip() for line in redacted(text).splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1 if any("Traceback (most" in line for line in lines) else 0][:300]
