"""NDIF server: nnsight's remote protocol (0.8) on 127.0.0.1, in one file that knows nothing of emotrace.

```
python emotrace/testing/ndif_server.py --model meta-llama/Llama-3.1-8B=data/tiny_model
```

prints one line of JSON with its address and key when it is ready. A client then says ``remote="http://127.0.0.1:PORT"``, or
sets ``NDIF_HOST``, and ``NDIF_API_KEY``. Jobs run one after the other with nnsight's own server-side calls, and ``emotrace``
cannot be imported here: whatever a block needs must have come with it. Not imitated: NDIF's separate runner process, its
GPUs, and a file system of its own (a block that opens a file of the client's works here and fails there). All results are
kept in memory until the server ends.

**It executes pickles that clients send**, as NDIF does. So it binds the loopback address, takes jobs with its key only, and
makes up the key where none is given; put it behind no proxy and on no other address.

What NDIF does to every job is a *mode*: a flag, or ``POST /admin/modes``. What goes wrong is a *fault*:
``POST /admin/faults`` with ``{kind: stage, "times": 1, "after": 0}``, kinds and stages as in `FAULTS`; it happens ``times``
times (−1: always) after it was spared ``after`` times. ``DELETE /admin/faults`` ends them, ``GET`` lists those that are left.
``POST /admin/restart`` forgets every job that is not finished, and ``GET /admin/log`` lists all jobs ever seen. Orders need the
key, too.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email
import email.message
import functools
import hashlib
import io
import json
import os
import queue
import secrets
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nnsight.tracing.globals
import torch
import transformers
import zstandard
from nnsight import TransformersModel
from nnsight.intervention.interleaver import Mediator
from nnsight.ndif import get_local_env
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.tracer import _saves, dec, inc

WRAPPER = "nnsight.modeling.transformers.TransformersModel"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LOST = "LOST"

FAULTS = {
    "refuse": ("subscribe", "request", "response"),  # 401, whatever the key
    "http": ("subscribe", "request", "response", "results", "status"),  # `code` (503) instead of an answer
    "drop": ("subscribe", "request", "reply", "queued", "running", "completed", "response", "results"),
    "delay": ("subscribe", "request", "reply", "queued", "running", "completed", "response", "results"),  # `seconds`
    "error": ("queued", "running", "completed"),  # the job fails there, with `message`
    "lose": ("job", "result"),  # accepted and never run; run, and its result never seen
    "twice": ("queued", "running", "completed", "run"),  # the frame is sent twice; the job itself runs twice
    "restart": ("queued", "running", "completed"),  # down for `seconds`; `stale`: polls see the last status for ever
}
"""Kind of fault → where it can happen. ``subscribe``: before the session id; ``request``: the job is taken in and its
websocket closed; ``reply``: taken in, but the POST gets no answer; ``queued``, ``running``: after that status was told;
``completed``: after the run, before it is told; ``response``, ``results``: a poll, a download (breaks off half-way)."""

MODES: dict[str, Any] = {
    "no_gradients": False,  # values come without a graph, and what a block writes carries none into the model
    "copies": False,  # values are copies: changing one in place changes nothing in the model
    "autocast": None,  # dtype of torch.autocast around every block
    "expire_urls": None,  # seconds for which the address of a result is good
    "execution_timeout": None,  # seconds after which a block is killed
    "inline_limit": 8 << 20,  # results up to so many bytes come on the websocket, others by URL
    "versions": {},  # package → version that /env claims
}


@dataclass
class Job:
    """One request, from its arrival to its result."""

    id: str
    model_key: str
    blocking: bool
    bytes_in: int
    state: str = Status.RECEIVED.value
    states: list[str] = field(default_factory=list)
    runs: int = 0
    served: int = 0
    polls: int = 0
    bytes_out: int = 0
    payload: int = 0
    error: str = ""


@dataclass
class Held:
    """What the server keeps of a job beside its entry in the log."""

    job: Job
    request: RequestModel
    blob: bytes
    stored: ResponseModel | None = None
    result: bytes = b""
    expires: float = float("inf")


class Misfortune(Exception):
    """A failure that was ordered."""


class Overtime(BaseException):
    """The block ran past the execution timeout; no ``except Exception`` of its own may hide that."""


class Faults:
    """What is still to go wrong."""

    def __init__(self) -> None:
        self.left: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.woken = threading.Event()

    def add(self, fault: dict[str, Any]) -> None:
        """Order one; a ValueError says what can be ordered."""
        kinds = [kind for kind in fault if kind in FAULTS]
        if len(kinds) != 1 or fault[kinds[0]] not in FAULTS[kinds[0]]:
            raise ValueError(f"{fault}: one of {FAULTS}")
        with self.lock:
            self.left.append({"kind": kinds[0], "at": fault[kinds[0]], "times": 1, "after": 0, **fault})

    def take(self, kind: str, at: str) -> dict[str, Any] | None:
        """The fault that happens here and now, if any; it is counted."""
        with self.lock:
            for fault in self.left:
                if (fault["kind"], fault["at"]) == (kind, at):
                    if fault["after"] > 0:
                        fault["after"] -= 1
                        continue
                    fault["times"] -= 1
                    if fault["times"] == 0:
                        self.left.remove(fault)
                    return fault
        return None

    def wait(self, at: str) -> None:
        """Sleep, if a delay was ordered, until it is over or everyone is woken."""
        woken = self.woken
        if fault := self.take("delay", at):
            woken.wait(fault.get("seconds", 0.1))

    def wake(self) -> None:
        """End the delays that are going on."""
        woken, self.woken = self.woken, threading.Event()
        woken.set()


class Loopback:
    """The models, the queue and every job of one server."""

    def __init__(self, models: dict[str, TransformersModel], key: str, port: int, modes: dict[str, Any]) -> None:
        self.models, self.key, self.modes = models, key, dict(modes)
        self.faults = Faults()
        self.lock = threading.RLock()
        self.held: dict[str, Held] = {}
        self.sockets: dict[str, Socket] = {}
        self.connections: set[socket.socket] = set()
        self.queue: queue.Queue[Held] = queue.Queue()
        self.listen(port)

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def listen(self, port: int) -> None:
        """Open the port and answer in threads of their own."""
        self.http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def restart(self, seconds: float = 0.2, stale: bool = False, spare: socket.socket | None = None) -> None:
        """Go down, forget every unfinished job, come back on the same port. Stored results survive, as in S3."""
        with self.lock:
            for held in self.held.values():
                if held.job.state not in (Status.COMPLETED.value, Status.ERROR.value):
                    held.job.state = LOST
                    held.stored = held.stored if stale else None
            with contextlib.suppress(queue.Empty):
                while True:
                    self.queue.get_nowait()
        self.faults.wake()
        port = self.http.server_address[1]
        self.http.shutdown()
        self.http.server_close()
        for connection in list(self.connections - {spare}):
            _hang_up(connection)
        time.sleep(seconds)
        self.listen(port)

    def submit(self, request: RequestModel, blob: bytes, bytes_in: int) -> ResponseModel:
        """Take a job in; its first answer."""
        job = Job(str(uuid.uuid4()), request.model_key, bool(request.session_id), bytes_in)
        held = Held(job, request, blob)
        with self.lock:
            self.held[job.id] = held
        received = ResponseModel(id=job.id, status=Status.RECEIVED, description="Your job has been received.")
        if self.faults.take("drop", "request"):
            self.close(held)
        if self.faults.take("lose", "job"):
            job.state = LOST
            return received
        self.tell(held, Status.QUEUED, f"Your job is number {self.queue.qsize() + 1} in the queue.")
        try:
            self.at("queued", held)
        except Misfortune as error:
            self.fail(held, error, 0.0)
            return received
        self.queue.put(held)
        if self.faults.take("twice", "run"):
            self.queue.put(held)
        return received

    def work(self) -> None:
        """Run job after job, for ever."""
        while True:
            held = self.queue.get()
            if held.job.state == LOST:
                continue
            for place, waiting in enumerate(list(self.queue.queue), 1):
                self.tell(waiting, Status.QUEUED, f"Your job is number {place} in the queue.")
            started = time.perf_counter()
            try:
                self.tell(held, Status.DISPATCHED, "Your job has been sent to the model.")
                self.tell(held, Status.RUNNING, "Your job has started running.")
                self.at("running", held)
                result = self.run(held)
                seconds = time.perf_counter() - started
                self.at("completed", held)
                self.finish(held, result, seconds)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a block may raise anything, SystemExit too
                self.fail(held, error, time.perf_counter() - started)

    def at(self, stage: str, held: Held) -> None:
        """Whatever was ordered to go wrong here."""
        self.faults.wait(stage)
        if self.faults.take("drop", stage):
            self.close(held)
        if fault := self.faults.take("error", stage):
            raise Misfortune(fault.get("message", f"ordered at {stage}"))
        if fault := self.faults.take("restart", stage):
            self.restart(fault.get("seconds", 0.2), fault.get("stale", False))
            raise Misfortune(f"the server restarted at {stage}")

    def run(self, held: Held) -> bytes:
        """Execute the block against the model it names; the saved values as torch writes them."""
        model = self.model(held.job.model_key)
        nnsight.tracing.globals.SOURCES.clear()  # line numbers of another job's file would be read for this one's
        nnsight.tracing.globals.BLOCKS.clear()
        held.job.runs += 1
        objects = model._remoteable_persistent_objects()
        try:
            tracer = RequestModel.deserialize(held.blob, objects, held.request.compress)
        except Exception as error:
            raise ValueError(f"Your request payload could not be read ({type(error).__name__}: {error})") from error
        model._remoteable_set_env(held.request.env)
        inc()
        try:
            with self.limits(held):
                tracer.execute(tracer.info.code)
            saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
        finally:
            dec()
        with io.BytesIO() as file:
            torch.save(saved, file)
            return file.getvalue()

    @contextlib.contextmanager
    def limits(self, held: Held) -> Iterator[None]:
        """The modes, around one block."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(Prints(functools.partial(self.tell, held, Status.LOG))))
            if dtype := self.modes["autocast"]:
                stack.enter_context(torch.autocast("cpu", dtype=getattr(torch, dtype)))
            if self.modes["copies"] or self.modes["no_gradients"]:
                stack.enter_context(_crossing(self.modes["copies"], self.modes["no_gradients"]))
            if seconds := self.modes["execution_timeout"]:
                stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, functools.partial(_overtime, seconds))
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield

    def model(self, model_key: str) -> TransformersModel:
        """The model that a key names."""
        wrapper, _, rest = model_key.partition(":")
        wanted = json.loads(rest)
        model = self.models.get(wanted.get("repo_id"))
        right = model is not None and model.task == wanted.get("task") and wanted.get("revision") in (None, "main")
        if wrapper != WRAPPER or model is None or not right:
            up = ", ".join(f"{name} ({model.task})" for name, model in self.models.items())
            raise LookupError(f"{model_key} is not deployed. Running: {up}.")
        return model

    def finish(self, held: Held, result: bytes, seconds: float) -> None:
        """Hand the result over on the socket, or say where it lies."""
        job = held.job
        if job.state == LOST or self.faults.take("lose", "result"):
            job.state, held.stored = LOST, None
            return
        job.payload = len(result)
        held.result = zstandard.ZstdCompressor().compress(result) if held.request.compress else result
        job.bytes_out = len(held.result)
        if (valid := self.modes["expire_urls"]) is not None:
            held.expires = time.time() + valid
        done = ResponseModel(id=job.id, status=Status.COMPLETED, description="Your job has been completed.",
                             meta=_meta(seconds))  # fmt: skip
        if job.blocking and job.bytes_out <= self.modes["inline_limit"]:
            self.send(held, done.model_copy(update={"data": held.result}))
        else:
            self.send(held, done.model_copy(update={"data": f"{self.url}/results/{job.id}"}))

    def fail(self, held: Held, error: BaseException, seconds: float) -> None:
        """Tell the client what was raised, with the traceback as its block caused it."""
        held.job.error = f"{type(error).__name__}: {error}"
        ordered = isinstance(error, (Misfortune, Overtime))
        text = held.job.error if ordered else "".join(traceback.format_exception(error))
        self.send(held, ResponseModel(id=held.job.id, status=Status.ERROR, description=text, meta=_meta(seconds)))

    def tell(self, held: Held, status: Status, description: str) -> None:
        """A status without a result."""
        self.send(held, ResponseModel(id=held.job.id, status=status, description=description))

    def send(self, held: Held, response: ResponseModel) -> None:
        """Bring a job into a state: told on its socket where it has one, else stored for whoever polls."""
        job = held.job
        inline = isinstance(response.data, bytes)
        with self.lock:
            if job.state == LOST:
                return
            if response.status != Status.LOG:
                job.state = response.status.value
                job.states.append(job.state)
                held.stored = held.stored if job.blocking else response
        client = self.sockets.get(held.request.session_id)
        if client is None:
            return
        frame = (2, response.pickle()) if inline else (1, response.model_dump_json().encode())
        for _ in range(2 if self.faults.take("twice", job.state.lower()) else 1):
            job.served += client.send(*frame) and inline

    def close(self, held: Held) -> None:
        """Close the socket that listens for a job; the job goes on."""
        if client := self.sockets.pop(held.request.session_id, None):
            _hang_up(client.connection)

    def deployments(self) -> dict[str, Any]:
        """What /status says of each model."""
        found = {}
        for name, model in self.models.items():
            about = {"repo_id": name, "revision": None, "task": model.task}
            key = f"{WRAPPER}:{json.dumps(about)}"
            state = {"model_key": key, "deployment_level": "HOT", "application_state": "RUNNING"}
            found[key] = about | state | {"revision": "main", "trust_remote_code": False}
        return {"deployments": found}

    def environment(self) -> dict[str, Any]:
        """What /env says is installed."""
        env = _environment()
        return {**env, "packages": env["packages"] | self.modes["versions"]}


