import base64
import json
import logging
import pickle
import sys
import textwrap
from urllib.parse import quote

import pytest

from emotrace import secrets
from emotrace.labels import EmotraceError
from emotrace.run import Run

KEY = "nd-7f3Q/x+Zp9_wK2.m4=RtY8"
PASSWORD = "Tr0ub4dor&3xyz"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setattr(secrets, "_given", {})
    monkeypatch.setenv("NDIF_API_KEY", KEY)


FORMS = {
    "plain": KEY,
    "capitals": KEY.upper(),
    "percent": quote(KEY, safe=""),
    "json": json.dumps({"key": KEY + "\n"}),
    "repr": repr(KEY.encode()),
    "wrapped": "\n".join(textwrap.wrap(KEY, 5)),
    "wrapped in JSON": json.dumps("\n".join(textwrap.wrap(KEY, 5))),
    "cut": KEY[:14],
    "its end": KEY[9:],
    "base64": base64.b64encode(KEY.encode()).decode(),
    "basic": base64.b64encode(f"me:{KEY}".encode()).decode(),
    "hex": KEY.encode().hex(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_key_is_masked_in_every_form(form):
    shown = secrets.redacted(f"before {form} after")
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "[key]" in shown
    left = "".join(shown.split()).replace("[key]", "")
    assert not any(form[i : i + 8] in left for i in range(len(form) - 7))


def test_other_text_is_left_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # a local endpoint's
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel-enough")
    for text in (
        "none of these, in parallel-enough words",
        "http://127.0.0.1:8000/v1 and ORG/MODEL@main at 10:30",
        "ratio 3:4 of a@b.org",
    ):
        assert secrets.redacted(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:1/v1", "http://me:[password]@host:1/v1"),
        ("remote='https://me:p@w/d@host'", "remote='https://me:[password]@host'"),
        ("no scheme me:pw@host", "no scheme me:[password]@host"),
        ("http://hf_0123456789@host/x", "http://[key]@host/x"),
        ("https://h/v1?version=2&api_key=abc&x=1", "https://h/v1?version=2&api_key=[key]&x=1"),
        ("https://b/r?X-Amz-Signature=0a1b&n=2", "https://b/r?X-Amz-Signature=[key]&n=2"),
    ],
)
def test_what_is_secret_in_a_url_is_masked(text, shown):
    assert secrets.redacted(text) == shown


def test_passwords_of_a_url_are_known_elsewhere(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{quote(PASSWORD)}@proxy:3128")
    basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert secrets.redacted(f"said {PASSWORD} and Basic {basic}") == "said [password] and Basic [password]"
    secrets.remember_url("http://me:horse@host")
    assert secrets.redacted("a horse, horses") == "a [password], horses"


def test_errors_say_no_secret_and_can_be_pickled():
    error = pickle.loads(pickle.dumps(EmotraceError(f"told: {KEY}")))
    assert str(error) == "told: [key]"
    assert repr(error) == "EmotraceError('told: [key]')"


def test_a_manifest_keeps_the_command_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/x/study.py", "--remote", f"http://me:{PASSWORD}@host", KEY])
    assert Run(tmp_path / "run", {}).manifest["command"] == "study.py --remote http://me:[password]@host [key]"


def test_logs_of_http_clients_are_masked(caplog):
    secrets.mask_logs()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("httpx").info("GET %s %d", f"http://h/?k={KEY}", 200)
        logging.getLogger("httpcore.http11").debug("headers=%r", [(b"x", KEY.encode())])
    assert KEY[:8] not in caplog.text
    assert caplog.text.count("[key]") == 2
