"""Fixtures of all tests: published artefacts, and hypothesis without a clock."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from emotrace.forwards import kept
from tests.oracles import Oracles

os.environ["EMOTRACE_CACHE"] = ""  # every test proves anew; those of the cache name a folder of their own

kept.WORTH = 0  # the models of the tests are tiny: what is kept of prompts is kept all the same

# The same inputs in every run, so that a commit that passed passes again; `make fuzz` tries others.
QUIET = [HealthCheck.too_slow]
settings.register_profile("emotrace", deadline=None, max_examples=25, derandomize=True, suppress_health_check=QUIET)
settings.register_profile("fuzz", deadline=None, max_examples=200, suppress_health_check=QUIET)
settings.load_profile("emotrace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the `oracles` fixture is an oracle test."""
    for item in items:
        if "oracles" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.oracle)


@pytest.fixture(scope="session")
def oracles() -> Oracles:
    """Published artefacts: `.path`, `.npy`, `.npz`, `.json`, `.jsonl`, `.csv` by name; skips where absent."""
    return Oracles.find()
