"""Every function of a model with an ordinary key against here: the table of ``experiments/remote_worlds.py``, cut short."""

import pytest

from emotrace.testing.worlds import TOLERANCES, measured
from tests.helpers import families
from tests.remote.conftest import FAMILIES

CAUSAL = [name for name in FAMILIES if name not in ("roberta", "modernbert", "bert")]
SHORT = (
    "changed at resid_mid",
    "set at resid_mid",
    "changed at resid_pre",
    "set at resid_pre",
    "zero at z",
    "changed at logits",
)
"""Edits that need the base of their forward, or stand where the cache goes in; opt sums what its first layer is given."""


@pytest.mark.parametrize("name", ["opt"])
def test_every_function_there_is_that_of_here(pairs, name):
    found = measured(*pairs(name, "ordinary"), edited=SHORT.__contains__)
    assert {name: value for name, value in found.items() if value > TOLERANCES[name]} == {}


@pytest.mark.soak
@pytest.mark.parametrize("name", families(CAUSAL))
def test_every_edit_at_every_site_of_every_family(pairs, name):
    found = measured(*pairs(name, "ordinary"))
    assert {name: value for name, value in found.items() if value > TOLERANCES[name]} == {}