@functools.cache
def _environment() -> dict[str, Any]:
    env = get_local_env()
    return {**env, "packages": {k: v for k, v in env["packages"].items() if k != "emotrace" and v != "local"}}


def _meta(seconds: float) -> dict[str, Any]:
    return {"runtime": seconds, "max_mem_by_gpu": {}}


def _overtime(seconds: float, *_: object) -> None:
    raise Overtime(f"the block ran past the execution timeout of {seconds} s")


@contextlib.contextmanager
def _crossing(copies: bool, detached: bool) -> Iterator[None]:
    """Values cross between block and model as through a pickle: no shared memory, no graph, or neither."""
    original = Mediator.__dict__["event"]

    def over(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(map(over, value))
        if type(value) is dict:
            return {key: over(item) for key, item in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach() if detached else value
        return value.clone() if copies else value

    def event(cls: type[Mediator], kind: Any, location: str, *rest: Any) -> Any:
        return over(original.__func__(cls, kind, location, *map(over, rest)))

    Mediator.event = classmethod(event)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Mediator.event = original


class Prints(io.TextIOBase):
    """What a block prints, told line by line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.rest = say, ""

    def write(self, text: str) -> int:
        """Say every line that is whole."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.say(line)
        return len(text)


class Socket:
    """The server's end of one websocket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.lock = connection, threading.Lock()

    def send(self, opcode: int, payload: bytes) -> bool:
        """One frame; False if the client has gone."""
        size = len(payload)
        width = (0, 126, 127)[(size > 125) + (size > 0xFFFF)]
        head = struct.pack(
            {0: "!BB", 126: "!BBH", 127: "!BBQ"}[width], 0x80 | opcode, width or size, *[size] * bool(width)
        )
        try:
            with self.lock:
                self.connection.sendall(head + payload)
        except OSError:
            return False
        return True

    def listen(self, file: Any) -> None:
        """Answer pings until the client goes."""
        while len(head := file.read(2)) == 2:
            size = head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(file.read(2 if size == 126 else 8), "big")
            mask, payload = file.read(4), file.read(size)
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
            opcode = head[0] & 0x0F
            if opcode in (8, 9):  # close is answered by close, ping by pong
                self.send(8 if opcode == 8 else 10, payload)
            if opcode == 8:
                return


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            """Answer until the connection ends; clients that went away are part of the game."""
            server.connections.add(self.connection)
            with contextlib.suppress(OSError):
                super().handle()
            server.connections.discard(self.connection)

        def finish(self) -> None:
            """Close what is still open."""
            with contextlib.suppress(OSError):
                super().finish()

        def do_GET(self) -> None:
            """Answer by path."""
            head, _, rest = self.path.strip("/").partition("/")
            if head == "admin" and not self.ordered():
                return
            if head in ("subscribe", "response", "results", "status") and not self.gate(head):
                return
            if head == "subscribe":
                self.subscribe()
            elif head == "response":
                self.response(rest)
            elif head == "results":
                self.results(rest)
            elif head == "status":
                self.answer(server.deployments())
            elif head == "env":
                self.answer(server.environment())
            elif head == "whoami":
                self.answer({"email": "loopback@localhost" if self.known() else None, "tags": []})
            elif head == "ping":
                self.answer("pong")
            elif self.path == "/admin/log":
                self.answer([asdict(held.job) for held in list(server.held.values())])
            elif self.path == "/admin/faults":
                self.answer(server.faults.left)
            else:
                self.answer({"detail": f"no such path: {self.path}"}, 404)

        def do_POST(self) -> None:
            """Take a request in, or an order."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/request":
                self.request_(body)
            elif not self.ordered():
                return
            elif self.path == "/admin/faults":
                try:
                    server.faults.add(json.loads(body))
                    self.answer(server.faults.left)
                except ValueError as error:
                    self.answer({"detail": str(error)}, 400)
            elif self.path == "/admin/modes":
                modes = json.loads(body)
                if unknown := sorted(set(modes) - set(MODES)):
                    self.answer({"detail": f"{unknown}: choices are {', '.join(MODES)}"}, 400)
                    return
                server.modes.update(modes)
                self.answer(server.modes)
            elif self.path == "/admin/restart":
                server.restart(**json.loads(body or b"{}"), spare=self.connection)
                self.answer({})
            else:
                self.answer({"detail": f"no such path: {self.path}"}, 404)

        def do_DELETE(self) -> None:
            """End the faults."""
            if not self.ordered():
                return
            server.faults.left.clear()
            server.faults.wake()
            self.answer([])

        def known(self) -> bool:
            """Whether the key is right, and the request meant for this host: a page in a browser must not get through."""
            here = self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")
            return here and secrets.compare_digest(self.headers.get("ndif-api-key", "").encode(), server.key.encode())

        def ordered(self) -> bool:
            """Whether an order comes from who has the key; if not, it has its answer."""
            known = self.known()
            if not known:
                self.answer({"detail": "Missing or invalid API key."}, 401)
            return known

        def gate(self, stage: str) -> bool:
            """Whether a request gets through; if not, it has its answer."""
            server.faults.wait(stage)
            if fault := server.faults.take("http", stage):
                self.answer({"detail": fault.get("message", f"ordered at {stage}")}, fault.get("code", 503))
                return False
            refused = server.faults.take("refuse", stage)
            if refused or (stage in FAULTS["refuse"] and not self.known()):
                self.answer({"detail": "Missing or invalid API key."}, 401)
                return False
            return True

        def request_(self, body: bytes) -> None:
            """A job, as a form with the fields ``data`` and ``blob``."""
            if not self.gate("request"):
                return
            try:
                fields = _form(self.headers["Content-Type"], body)
                request, blob = RequestModel.model_validate_json(fields["data"]), fields["blob"]
            except (KeyError, TypeError, ValueError) as error:
                self.answer({"detail": f"{type(error).__name__}: {error}"}, 422)
                return
            received = server.submit(request, blob, len(body))
            server.faults.wait("reply")
            if server.faults.take("drop", "reply"):
                _hang_up(self.connection)
            self.answer(json.loads(received.model_dump_json()))

        def subscribe(self) -> None:
            """Become a websocket; stay until the client goes."""
            accept = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + GUID).encode()).digest()
            self.send_response(101)
            for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
                self.send_header(name, value)
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
            self.end_headers()
            self.wfile.flush()
            self.close_connection = True
            session, client = str(uuid.uuid4()), Socket(self.connection)
            if server.faults.take("drop", "subscribe"):
                _hang_up(self.connection)
            server.sockets[session] = client
            client.send(1, json.dumps({"session_id": session}).encode())
            with contextlib.suppress(OSError):
                client.listen(self.rfile)
            server.sockets.pop(session, None)

        def response(self, identity: str) -> None:
            """The last status stored for a job; 404 while there is none."""
            held = server.held.get(identity)
            if held is not None:
                held.job.polls += 1
            if server.faults.take("drop", "response"):
                _hang_up(self.connection)
            elif held is None or held.stored is None:
                self.answer({"detail": "No response has been stored for this job."}, 404)
            else:
                self.answer(json.loads(held.stored.model_dump_json()))

        def results(self, identity: str) -> None:
            """A result by its address, as from a bucket: no key, and 403 when the address has expired."""
            held = server.held.get(identity)
            if held is None or not held.result:
                self.answer({"detail": "NoSuchKey"}, 404)
            elif time.time() > held.expires:
                self.answer({"detail": "Request has expired"}, 403)
            elif server.faults.take("drop", "results"):
                self.answer(held.result, part=len(held.result) // 2)
                _hang_up(self.connection)
            else:
                self.answer(held.result)
                held.job.served += 1

        def answer(self, body: Any, status: int = 200, part: int | None = None) -> None:
            """One whole answer: bytes as they are, the rest as JSON."""
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if data is body else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:part])

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


