"""Rows: how many a forward takes follows from what was asked, the free memory and the tokens; no result follows from it."""

import numpy as np
import pytest

import emotrace as et
from emotrace import memory, ranks
from emotrace.forwards import passes, rows
from emotrace.forwards.beginnings import batches
from emotrace.labels import EmotraceError
from tests.attribution.test_neurons import random_directions, some_prompts
from tests.helpers import loaded

IDS = [list(range(20, 30 + i % 5)) for i in range(9)]


@pytest.mark.parametrize(("free", "most"), [(0, 1), (1 << 22, 64), (1 << 40, rows.MOST_ROWS)])
def test_auto_is_what_fits_into_the_free_memory(free, most, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: free)
    found = rows.resolved(loaded(), "auto", 16)
    assert found <= most
    assert (found == most) == (free != 1 << 22)
    assert 2 * rows.resolved(loaded(), "auto", 32) <= max(2, found) or found == rows.MOST_ROWS
    assert rows.resolved(loaded(), 7, 16) == 7


def test_a_batch_of_long_rows_has_fewer(monkeypatch):
    monkeypatch.setattr(rows, "MOST_TOKENS", 40)
    assert batches(loaded(), [10, 20, 5, 5, 100], 3) == [[4], [1, 0], [2, 3]]


@pytest.mark.parametrize("wrong", ["all", 0, 2.5])
def test_neither_a_number_nor_auto_is_refused(wrong):
    with pytest.raises(EmotraceError, match="batch_size"):
        et.capture(loaded(), IDS, "resid_post", batch_size=wrong, progress=False)
    with pytest.raises(EmotraceError, match="batch_size"):
        et.generate(loaded(), IDS, batch_size=wrong, progress=False)


def test_scores_take_what_fits_too(monkeypatch):
    lm, sizes = loaded(), []
    real = passes.reductions
    monkeypatch.setattr(passes, "reductions", lambda *a, **o: sizes.append(o["batch_size"]) or real(*a, **o))
    prompts, dirs = some_prompts(), random_directions(lm)
    monkeypatch.setattr(memory, "available", lambda device: 1 << 19)
    few, many = (
        et.attribution.neuron_contributions(lm, prompts, dirs, batch_size=n, progress=False) for n in ("auto", 9)
    )
    assert sizes == [rows.resolved(lm, "auto", max(len(p.token_ids) for p in prompts)), 9]
    assert 1 < sizes[0] < 9
    np.testing.assert_allclose(few["contrast"], many["contrast"], atol=1e-6)
    with pytest.raises(EmotraceError, match="batch_size='all'"):
        et.attribution.neuron_contributions(lm, prompts, dirs, batch_size="all")


def test_sums_go_on_with_the_rows_that_they_were_begun_with(tmp_path, monkeypatch):
    lm, prompts = loaded(), some_prompts()
    dirs = random_directions(lm)

    def scored(size):
        return et.attribution.neuron_contributions(lm, prompts, dirs, batch_size=size, out=tmp_path, progress=False)

    monkeypatch.setattr(memory, "available", lambda device: 1 << 19)
    first = scored("auto")
    monkeypatch.setattr(memory, "available", lambda device: 1 << 40)
    assert scored("auto").identical(first)
    with pytest.raises(EmotraceError, match="batch_size"):
        scored(rows.resolved(lm, "auto", 9))
    with ranks.taking(0, 2):  # whose memory nobody knows
        assert rows.asked(lm, "auto", prompts, begun=tmp_path / "none.json") == rows.ROWS


def test_pairs_that_are_differentiated_take_more(monkeypatch):
    lm = loaded()
    monkeypatch.setattr(memory, "available", lambda device: 1 << 22)
    assert rows.resolved(lm, "auto", 16, held=1000) < rows.resolved(lm, "auto", 16)


def test_a_store_and_replies_do_not_depend_on_it(tmp_path):
    lm, out = loaded(), tmp_path / "a.zarr"
    one = et.capture(lm, IDS, "resid_post", batch_size=2, out=out, progress=False)
    again = et.capture(lm, IDS, "resid_post", batch_size="auto", out=out, progress=False)  # the same store, continued
    other = et.capture(lm, IDS, "resid_post", batch_size="auto", progress=False)
    np.testing.assert_array_equal(one.residual.values, again.residual.values)
    np.testing.assert_allclose(one.residual.values, other.residual.values, atol=2e-5)
    replies = [et.generate(lm, IDS, batch_size=n, max_new_tokens=3, progress=False) for n in (2, "auto")]
    assert [r["token_ids"] for r in replies[0]] == [r["token_ids"] for r in replies[1]]
