"""Loopback: the queue of one server, in which jobs run one after the other: here, or in a process of their own."""

from __future__ import annotations

import contextlib
import functools
import queue
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import zstandard
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from emotrace.testing.ndif_server import deployments, modes
from emotrace.testing.ndif_server.deployments import Deployment
from emotrace.testing.ndif_server.executing import executed, unpacked
from emotrace.testing.ndif_server.faults import Faults, Misfortune
from emotrace.testing.ndif_server.jobs import LOST, KeptResult, Refusal, ServedJob
from emotrace.testing.ndif_server.sandbox import BlockError, Sandbox
from emotrace.testing.ndif_server.sockets import Socket, hang_up
from emotrace.testing.ndif_server.theirs import Theirs

Handler = Callable[["Loopback"], type[BaseHTTPRequestHandler]]


class Loopback:
    """The models, the queue and every job of one server.

    Args:
        models: what a client calls a model → the model.
        keys: that a client must give: an ordinary one, whose blocks run in a process of their own, and a trusted one, whose
            blocks run in this one.
        port: to listen on; 0 for a free one.
        modes: of `modes.MODES`.
        handler: what answers HTTP for a server: `requests.handler`.
        sandbox: where the blocks of the ordinary key run.
    """

    def __init__(
        self, models: dict[str, TransformersModel], keys: tuple[str, str], port: int, modes: dict[str, Any], handler: Handler,
        sandbox: Sandbox | Theirs,
    ) -> None:  # fmt: skip
        self.models, self.keys, self.modes, self.handler = models, keys, dict(modes), handler
        self.sandbox = sandbox
        self.deployments = {name: Deployment(name, model) for name, model in models.items()}
        self.faults = Faults()
        self.lock = threading.RLock()
        self.held: dict[str, KeptResult] = {}
        self.sockets: dict[str, Socket] = {}
        self.connections: set[socket.socket] = set()
        self.queue: queue.Queue[KeptResult] = queue.Queue()
        self.listen(port)

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def listen(self, port: int) -> None:
        """Open the port and answer in threads of their own."""
        self.http = ThreadingHTTPServer(("127.0.0.1", port), self.handler(self))
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
            hang_up(connection)
        time.sleep(seconds)
        self.listen(port)

    def submit(self, request: RequestModel, blob: bytes, bytes_in: int, trusted: bool) -> ResponseModel:
        """Take a job in; its first answer."""
        job = ServedJob(str(uuid.uuid4()), request.model_key, bool(request.session_id), bytes_in)
        held = KeptResult(job, request, blob, trusted)
        with self.lock:
            self.held[job.id] = held
        received = ResponseModel(id=job.id, status=Status.RECEIVED, description="Your job has been received.")
        if self.faults.take("drop", "request"):
            self.close(held)
        if self.faults.take("lose", "job"):
            job.state = LOST
            return received
        if seconds := self.modes["window"]:
            threading.Thread(target=self.dispatch, args=(held, seconds), daemon=True).start()
        else:
            self.dispatch(held)
        return received

    def dispatch(self, held: KeptResult, window: float = 0.0) -> None:
        """Give a job that was received to its deployment; till then, for so long, nothing is stored of it."""
        self.faults.woken.wait(window)
        deployment = deployments.named(self.deployments.values(), held.job.model_key)
        if deployment is None:
            up = ", ".join(d.key for d in self.deployments.values())
            refusal = Refusal(f"Could not deploy this model. There is room for no other than {up}.")
            self.fail(held, refusal, 0.0)
            return
        held.model = deployment.model
        with deployment.lock:
            adopted = deployment.adopted
            deployment.waiting += [] if adopted else [held]
            first = deployment.waiting == [held]
        if adopted:
            self.enqueue(held)
            return
        self.tell(held, deployment.phase, deployment.words)
        seconds = 0.0 if deployment.state == "RUNNING" else self.modes["deploy_seconds"]
        if first and seconds:
            threading.Thread(target=self.bring_up, args=(deployment, seconds), daemon=True).start()
        elif first:
            self.bring_up(deployment, seconds)

    def bring_up(self, deployment: Deployment, seconds: float) -> None:
        """Have a model run that does not yet; the jobs that wait for it are told so, and then join the queue."""
        self.faults.woken.wait(seconds / 2)
        deployment.phase = Status.DEPLOYING
        for held in list(deployment.waiting):
            self.tell(held, deployment.phase, deployment.words)
        self.faults.woken.wait(seconds / 2)
        for held in deployment.up(deployment.waiting[0].job.model_key):
            self.enqueue(held)

    def enqueue(self, held: KeptResult) -> None:
        """Put a job into the queue."""
        self.tell(held, Status.QUEUED, f"Your job is number {self.queue.qsize() + 1} in the queue.")
        try:
            self.at("queued", held)
        except Misfortune as error:
            self.fail(held, error, 0.0)
            return
        self.queue.put(held)
        if self.faults.take("twice", "run"):
            self.queue.put(held)

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

    def at(self, stage: str, held: KeptResult) -> None:
        """Whatever was ordered to go wrong here."""
        self.faults.wait(stage)
        if self.faults.take("drop", stage):
            self.close(held)
        if fault := self.faults.take("error", stage):
            raise Misfortune(fault.get("message", f"ordered at {stage}"))
        if fault := self.faults.take("restart", stage):
            self.restart(fault.get("seconds", 0.2), fault.get("stale", False))
            raise Misfortune(f"the server restarted at {stage}")

    def run(self, held: KeptResult) -> bytes:
        """Execute the block against the model it names; the saved values as torch writes them."""
        model = held.model
        assert model is not None  # none is in the queue without
        held.job.runs += 1
        model._remoteable_set_env(held.request.env)
        say = functools.partial(self.tell, held, Status.LOG)
        with modes.limits(self.modes, say, held.trusted):
            if held.trusted:
                objects = model._remoteable_persistent_objects()
                return executed(unpacked(held.blob, objects, held.request.compress))

            def count(what: str, size: int) -> None:
                setattr(held.job, what, getattr(held.job, what) + size)

            name = next(name for name, one in self.models.items() if one is model)
            autocast = self.modes["autocast"]
            return self.sandbox.run(name, model, held.blob, held.request.compress, autocast, say, count)

    def finish(self, held: KeptResult, result: bytes, seconds: float) -> None:
        """Hand the result over on the socket, or say where it lies."""
        job = held.job
        if job.state == LOST or self.faults.take("lose", "result"):
            job.state, held.stored = LOST, None
            return
        job.payload = len(result)
        held.result = zstandard.ZstdCompressor().compress(result) if held.request.compress else result
        job.bytes_out = len(held.result)
        valid = self.modes["expire_urls"]
        held.expires = float("inf") if valid is None else time.time() + valid
        done = ResponseModel(id=job.id, status=Status.COMPLETED, description="Your job has been completed.",
                             meta=_meta(seconds))  # fmt: skip
        if job.blocking and job.bytes_out <= self.modes["inline_limit"]:
            self.send(held, done.model_copy(update={"data": held.result}))
        else:
            address = f"{self.url}/results/{job.id}?X-Amz-Signature={held.signature}"
            self.send(held, done.model_copy(update={"data": address}))

    def fail(self, held: KeptResult, error: BaseException, seconds: float) -> None:
        """Tell the client what was raised, with the traceback as its block caused it."""
        held.job.error = f"{type(error).__name__}: {error}"
        if isinstance(error, (Misfortune, Refusal, modes.Overtime)):  # not the block's fault: a sentence
            text = str(error)
        elif isinstance(error, BlockError):
            held.job.error, text = str(error), error.text
        else:
            text = "".join(traceback.format_exception(error))
        self.send(held, ResponseModel(id=held.job.id, status=Status.ERROR, description=text, meta=_meta(seconds)))

    def tell(self, held: KeptResult, status: Status, description: str) -> None:
        """A status without a result."""
        self.send(held, ResponseModel(id=held.job.id, status=status, description=description))

    def send(self, held: KeptResult, response: ResponseModel) -> None:
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

    def close(self, held: KeptResult) -> None:
        """Close the socket that listens for a job; the job goes on."""
        if client := self.sockets.pop(held.request.session_id, None):
            hang_up(client.connection)


def _meta(seconds: float) -> dict[str, Any]:
    return {"runtime": seconds, "max_mem_by_gpu": {}}
