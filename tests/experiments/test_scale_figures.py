"""The tables of docs/cluster.md are those that experiments/scale_figures.py prints."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from emotrace.store.show import human
from experiments.scale_figures import SIZES, app, kept, time_

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


def test_the_page_has_the_tables_that_are_printed():
    printed = CliRunner().invoke(app, []).stdout
    page = PAGE.read_text(encoding="utf-8")
    assert printed.count("| kept |") == len(SIZES) == 3
    assert all(line.rstrip() in page for line in printed.splitlines())


def test_bytes_of_one_site_are_width_times_item():
    whole, residual, one, mean, sums = kept(SIZES[0], 2)
    assert one.per_token == 576 * 2
    assert residual.per_token == 2 * 30 * one.per_token
    assert whole.per_token == residual.per_token + 30 * 1536 * 2
    assert mean.per_token == 2 * residual.per_token / 50  # float32
    assert (sums.per_token, sums.fixed) == (0, 28 * 60 * 576 * 8)


@pytest.mark.parametrize(("number", "words"), [(999, "999 B"), (1e9, "1 GB"), (1.3e15, "1.3 PB")])
def test_bytes_in_words(number, words):
    assert human(number) == words


@pytest.mark.parametrize(("seconds", "words"), [(30, "30 s"), (90, "1.5 min"), (7200, "2 h"), (1e6, "12 days")])
def test_times_in_words(seconds, words):
    assert time_(seconds) == words
