"""Published: a hub and a package index on the loopback device, which note what they are asked."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Published:
    """Files of one repository, and wheels by package."""

    def __init__(self, files: dict[str, bytes], wheels: dict[str, Path], licence: str = "apache-2.0") -> None:
        self.files, self.wheels, self.licence = files, wheels, licence
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def info(self, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": n, "size": len(d), "lfs": _lfs(d, "sha256")} for n, d in self.files.items()]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": self.licence}}

    def tree(self) -> list[dict[str, Any]]:
        about = {"type": "file", "oid": "0" * 40}
        return [{**about, "path": n, "size": len(d), "lfs": _lfs(d, "oid")} for n, d in self.files.items()]


def wheel(path: Path, file: bytes, *, traps: Path) -> Path:
    """A wheel with a GGUF file in it, whose code would leave a mark."""
    name, version = path.stem.split("-")[:2]
    mark = f"open({str(traps)!r}, 'w').close()\n"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(f"{name}/__init__.py", mark)
        out.writestr("setup.py", mark)
        out.writestr(f"{name}/Tiny.Q8_0.gguf", file)
        out.writestr(
            f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        out.writestr(
            f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        out.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


def _lfs(data: bytes, name: str) -> dict[str, Any]:
    return {name: _sha(data), "size": len(data), "pointerSize": 1}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _handler(held: Published) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            held.asked.append(f"{self.command} {path}")
            if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/[\w.-]+)?", path):
                return self._send(json.dumps(held.info(found[1])).encode(), body, kind="application/json")
            if re.fullmatch(r"/api/models/[\w-]+/[\w-]+/tree/[\w.-]+", path):
                return self._send(json.dumps(held.tree()).encode(), body, kind="application/json")
            if (found := re.fullmatch(r"/[\w-]+/[\w-]+/resolve/[\w.-]+/(.+)", path)) and found[1] in held.files:
                return self._send(held.files[found[1]], body, name=found[1])
            if (found := re.fullmatch(r"/simple/([\w-]+)/", path)) and found[1] in held.wheels:
                name = held.wheels[found[1]].name
                return self._send(f'<a href="/wheels/{found[1]}/{name}">{name}</a>'.encode(), body, kind="text/html")
            if found := re.fullmatch(r"/wheels/([\w-]+)/[\w.-]+", path):
                return self._send(held.wheels[found[1]].read_bytes(), body)
            return self._send(b"no", body, status=404)

        def _send(
            self, data: bytes, body: bool, name: str = "", kind: str = "application/octet-stream", status: int = 200
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if name:
                self.send_header("ETag", f'"{_sha(data)}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler
