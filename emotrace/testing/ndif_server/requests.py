"""Requests: what is asked of a server over HTTP, by clients and by whoever orders what shall go wrong."""

from __future__ import annotations

import base64
import contextlib
import email
import email.message
import hashlib
import json
import secrets
import time
import uuid
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from nnsight.schema.request import RequestModel

from emotrace.testing.ndif_server import deployments, models
from emotrace.testing.ndif_server.loopback import Loopback
from emotrace.testing.ndif_server.modes import MODES
from emotrace.testing.ndif_server.sockets import Socket, hang_up

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FORM = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"


def handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    """The class whose objects answer one server's connections."""

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
            url = urlsplit(self.path)
            head, _, rest = url.path.strip("/").partition("/")
            if not self.meant() or (head == "admin" and not self.ordered()):
                return
            if head in ("subscribe", "response", "results", "status", "env") and not self.gate(head):
                return
            if head == "subscribe":
                self.subscribe()
            elif head == "response":
                self.response(rest)
            elif head == "results":
                self.results(rest, url.query)
            elif head == "status":
                self.answer(deployments.status(server.deployments.values()))
            elif head == "env":
                self.answer(models.environment(server.modes["versions"]))
            elif head == "whoami":
                self.answer(
                    {"email": "loopback@localhost" if self.known() else None, "tags": ["trusted"] * self.trusted()}
                )
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
            if not self.meant():
                return
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
            elif self.path == "/admin/deployments":
                try:
                    for name, (state, revision) in json.loads(body).items():
                        server.deployments[name].order(state, revision)
                    self.answer({name: (d.state, d.key) for name, d in server.deployments.items()})
                except (KeyError, ValueError) as error:
                    self.answer({"detail": str(error)}, 400)
            elif self.path == "/admin/restart":
                server.restart(**json.loads(body or b"{}"), spare=self.connection)
                self.answer({})
            else:
                self.answer({"detail": f"no such path: {self.path}"}, 404)

        def do_DELETE(self) -> None:
            """End the faults."""
            if not (self.meant() and self.ordered()):
                return
            server.faults.left.clear()
            server.faults.wake()
            self.answer([])

        def meant(self) -> bool:
            """Whether a request is for this host: a page in a browser must not get through; if not, it has its answer."""
            here = self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")
            if not here:
                self.answer({"detail": "This server answers on 127.0.0.1."}, 421)
            return here

        def known(self) -> bool:
            """Whether the key is right."""
            return any(self.has(key) for key in server.keys)

        def has(self, key: str) -> bool:
            """Whether the request carries a key."""
            return secrets.compare_digest(self.headers.get("ndif-api-key", "").encode(), key.encode())

        def trusted(self) -> bool:
            """Whether its blocks may run beside the weights."""
            return self.has(server.keys[1])

        def allowed(self) -> bool:
            """Whether the key of a job is right; if not, it has its answer: 401 (none), 400 (of no form), 403 (another's)."""
            key = self.headers.get("ndif-api-key", "")
            if not key:
                self.answer({"detail": "Missing API key."}, 401)
            elif not is_key(key):
                self.answer({"detail": f"Invalid API key format: '{key}'. Keys are of the form {FORM}."}, 400)
            elif server.faults.take("refuse", "request") or not self.known():
                self.answer({"detail": "Invalid API key."}, 403)
            else:
                return True
            return False

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
            return True

        def request_(self, body: bytes) -> None:
            """A job, as a form with the fields ``data`` and ``blob``."""
            if not (self.gate("request") and self.allowed()):
                return
            try:
                fields = _form(self.headers["Content-Type"], body)
                request, blob = RequestModel.model_validate_json(fields["data"]), fields["blob"]
            except (KeyError, TypeError, ValueError) as error:
                self.answer({"detail": f"{type(error).__name__}: {error}"}, 422)
                return
            received = server.submit(request, blob, len(body), self.trusted())
            server.faults.wait("reply")
            if server.faults.take("drop", "reply"):
                hang_up(self.connection)
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
                hang_up(self.connection)
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
                hang_up(self.connection)
            elif held is None or held.stored is None:
                self.answer({"detail": "No response has been stored for this job."}, 404)
            else:
                self.answer(json.loads(held.stored.model_dump_json()))

        def results(self, identity: str, query: str) -> None:
            """A result by its address, as from a bucket: no key, 403 for a wrong signature, and when the address has expired."""
            held = server.held.get(identity)
            given = parse_qs(query).get("X-Amz-Signature", [""])[0]
            if held is None or not held.result:
                self.answer(b"<Error><Code>NoSuchKey</Code></Error>", 404)
            elif not secrets.compare_digest(given.encode(), held.signature.encode()):
                self.answer(b"<Error><Code>SignatureDoesNotMatch</Code></Error>", 403)
            elif time.time() > held.expires:
                self.answer(b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", 403)
            elif server.faults.take("drop", "results"):
                self.answer(held.result, part=len(held.result) // 2)
                hang_up(self.connection)
            else:
                self.answer(held.result)
                held.job.served += 1

        def answer(self, body: object, status: int = 200, part: int | None = None) -> None:
            """One whole answer: bytes as they are, the rest as JSON."""
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if data is body else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:part])

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


def is_key(text: str) -> bool:
    """Whether a text has the form of a key."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


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
