"""NDIF's own sandbox in the place of ours: the same comparisons, run by the driver and the runner of a checkout of its code."""

import io
import os
import subprocess
import sys
from pathlib import Path

import nnsight
import pytest
import torch
from nnsight import TransformersModel

import emotrace as et
from emotrace.remote import Server
from emotrace.remote.backends import _Packed
from emotrace.testing import tiny, worlds
from emotrace.testing.ndif import loopback
from emotrace.testing.ndif_server.sandbox import BlockError
from emotrace.testing.ndif_server.theirs import Theirs
from tests.remote.standin import checkout

SRC = os.environ.get("EMOTRACE_NDIF_SRC", "")
PINNED = ("03d5ea5b09cb1467e9232e12fd987843fc00ae9c", "ndif-0.1.2")
"""Commit of github.com/ndif-team/ndif, and release of the package, against which the harness was written."""
FAMILIES = ("llama", "gemma2", "gpt2")
their_own = pytest.mark.skipif(
    not SRC, reason="EMOTRACE_NDIF_SRC names no checkout of NDIF's server (see docs/ndif.md)"
)


@their_own
def test_the_checkout_is_the_one_that_is_pinned():
    release = [folder.stem for folder in Path(SRC).glob("ndif-*.dist-info")]
    if not release:
        head = subprocess.run(["git", "-C", SRC, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        release = [head.stdout.strip()]
    assert set(release) <= set(PINNED), "read what changed in services/ray/sandbox and services/api, then move the pin"


@their_own
@pytest.mark.parametrize("family", FAMILIES)
def test_there_equals_here_on_their_code(tmp_path, family):
    directory = tiny.save(family, tmp_path / family)
    with loopback({f"tiny/{family}": directory}, ndif_src=SRC) as server:
        there = et.load(directory, remote=Server(server.url, server.key))
        found = worlds.measured(et.load(directory), there)
    assert {"capture", "generation", "edits", "heads", "neurons", "influence", "perplexity", "KL", "curves"} <= set(
        found
    )
    assert {what: far for what, far in found.items() if far > worlds.TOLERANCES[what]} == {}


def test_the_harness_runs_what_a_checkout_names(tmp_path, deployed, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    theirs = Theirs(checkout(tmp_path / "ndif"), {"tiny/llama": deployed["llama"]})
    model = TransformersModel(
        str(deployed["llama"]), task="text-generation", tokenizer=tiny.tiny_tokenizer(), dispatch=True
    )
    packed, said = _Packed(compressed=True), []

    def run():
        return theirs.run("tiny/llama", model, packed.blob, True, None, said.append, lambda *_: None)

    with model.trace([[5, 6, 7]], backend=packed):
        hidden = nnsight.save(model.model.layers[1].output.clone())
    got = torch.load(io.BytesIO(run()), weights_only=True)
    with model.trace([[5, 6, 7]]):
        hidden = nnsight.save(model.model.layers[1].output.clone())
    assert torch.equal(got["hidden"], hidden)
    assert said == ["by the stand-in"]
    with model.trace([[5, 6, 7]], backend=packed):
        hidden = 1 / 0
    with pytest.raises(BlockError, match=r"^ZeroDivisionError: division by zero$") as caught:
        run()
    assert caught.value.text.startswith("Traceback (most recent call last)")
    with pytest.raises(SystemExit, match=r"no checkout of NDIF's server at .*nowhere"):
        Theirs(tmp_path / "nowhere", {})