def _form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart form, byte by byte as they were sent."""
    boundary = email.message.Message()
    boundary["Content-Type"] = content_type
    fields = {}
    for part in body.split(f"--{boundary.get_param('boundary')}".encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = email.message_from_bytes(head).get_param("name", header="content-disposition")
        fields[str(name)] = content.removesuffix(b"\r\n")
    return fields


def _load(directory: Path, dtype: str) -> TransformersModel:
    config = transformers.AutoConfig.from_pretrained(directory)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    module = auto.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    model = TransformersModel(module, tokenizer=transformers.AutoTokenizer.from_pretrained(directory))
    model.task = "fill-mask" if masked else "text-generation"
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="nnsight's remote protocol on 127.0.0.1; it executes pickles.")
    parser.add_argument("--model", action="append", required=True, metavar="[NAME=]DIR", help="repeat for several")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--key", default=os.environ.get("NDIF_API_KEY") or secrets.token_hex(16), help="$NDIF_API_KEY, or random"
    )
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    parser.add_argument("--no-gradients", action="store_true")
    parser.add_argument("--copies", action="store_true")
    parser.add_argument("--autocast", metavar="DTYPE")
    parser.add_argument("--expire-urls", type=float, metavar="SECONDS", nargs="?", const=0.0)
    parser.add_argument("--execution-timeout", type=float, metavar="SECONDS")
    parser.add_argument("--inline-limit", type=int, metavar="BYTES", default=MODES["inline_limit"])
    return parser


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed; from here on this process cannot import emotrace."""
    for name in {"emotrace", *(name for name in sys.modules if name.startswith("emotrace."))}:
        sys.modules[name] = None  # type: ignore[assignment]
    beside = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path and str(Path(path).resolve()) != beside]
    options = vars(_parser().parse_args(arguments))
    torch.set_num_threads(options["threads"] or torch.get_num_threads())
    transformers.utils.logging.disable_progress_bar()
    models = {}
    for given in options["model"]:
        name, _, directory = given.rpartition("=")
        models[name or directory] = _load(Path(directory), options["dtype"])
    server = Loopback(models, options["key"], options["port"], {m: options.get(m, MODES[m]) for m in MODES})
    if options["attached"]:
        threading.Thread(target=_end_with_input, daemon=True).start()
    print(json.dumps({"url": server.url, "key": server.key, "models": list(models)}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.work()


if __name__ == "__main__":
    main()
