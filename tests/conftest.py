"""Fixtures of all tests: published artefacts, and hypothesis without a clock."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from emotrace.forwards import kept
from tests.oracles import Oracles

# A model is proven once in a run: its proof is kept under its weights, code and versions, for all workers, which begin with the
# environment of the process that starts them. Tests of proofs ask for `anew`.
CACHE = "" if "PYTEST_XDIST_WORKER" in os.environ else tempfile.mkdtemp(prefix="emotrace-")
if CACHE:
    os.environ["EMOTRACE_CACHE"] = CACHE

kept.WORTH = 0  # the models of the tests are tiny: what is kept of prompts is kept all the same

# The same inputs in every run, so that a commit that passed passes again; `make fuzz` tries others.
QUIET = [HealthCheck.too_slow]
settings.register_profile("emotrace", deadline=None, max_examples=25, derandomize=True, suppress_health_check=QUIET)
settings.register_profile("fuzz", deadline=None, max_examples=200, suppress_health_check=QUIET)
settings.load_profile("emotrace")


FIRST = (
    "experiments/test_emotion_circuits.py", "remote/test_equal.py", "remote/test_faults.py", "remote/test_secrets.py",
    "remote/test_deployments.py", "remote/test_keys_nowhere.py", "remote/test_two_traces.py", "remote/test_contract.py",
    "remote/test_asked_later.py", "remote/test_worlds.py", "test_conformance.py", "testing/test_ndif_server.py",
)  # fmt: skip
"""The longest files begin, so that two workers end together: a whole study on one, and on the other all that share a server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of `FIRST`; a test that asks for the `oracles` fixture is an oracle test."""
    place = {Path(__file__).parent / name: at for at, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    for item in items:
        if "oracles" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.oracle)


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be looked through whenever garbage is collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def oracles() -> Oracles:
    """Published artefacts: `.path`, `.npy`, `.npz`, `.json`, `.jsonl`, `.csv` by name; skips where absent."""
    return Oracles.find()


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded is proven here and now."""
    monkeypatch.setenv("EMOTRACE_CACHE", "")


def pytest_unconfigure() -> None:
    if CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)
