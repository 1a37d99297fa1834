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

from nnsight.schema.response import ResponseModel, Status

from emotrace.labels import EmotraceError
from emotrace.remote.naming import settled
from emotrace.remote.server import Gone, Server, Unreachable, patiently
from emotrace.runlog import Log
from emotrace.secrets import redacted

R = TypeVar("R")

IN_FLIGHT = 4
"""Jobs that a server is given before the first of them is answered."""
ATTEMPTS = 3
"""How often a job is sent before its error is believed."""
PATIENCE = 300.0
"""Seconds for which an unreachable server is asked again."""
UNKNOWN, UNSEEN = 60.0, 600.0
"""Seconds after which a job of which the server knows nothing any more, or nothing yet, is taken for lost: it knows a job from
when it is queued, not from when it is received."""
STUCK = 4500.0
"""Seconds without any change of what a server says of a job after which it is sent again: a place in the queue may stand still
for as long as another job may run, by default 3,600 s, and so may a job that runs."""
COMING_UP = 3600.0
"""Seconds for which a model is waited for that is not up."""
AGAIN = (1.0, 15.0)
"""Seconds before a job is sent a second and a third time."""
RECEIVED = "RECEIVED"
POLL = (0.01, 2.0)
"""Seconds between two questions: at first, and at most."""
TOO_LONG = re.compile(r"tim(e|ed)[ -]?(out|limit)|deadline", re.IGNORECASE)
"""What a server says of a job that ran longer than it allows."""
_TRACEBACK = "Traceback (most recent call last)"
_TOO_MUCH = re.compile(f"{TOO_LONG.pattern}|out of memory", re.IGNORECASE)


class Request(NamedTuple):
    """What one job does: ``function(model, *args)``, a function of `emotrace.traced`.

    Attributes:
        name: tells it apart from all others of its run, and says what it does: a hash over everything that it depends on
            beside model and code; empty for one that nobody asks for again.
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
    """A request that was sent.

    Attributes:
        request: what it does.
        id: what the server calls it.
        attempts: how often it was sent.
        since: when what is said of it changed.
        said: the server's last words on it.
        earlier: whether a process before this one sent it.
    """

    request: Request
    id: str
    attempts: int = 1
    since: float = field(default_factory=time.monotonic)
    said: str = RECEIVED
    earlier: bool = False


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

    Attributes:
        taken: bytes of weights that jobs took by calls of modules, where these were not beside their blocks.
    """

    def __init__(
        self, server: Server, model_key: str, env: dict[str, Any], pack: Callable[[Request], bytes], compressed: bool,
        log: Path | None = None, tell: Callable[[str], None] | None = None, in_flight: int = IN_FLIGHT,
    ) -> None:  # fmt: skip
        self.server, self.model_key, self.env = server, model_key, env
        self.pack, self.compressed, self.tell, self.in_flight = pack, compressed, tell, in_flight
        self.log = None if log is None else Log(log, ("request", "job"))
        rows = [] if self.log is None else self.log.rows()
        self.taken, self.settled = 0, settled(model_key)
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
        if request.name and self._called(request) in self.known:  # sent before this process began
            return Job(request, self.known.pop(self._called(request)), earlier=True)
        return Job(request, self._submit(request))

    def _submit(self, request: Request) -> str:
        blob = self.pack(request)
        job = self._insisting(lambda: self.server.submit(self.model_key, self.env, blob, self.compressed))
        if self.log is not None and request.name:
            self.log.append({"request": self._called(request), "job": job, "host": self.server.host})
        return job

    def _called(self, request: Request) -> str:
        return f"{request.name}@{self.settled}"

    def _again(self, job: Job, reason: str) -> None:
        if job.attempts >= ATTEMPTS:
            raise self._failed(job, reason, f"{job.attempts} times")
        time.sleep(AGAIN[job.attempts - 1])
        job.attempts, job.earlier = job.attempts + 1, False
        job.id, job.since, job.said = self._submit(job.request), time.monotonic(), f"sent again ({_short(reason)})"

    def _failed(self, job: Job, reason: str, how: str) -> EmotraceError:
        advice = " A smaller batch_size asks for less at a time." if _TOO_MUCH.search(reason) else ""
        return EmotraceError(f"job {job.id} on {self.server.host} failed {how}: {_short(reason)}{advice}")

    def _answer(self, job: Job) -> Any:
        """Wait for a job; send it again where it or its result was lost."""
        pause = POLL[0]
        while True:
            attempts = job.attempts
            response = self._insisting(lambda: self.server.state(job.id))
            waited = time.monotonic() - job.since
            if response is None:
                if waited > (UNSEEN if job.said == RECEIVED and not job.earlier else UNKNOWN):
                    self._again(job, "the server does not know it")
            elif response.status == Status.COMPLETED:
                try:
                    value, taken = self._insisting(partial(self.server.result, response, self.compressed))["found"]
                    self.taken += taken
                    return value
                except (Gone, KeyError, ValueError) as error:
                    self._again(job, str(error))
            elif response.status == Status.ERROR:
                self._error(job, response.description or "no reason given")
            else:
                self._unfinished(job, response, waited)
            if self.tell is not None:
                self.tell(job.said)
            pause = POLL[0] if job.attempts > attempts else min(POLL[1], 1.3 * pause)
            time.sleep(pause)

    def _error(self, job: Job, reason: str) -> None:
        """What an error asks for. A traceback says that what was sent fails, and would again; a sentence says that the server
        did not carry it out."""
        if job.request.parts is not None and TOO_LONG.search(_short(reason)):
            raise TooLong
        if _TRACEBACK in reason and not job.earlier:
            raise self._failed(job, reason, "there")
        self._again(job, reason)

    def _unfinished(self, job: Job, response: ResponseModel, waited: float) -> None:
        """Note what is said of a job that is neither done nor failed.

        Raises:
            EmotraceError: for a model that does not come up.
        """
        coming = response.status in (Status.PROVISIONING, Status.DEPLOYING)
        said = f"{response.status.value} {_short(response.description)}".strip()
        if said != job.said:
            job.said, job.since = said, time.monotonic()
        elif coming and waited > COMING_UP:
            raise EmotraceError(
                f"{self.server.host}: the model has been coming up for {waited:.0f} s ({said}), and the job waits there. "
                "Repeat the same command to continue."
            )
        elif waited > STUCK:
            self._again(job, f"{said!r} for {waited:.0f} s without a change")

    def _insisting(self, ask: Callable[[], R]) -> R:
        """Ask until the server answers."""
        tell = self.tell or (lambda _: None)
        try:
            return patiently(ask, Unreachable, PATIENCE, lambda error: tell(f"no answer: {_short(str(error))}"), 0.1)
        except Unreachable as error:
            raise EmotraceError(f"{error} (asked for {PATIENCE:.0f} s). Repeat the same command to continue.") from None


def _short(text: str) -> str:
    """One line, without secrets: of a traceback the last, which says what was raised."""
    lines = [line.strip() for line in redacted(text).splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1 if _TRACEBACK in text else 0][:300]
