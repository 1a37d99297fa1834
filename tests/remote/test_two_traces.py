"""A stop in the first of two traces of a session: what a server makes of it, as ``docs/nnsight-two-traces.md`` says."""

import runpy
from pathlib import Path

from nnsight import TransformersModel
from nnsight.schema.config import CONFIG

from emotrace.testing import tiny
from emotrace.testing.ndif import mint

DOCUMENTED = Path(__file__).parents[2] / "docs" / "two_traces.py"


def test_a_stop_in_the_first_trace_fails_with_an_ordinary_key_only(server, deployed, monkeypatch):
    outcome = runpy.run_path(str(DOCUMENTED))["outcome"]
    bare = deployed["llama"].parent / "client" / "llama"
    load = {"task": "text-generation", "tokenizer": tiny.tiny_tokenizer()}
    here = TransformersModel(str(deployed["llama"]), dispatch=True, **load)
    there = TransformersModel(str(bare), **load)
    mint({"tiny/llama": bare})
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    said = {}
    for kind, key in (("ordinary", server.key), ("trusted", server.trusted_key)):
        monkeypatch.setattr(CONFIG.API, "APIKEY", key)
        said |= {(kind, stop): outcome(here, there, stop) for stop in (False, True)}
    assert said.pop(("ordinary", True)).startswith("RemoteError"), "the server is mended: jobs may stop earlier"
    assert set(said.values()) == {"equal to local"}
