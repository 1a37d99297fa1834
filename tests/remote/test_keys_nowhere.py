"""Over a whole job no key is written, printed, logged or shown: not the right one, not one that the server repeats."""

import io
import json
import logging
import os
import pickle
import sys
import traceback
import uuid

import pytest

import emotrace as et
from emotrace import secrets
from emotrace.labels import EmotraceError
from emotrace.remote import Server
from emotrace.run import Run

IDS = [[20 + i, 21, 22] for i in range(6)]
OPTIONS = {"batch_size": 1, "share_prefixes": False, "row_group_bytes": 600}


def ours(error):
    """Our frames of a traceback, as tools show it that show every variable."""
    whole = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    found = [frame for frame in whole.split("  File ") if f"{os.sep}emotrace{os.sep}" in frame]
    assert found
    return "".join(found)


def told(key, *texts):
    """What of a key stands in texts, eight characters at a time."""
    return [key[i : i + 8] for i in range(len(key) - 7) for text in texts if key[i : i + 8] in text]


def test_a_whole_job_tells_no_key(impatient, deployed, tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", impatient.key)
    monkeypatch.setattr(sys, "argv", ["study.py", "--key", impatient.key])
    with caplog.at_level(0):
        there = et.load(deployed["llama"].parent / "client" / "llama", remote=impatient.url)
        Run(tmp_path / "run", {"model": there.sites.identity})
        et.generate(there, IDS, max_new_tokens=2, progress=False)
        impatient.faults(refuse="request", after=2)
        with pytest.raises(EmotraceError, match="refuses the API key") as caught:
            et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", **OPTIONS)
        assert (tmp_path / "a.zarr.jobs").exists()
        left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", **OPTIONS)
    left |= {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    said = capfd.readouterr()
    assert "ndif-api-key" in caplog.text or "send_request_headers" in caplog.text, (
        "no HTTP client logs: nothing is seen"
    )
    assert told(impatient.key, said.out, said.err, caplog.text, str(caught.value), ours(caught.value)) == []
    assert [p for p, content in left.items() if told(impatient.key, content.decode("latin-1"), str(p))] == []


@pytest.mark.parametrize("key", ["short", "nd-7f3Qx0Zp9wK2m4RtY8", f"{uuid.UUID(int=7)}-and-more"])
def test_a_key_that_the_server_repeats(server, monkeypatch, caplog, key):
    monkeypatch.setattr(secrets, "_given", {})
    asked = Server(server.url, key)
    with caplog.at_level(logging.DEBUG), pytest.raises(EmotraceError, match="refuses the API key") as caught:
        asked.submit("m", {}, b"nothing", False)
    asked.close()
    assert "format: '[key]'" in str(caught.value)
    assert key not in repr(caught.value) + caplog.text + ours(caught.value)


def test_nothing_that_holds_the_key_shows_it(server, pairs):
    _, there = pairs("llama", "ordinary")
    held = there.sites.remote.server
    shown = repr(held) + str(vars(held)) + str(vars(there.sites.remote)) + str(vars(there.sites)) + repr(there.sites)
    assert told(server.key, shown, json.dumps(there.sites.identity, default=str)) == []
    with pytest.raises(TypeError, match="kept in memory only"):
        pickle.dump(held._key, io.BytesIO())
    with pytest.raises(EmotraceError, match="holds a character that no key has") as caught:
        Server(server.url, f"two words {server.key}")
    assert told(server.key, ours(caught.value)) == []
