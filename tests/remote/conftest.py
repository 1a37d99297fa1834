"""One loopback server with a model of every family that is tried, and clients that hold no weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from emotrace import model as model_
from emotrace.remote import Server, jobs
from emotrace.testing import tiny
from emotrace.testing.ndif import loopback

FAMILIES = ("llama", "qwen2", "gemma2", "gpt2", "gpt-neox", "falcon", "opt", "roberta", "modernbert", "bert")


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family → directory of its checkpoint; beside it, under ``client``, one without weights."""
    root = tmp_path_factory.mktemp("models")
    for name in FAMILIES:
        tiny.build(name).save_pretrained(root / name)
        tiny.tiny_tokenizer().save_pretrained(root / name)
        shutil.copytree(root / name, root / "client" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="session")
def server(deployed: dict[str, Path]) -> Iterator[Any]:
    """The loopback server."""
    with loopback({f"tiny/{name}": directory for name, directory in deployed.items()}) as found:
        yield found


@pytest.fixture(scope="session")
def pair(server: Any, deployed: dict[str, Path]) -> Callable[[str], tuple[Any, Any]]:
    """Family → the model here, and the same on the server."""

    @cache
    def made(name: str) -> tuple[Any, Any]:
        here = model_.load(deployed[name])
        there = model_.load(deployed[name].parent / "client" / name, remote=Server(server.url, server.key))
        return here, there

    return made


@pytest.fixture
def impatient(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, whose faults end with the test, for a client that soon gives up waiting."""
    soon = {"UNKNOWN": 0.3, "UNSEEN": 0.3, "AGAIN": (0.0, 0.0), "PATIENCE": 30.0, "POLL": (0.01, 0.1)}
    for name, value in soon.items():
        monkeypatch.setattr(jobs, name, value)
    yield server
    server.calm()
