"""NDIF server: nnsight's remote protocol (0.8) on 127.0.0.1, in one file that knows nothing of emotrace.

```
python emotrace/testing/ndif_server.py --model meta-llama/Llama-3.1-8B=data/tiny_model
```

prints one line of JSON with the address when it is ready. A client then says ``remote="http://127.0.0.1:PORT"``, or sets
``NDIF_HOST`` and ``NDIF_API_KEY``. Jobs run with nnsight's own server-side calls, one after the other, and ``emotrace``
cannot be imported here: whatever a trace needs must have come with it.

**It executes pickles that clients send**, as NDIF does: it binds the loopback address only, and belongs on no other.

What NDIF does to a job is a *mode* (flags, or ``POST /admin/modes``); what goes wrong is a *fault* (``POST /admin/faults``),
taken ``times`` times and then over. ``GET /admin/log`` lists the jobs seen. `emotrace.testing.ndif` starts and steers it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.parser
import email.policy
import hashlib
import io
import json
import os
import queue
import socket
import struct
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nnsight.tracing.globals
import torch
import transformers
import zstandard
from nnsight import TransformersModel
from nnsight.ndif import get_local_env
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.tracer import _saves, dec, inc

WRAPPER = "nnsight.modeling.transformers.TransformersModel"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass
class Job:
    """One request, from its arrival to its result."""

    id: str
    request: RequestModel
    blob: bytes
    bytes_in: int
    state: Status = Status.RECEIVED
    runs: int = 0
    served: int = 0
    bytes_out: int = 0
    payload: int = 0
    error: str = ""
    stored: ResponseModel | None = None
    result: bytes = b""
    received: float = field(default_factory=time.time)


class Loopback:
    """The models, the queue and every job of one server."""

    def __init__(self, models: dict[str, TransformersModel], key: str, inline: int) -> None:
        self.models, self.key, self.inline = models, key, inline
        self.lock = threading.RLock()
        self.jobs: dict[str, Job] = {}
        self.sockets: dict[str, Socket] = {}
        self.queue: queue.Queue[Job] = queue.Queue()
        self.url = ""

    def submit(self, request: RequestModel, blob: bytes, bytes_in: int) -> ResponseModel:
        """Take a job in; its first answer."""
        job = Job(str(uuid.uuid4()), request, blob, bytes_in)
        with self.lock:
            self.jobs[job.id] = job
        self.queue.put(job)
        return ResponseModel(id=job.id, status=Status.RECEIVED, description="Your job has been received.")

    def work(self) -> None:
        """Run job after job, for ever."""
        while True:
            job = self.queue.get()
            try:
                self.tell(job, Status.QUEUED, "Your job is next.")
                self.tell(job, Status.DISPATCHED, "Your job has been sent to the model.")
                started = time.perf_counter()
                self.tell(job, Status.RUNNING, "Your job has started running.")
                job.result = self.run(job)
                self.finish(job, {"runtime": time.perf_counter() - started, "max_mem_by_gpu": {}})
            except Exception as error:
                job.error = f"{traceback.format_exc()}"
                print(job.error, file=sys.stderr)
                self.tell(job, Status.ERROR, f"{type(error).__name__}: {error}\n\n{job.error}")

    def run(self, job: Job) -> bytes:
        """Execute the block against the model it names; the saved values as torch wrote them."""
        model = self.models[self.name(job.request.model_key)]
        nnsight.tracing.globals.SOURCES.clear()  # line numbers of another job's file would be read for this one's
        nnsight.tracing.globals.BLOCKS.clear()
        job.runs += 1
        objects = model._remoteable_persistent_objects()
        tracer = RequestModel.deserialize(job.blob, objects, job.request.compress)
        model._remoteable_set_env(job.request.env)
        inc()
        try:
            with contextlib.redirect_stdout(Prints(lambda text: self.tell(job, Status.LOG, text))):
                tracer.execute(tracer.info.code)
            saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
        finally:
            dec()
        with io.BytesIO() as file:
            torch.save(saved, file)
            result = file.getvalue()
        job.payload = len(result)
        return zstandard.ZstdCompressor(level=6).compress(result) if job.request.compress else result

    def name(self, model_key: str) -> str:
        """Which of the models a key means."""
        wrapper, _, rest = model_key.partition(":")
        wanted = json.loads(rest)
        name = wanted.get("repo_id")
        if wrapper != WRAPPER or name not in self.models or self.models[name].task != wanted.get("task"):
            up = ", ".join(f"{name} ({model.task})" for name, model in self.models.items())
            raise LookupError(f"{model_key} is not deployed here. Running: {up}.")
        return name

    def finish(self, job: Job, meta: dict[str, Any]) -> None:
        """Hand the result over on the socket, or say where it lies."""
        size = job.bytes_out = len(job.result)
        whole = {"id": job.id, "status": Status.COMPLETED, "description": "Your job has been completed.", "meta": meta}
        if job.request.session_id and size <= self.inline:
            self.tell(job, Status.COMPLETED, frame=ResponseModel(**whole, data=job.result).pickle())
            return
        done = ResponseModel(**whole, data=f"{self.url}/results/{job.id}")
        job.stored = done
        self.tell(job, Status.COMPLETED, frame=done.model_dump_json().encode(), text=True)

    def tell(
        self, job: Job, status: Status, description: str = "", *, frame: bytes | None = None, text: bool = False
    ) -> None:
        """Bring a job into a state, and say so on its socket or in the store."""
        response = ResponseModel(id=job.id, status=status, description=description)
        if status != Status.LOG:
            job.state = status
            if frame is None and not job.request.session_id:
                job.stored = response
        client = self.sockets.get(job.request.session_id)
        if client is None:
            return
        if frame is None or text:
            client.send(1, frame or response.model_dump_json().encode())
        else:
            client.send(2, frame)


class Prints(io.TextIOBase):
    """What a block prints, line by line."""

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

    def send(self, opcode: int, payload: bytes) -> None:
        """One frame; a client that went away is part of the game."""
        size = len(payload)
        short = struct.pack("!B", size) if size < 126 else struct.pack("!BH", 126, size)
        head = short if size < 1 << 16 else struct.pack("!BQ", 127, size)
        with self.lock, contextlib.suppress(OSError):
            self.connection.sendall(struct.pack("!B", 0x80 | opcode) + head + payload)

    def frames(self, file: Any) -> Iterator[tuple[int, bytes]]:
        """What the client says, until it goes."""
        while len(head := file.read(2)) == 2:
            size = head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(file.read(2 if size == 126 else 8), "big")
            mask, payload = file.read(4), file.read(size)
            yield head[0] & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))

    def close(self) -> None:
        """Hang up without a word."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def allowed(self) -> bool:
            """Whether the key is right; the refusal is sent."""
            if self.headers.get("ndif-api-key") == server.key:
                return True
            self.answer({"detail": "Missing or invalid API key."}, 401)
            return False

        def do_GET(self) -> None:
            """Answer by path."""
            head, _, rest = self.path.strip("/").partition("/")
            if head == "subscribe":
                self.subscribe()
            elif head == "response":
                self.response(rest)
            elif head == "results":
                job = server.jobs.get(rest)
                if job is None:
                    self.answer({"detail": "Not found."}, 404)
                else:
                    job.served += 1
                    self.answer(job.result)
            elif head == "status":
                self.answer(
                    {
                        "deployments": {
                            WRAPPER + ":" + name: _deployment(name, model) for name, model in server.models.items()
                        }
                    }
                )  # noqa: E501
            elif head == "env":
                self.answer(get_local_env())
            elif head == "whoami":
                known = self.headers.get("ndif-api-key") == server.key
                self.answer({"email": "loopback@localhost" if known else None, "tags": []})
            elif head == "ping":
                self.answer("pong")
            elif self.path == "/admin/log":
                self.answer([_entry(job) for job in server.jobs.values()])
            else:
                self.answer({"detail": f"no such path: {self.path}"}, 404)

        def do_POST(self) -> None:
            """Take a request in."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/request":
                self.answer({"detail": f"no such path: {self.path}"}, 404)
            elif self.allowed():
                parts = _multipart(self.headers["Content-Type"], body)
                request = RequestModel.model_validate_json(parts["data"])
                self.answer(json.loads(server.submit(request, parts["blob"], len(body)).model_dump_json()))

        def subscribe(self) -> None:
            """Become a websocket; stay until the client goes."""
            if not self.allowed():
                return
            accept = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + GUID).encode()).digest()
            self.send_response(101)
            for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
                self.send_header(name, value)
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
            self.end_headers()
            self.wfile.flush()
            self.close_connection = True
            session, client = str(uuid.uuid4()), Socket(self.connection)
            server.sockets[session] = client
            client.send(1, json.dumps({"session_id": session}).encode())
            with contextlib.suppress(OSError):
                for opcode, payload in client.frames(self.rfile):
                    if opcode == 8:
                        client.send(8, payload)
                        break
                    if opcode == 9:
                        client.send(10, payload)
            server.sockets.pop(session, None)

        def response(self, identity: str) -> None:
            """The last status stored for a job."""
            if not self.allowed():
                return
            job = server.jobs.get(identity)
            if job is None or job.stored is None:
                self.answer({"detail": "No response yet."}, 404)
            else:
                self.answer(json.loads(job.stored.model_dump_json()))

        def answer(self, body: Any, status: int = 200) -> None:
            """One whole answer: bytes as they are, the rest as JSON."""
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if data is body else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


def _entry(job: Job) -> dict[str, Any]:
    names = ("id", "runs", "served", "bytes_in", "bytes_out", "payload", "error", "received")
    return {name: getattr(job, name) for name in names} | {
        "model_key": job.request.model_key,
        "blocking": bool(job.request.session_id),
        "state": job.state.value,
    }


def _deployment(name: str, model: TransformersModel) -> dict[str, Any]:
    key = {"repo_id": name, "revision": None, "task": model.task}
    return {
        "model_key": f"{WRAPPER}:{json.dumps(key)}",
        "repo_id": name,
        "revision": "main",
        "task": model.task,
        "trust_remote_code": False,
        "deployment_level": "HOT",
        "application_state": "RUNNING",
    }


def _multipart(content_type: str, body: bytes) -> dict[str, bytes]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)  # type: ignore[misc]
        for part in message.iter_parts()  # type: ignore[attr-defined]
    }


def _load(directory: Path, dtype: str) -> TransformersModel:
    config = transformers.AutoConfig.from_pretrained(directory)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    module = auto.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    return TransformersModel(module, tokenizer=transformers.AutoTokenizer.from_pretrained(directory))


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed."""
    sys.modules["emotrace"] = None  # type: ignore[assignment]
    here = str(Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if path not in ("", here)]
    parser = argparse.ArgumentParser(description="nnsight's remote protocol on 127.0.0.1")
    parser.add_argument("--model", action="append", required=True, metavar="[NAME=]DIR", help="repeat for several")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="loopback")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--inline-limit", type=int, default=8 << 20, metavar="BYTES")
    options = parser.parse_args(arguments)
    models = {}
    for given in options.model:
        name, _, directory = given.rpartition("=")
        models[name or directory] = _load(Path(directory), options.dtype)
    loopback = Loopback(models, options.key, options.inline_limit)
    http = ThreadingHTTPServer(("127.0.0.1", options.port), _handler(loopback))
    loopback.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(json.dumps({"url": loopback.url, "pid": os.getpid(), "models": list(models)}), flush=True)
    loopback.work()


if __name__ == "__main__":
    main()
