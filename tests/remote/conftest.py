"""One loopback server with a model of every family that is tried, and clients that hold no weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emotrace import model as model_
from emotrace.remote import Server, jobs
from emotrace.testing import tiny
from emotrace.testing.ndif import loopback

FAMILIES = (
    "llama",
    "qwen2",
    "gemma2",
    "olmo2",
    "gpt2",
    "gpt-neox",
    "falcon",
    "opt",
    "granite",
    "roberta",
    "modernbert",
    "bert",
)

HALF = "llama-bfloat16"
"""A llama whose weights are bfloat16."""


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family → directory of its checkpoint; beside it, under ``client``, one without weights."""
    root = tmp_path_factory.mktemp("models")
    built = {name: tiny.build(name) for name in FAMILIES} | {HALF: tiny.build("llama").bfloat16()}
    for name, model in built.items():
        model.save_pretrained(root / name)
        tiny.tiny_tokenizer().save_pretrained(root / name)
        shutil.copytree(root / name, root / "client" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return {name: root / name for name in built}


@pytest.fixture(scope="session")
def server(deployed: dict[str, Path]) -> Iterator[Any]:
    """The loopback server."""
    with loopback({f"tiny/{name}": directory for name, directory in deployed.items()}, dtype="auto") as found:
        yield found


@pytest.fixture(scope="session")
def loading(server: Any, deployed: dict[str, Path]) -> Callable[[str, str], Any]:
    """Family, and whose key it is → the model on the server, loaded anew."""

    def made(name: str, world: str) -> Any:
        key = server.key if world == "ordinary" else server.trusted_key
        return model_.load(deployed[name].parent / "client" / name, remote=Server(server.url, key))

    return made


@pytest.fixture(scope="session")
def pairs(loading: Callable[[str, str], Any], deployed: dict[str, Path]) -> Callable[[str, str], tuple[Any, Any]]:
    """Family, and whose key it is → the model here, and the same on the server."""
    here = cache(lambda name: model_.load(deployed[name]))
    return cache(lambda name, world: (here(name), loading(name, world)))


@pytest.fixture(params=["ordinary", "trusted"])
def world(request: pytest.FixtureRequest) -> str:
    """Whose key it is: blocks run in a process without weights, or beside them."""
    return request.param


@pytest.fixture
def pair(pairs: Callable[[str, str], tuple[Any, Any]], world: str) -> Callable[[str], tuple[Any, Any]]:
    """Family → the model here, and the same on the server."""
    return lambda name: pairs(name, world)


@pytest.fixture
def key(server: Any, world: str) -> str:
    """The key."""
    return server.key if world == "ordinary" else server.trusted_key


@pytest.fixture
def exact(world: str) -> Callable[..., None]:
    """Equal to the bit, or with an ordinary key to rounding: weights went through calls, first tokens are not shared there."""

    def same(got: Any, want: Any, name: str = "", tolerance: float = 1e-5) -> None:
        got, want = np.asarray(got), np.asarray(want)
        if world == "trusted" or got.dtype.kind not in "fc":
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            scale = float(np.nanmax(np.abs(want), initial=0)) or 1.0
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=name)

    return same


@pytest.fixture
def impatient(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, whose faults end with the test, for a client that soon gives up waiting."""
    soon = {"UNKNOWN": 0.3, "UNSEEN": 0.3, "AGAIN": (0.0, 0.0), "PATIENCE": 30.0, "POLL": (0.01, 0.1)}
    for name, value in soon.items():
        monkeypatch.setattr(jobs, name, value)
    yield server
    server.calm()
