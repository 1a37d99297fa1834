"""S3 server: the requests of S3 that emotrace makes, on loopback, out of memory; some of them may fail.

A request that fails does so before or after it was carried out, as in the world: an answer that is lost says nothing.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
"""Keys of one answer to a list."""


@dataclass
class S3Server:
    """A running server.

    Attributes:
        failing: share of requests that fail.
        objects: ``bucket/key`` → bytes.
        requests: answered, by method.
        failed: of them.
    """

    failing: float = 0.0
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    url: str = ""
    _guard: threading.RLock = field(default_factory=threading.RLock)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }  # fmt: skip

    def tree(self, prefix: str) -> dict[str, bytes]:
        """What lies below ``bucket/folder``, by the name from there."""
        return {
            key.removeprefix(f"{prefix}/"): data for key, data in self.objects.items() if key.startswith(f"{prefix}/")
        }

    def draw(self, method: str) -> str | None:
        """Whether a request fails: ``before`` or ``after`` it was carried out."""
        with self._guard:
            self.requests[method] = self.requests.get(method, 0) + 1
            fails = self._random.random() < self.failing
            self.failed += fails
            return self._random.choice(["before", "after"]) if fails else None

    def put(self, key: str, data: bytes, new: bool) -> bool:
        """Keep an object; not where one is and it must be new."""
        with self._guard:
            if new and key in self.objects:
                return False
            self.objects[key] = data
            return True


@contextmanager
def serve(failing: float = 0.0, seed: int = 0) -> Iterator[S3Server]:
    """A server for a while.

    Args:
        failing: share of requests that fail, with 503 or a connection that ends.
        seed: of which.
    """
    state = S3Server(failing)
    state._random.seed(seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: S3Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        key, query = self._asked()
        if "list-type" in query:
            self._answered(200, self._listed(key, query))
            return
        data = self.state.objects.get(key)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if data is None:
            self._answered(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif found:
            start, stop = int(found[1]), min(int(found[2]) + 1 if found[2] else len(data), len(data))
            self._answered(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
        else:
            self._answered(200, data)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        key, _ = self._asked()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._lost("before"):
            return
        there = not self.state.put(key, data, self.headers.get("If-None-Match") == "*")
        self._answered(412 if there else 200, b"<Error><Code>PreconditionFailed</Code></Error>" if there else b"")

    def do_POST(self) -> None:
        bucket, query = self._asked()
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "delete" not in query:
            self._answered(501, b"")
            return
        if self._lost("before"):
            return
        keys = re.findall("<Key>(.*?)</Key>", asked)
        for key in keys:
            self.state.objects.pop(f"{bucket.rstrip('/')}/{unescape(key)}", None)
        told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answered(200, f"<DeleteResult>{told}</DeleteResult>".encode())

    def do_DELETE(self) -> None:
        key, _ = self._asked()
        self.state.objects.pop(key, None)
        self._answered(204, b"")

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        self._fails = self.state.draw(self.command)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).lstrip("/"), query

    def _lost(self, when: str) -> bool:
        """Fail here, if this request does: with an error, or with no answer at all."""
        if self._fails != when:
            return False
        self._fails = None
        self.close_connection = True
        if when == "before":
            self._send(503, b"<Error><Code>SlowDown</Code></Error>", {})
        return True

    def _answered(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        if not self._lost("before") and not self._lost("after"):
            self._send(status, data, headers or {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        said = {"Content-Length": str(len(data)), "ETag": f'"{hash(data) & 0xFFFFFFFF:x}"', **headers}
        for name, value in {"Last-Modified": "Mon, 30 Nov 2026 00:00:00 GMT", **said}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(data)

    def _listed(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter, after = (query.get(n, "") for n in ("prefix", "delimiter", "continuation-token"))
        with self.state._guard:
            keys = sorted(k.partition("/")[2] for k in self.state.objects if k.startswith(f"{bucket.rstrip('/')}/"))
        sizes = {k: len(self.state.objects.get(f"{bucket.rstrip('/')}/{k}", b"")) for k in keys}
        keys = [k for k in keys if k.startswith(prefix) and k > after]
        folders = sorted(
            {k[: k.index(delimiter, len(prefix)) + 1] for k in keys if delimiter and delimiter in k[len(prefix) :]}
        )
        direct = [k for k in keys if not delimiter or delimiter not in k[len(prefix) :]]
        more, direct = len(direct) > PAGE, direct[:PAGE]
        contents = "".join(
            f"<Contents><Key>{escape(k)}</Key><LastModified>2026-11-30T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
            f"<Size>{sizes[k]}</Size></Contents>"
            for k in direct
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
        token = f"<NextContinuationToken>{escape(direct[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}{common}</ListBucketResult>"
        ).encode()
