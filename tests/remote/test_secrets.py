"""What a server hears of the key, and what is repeated of what it says; over HTTP on the loopback address."""

import base64
import json
import logging
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from nnsight.schema.response import ResponseModel, Status

from emotrace import secrets
from emotrace.labels import EmotraceError
from emotrace.remote import Server
from emotrace.remote import server as server_
from emotrace.remote.server import Gone, Unreachable

KEY, PASSWORD = "nd-7f3Qx0Zp9wK2m4RtY8", "Tr0ub4dor3xyz"


class Loopback:
    """A server that answers every request alike: ``KEY`` in its body is the key that it heard."""

    def __init__(self):
        self.status, self.body, self.headers, self.heard = 200, "{}", {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.heard.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                self.rfile.read(int(self.headers.get("content-length", 0)))
                body = outer.body.replace("KEY", self.headers.get("ndif-api-key") or "").encode()
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format, *args):
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def servers(monkeypatch):
    monkeypatch.setattr(secrets, "_given", {})
    monkeypatch.setattr(server_, "BUSY", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    made = [Loopback(), Loopback()]
    yield made
    for one in made:
        one.http.shutdown()
        one.http.server_close()


def whole(error):
    """Everything that a traceback could show of an error."""
    parts = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
    while error is not None:
        parts += repr(error) + repr(getattr(error, "request", None) and error.request.headers.raw)
        error = error.__cause__ or error.__context__
    return parts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize(
    "said", ['{"detail": "key KEY is odd"}', '{"detail": [{"input": "xKEY"}]}', "<html>KEY", '["KEY"]']
)
def test_a_key_that_is_repeated_is_masked(servers, status, said):
    servers[0].status, servers[0].body = status, said
    with pytest.raises((EmotraceError, Unreachable)) as caught:
        Server(servers[0].url, KEY).deployments()
    assert servers[0].heard[0][1]["ndif-api-key"] == KEY
    assert KEY[:8] not in whole(caught.value)
    assert "[key]" in str(caught.value)


def test_a_password_of_the_url_is_sent_and_not_shown(servers, caplog):
    address = servers[0].url.replace("//", f"//me:{PASSWORD}@")
    server = Server(address, KEY)
    with caplog.at_level(logging.DEBUG):
        assert server.deployments() == []
    assert servers[0].heard[0][1]["authorization"] == "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert server.host == servers[0].url
    shown = caplog.text + repr(server) + repr(server.address)
    servers[0].status, servers[0].body = 400, json.dumps({"detail": f"of {PASSWORD}?"})
    with pytest.raises(EmotraceError, match=r"of \[password\]\?") as caught:
        server.check()
    assert PASSWORD[:8] not in shown + whole(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "ask", [lambda s: s.check(), lambda s: s.submit("m", {}, b"a prompt", False)], ids=["question", "job"]
)
def test_a_redirect_carries_nothing_elsewhere(servers, status, ask):
    here, there = servers
    here.status, here.headers = status, {"Location": f"{there.url}/env"}
    with pytest.raises(EmotraceError, match=f"{here.url} sends its requests on to {there.url}; neither text nor key"):
        ask(Server(here.url, KEY))
    assert there.heard == []
    assert len(here.heard) == 1


def test_a_server_that_has_moved_says_where(servers):
    servers[0].status, servers[0].headers = 308, {"Location": "/new"}
    with pytest.raises(EmotraceError, match=f"has moved to {servers[0].url}/new: give that address"):
        Server(servers[0].url, KEY).check()


def test_a_result_elsewhere_is_fetched_without_the_key(servers, caplog):
    here, there = servers
    here.body = "no tensors"
    there.status, there.headers = 307, {"Location": f"{here.url}/bucket?X-Amz-Signature=0123456789"}
    server = Server(here.url.replace("//", f"//me:{PASSWORD}@"), KEY)
    response = ResponseModel(id="j", status=Status.COMPLETED, data=f"{there.url}/r?sig=abcdefgh")
    with caplog.at_level(logging.DEBUG), pytest.raises(Gone, match="the result of job j cannot be read"):
        server.result(response, compressed=False)
    assert [path for path, _ in there.heard + here.heard] == ["/r?sig=abcdefgh", "/bucket?X-Amz-Signature=0123456789"]
    assert not {"ndif-api-key", "authorization"} & {name for _, headers in there.heard + here.heard for name in headers}
    assert "sig=[key]" in caplog.text
    assert "abcdefgh" not in caplog.text
    assert "0123456789" not in caplog.text


@pytest.mark.parametrize("url", ["nowhere://x", "http://[::1/x", "http://\x00/"])
def test_a_result_at_no_address_is_no_result(servers, url):
    with pytest.raises((Gone, Unreachable), match=r"without a result|Invalid"):
        Server(servers[0].url, KEY).result(ResponseModel(id="j", status=Status.COMPLETED, data=url), compressed=False)


@pytest.mark.parametrize("key", [f"{KEY}\nx", f"{KEY}ü", f"{KEY} x", f"{KEY}\u2013"])
def test_a_key_that_no_header_holds_is_one_error(servers, monkeypatch, key):
    monkeypatch.setenv("NDIF_API_KEY", key)
    with pytest.raises(EmotraceError, match="NDIF_API_KEY holds a character that no key has") as caught:
        Server(servers[0].url)
    assert KEY[:8] not in whole(caught.value)
