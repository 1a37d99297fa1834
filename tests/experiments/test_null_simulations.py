"""Tests that reports print find something in noise as seldom as they say, and the published ones do not."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from emotrace.labels import EmotraceError
from tests.experiments.studies import module

RUNS = 8
OFTEN = int(binom.isf(1e-4, RUNS, 0.05))
"""More than so many of the runs below .05 happen once in ten thousand times where the test is right."""


@pytest.fixture(scope="module")
def simulations():
    return module("null_simulations")


def test_what_reports_print_finds_little_in_noise(simulations) -> None:
    quick = {
        name: null for name, null in simulations.PRINTED.items() if "any selective" not in name and "claim" not in name
    }
    assert len(quick) > 10
    for rate in simulations.rates(RUNS, seed=1, only=None):
        assert rate.share * RUNS <= OFTEN or rate.published, rate


def test_what_takes_for_independent_what_is_not_finds_much(simulations) -> None:
    (rate,) = simulations.rates(RUNS, seed=1, only="over emotions")
    assert rate.share > 0.5
    assert rate.published


@pytest.mark.soak
def test_a_thousand_runs_stay_below_seven_in_a_hundred(simulations) -> None:
    assert all(rate.holds for rate in simulations.rates(1000))


def test_a_printed_test_that_finds_too_much_ends_the_command(simulations, monkeypatch, capsys) -> None:
    monkeypatch.setattr(simulations, "PRINTED", {"wrong": lambda rng: float(rng.random() / 10)})
    monkeypatch.setattr(simulations, "PUBLISHED", {})
    with pytest.raises(EmotraceError, match="wrong found something"):
        simulations.main(runs=40)
    assert "TOO OFTEN" in capsys.readouterr().out
    with pytest.raises(EmotraceError, match="unknown test 'dip'"):
        list(simulations.rates(1, only="dip"))
