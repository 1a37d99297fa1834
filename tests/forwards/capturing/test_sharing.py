"""Shared beginnings: branches partition the prompts, are really shared, and change no value; row groups fit the prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import emotrace as et
from emotrace.forwards.capturing import job
from emotrace.forwards.capturing.groups import fitted
from emotrace.forwards.capturing.memory import WORTH, empty
from emotrace.forwards.capturing.prefixes import PASS_COST, Prefix, branches, prefix_batches
from emotrace.store import Plan, Rows, Variable
from tests.helpers import loaded

SYSTEM = list(range(20, 32))


def sev_like(scenarios=8, seed=0):
    """Prompts of one system message, scenarios of three events each, and two that share nothing further."""
    rng = np.random.default_rng(seed)
    ids = []
    for _ in range(scenarios):
        scenario = rng.integers(40, 150, rng.integers(10, 16)).tolist()
        ids += [SYSTEM + scenario + rng.integers(40, 150, rng.integers(2, 7)).tolist() for _ in range(3)]
    return [*ids, [*SYSTEM, 150, 151], [*SYSTEM, 152]]


def partition(found):
    return sorted(i for branch in found for i in branch.members)


def test_scenarios_become_twigs_and_loners_stay_alone():
    ids = sev_like()
    found = branches(ids, [len(s) - 1 for s in ids], len(SYSTEM))
    assert partition(found) == list(range(26))
    several = [t for t in found if len(t.members) > 1]
    assert sorted(sorted(t.members) for t in several) == [[i, i + 1, i + 2] for i in range(0, 24, 3)]
    assert {t for t in found if len(t.members) == 1} == {Prefix(len(SYSTEM), (24,)), Prefix(len(SYSTEM), (25,))}


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=20), min_size=1, max_size=12),
    st.integers(0, 12),
    st.data(),
)
def test_twigs_are_a_partition_that_never_reaches_a_wanted_position(tails, prefix, data):
    ids = [[5] * prefix + tail for tail in tails]
    firsts = [data.draw(st.integers(prefix, len(s) - 1)) for s in ids]
    found = branches(ids, firsts, prefix)
    assert partition(found) == list(range(len(ids)))
    for branch in found:
        assert branch.length >= prefix
        assert len({tuple(ids[i][: branch.length]) for i in branch.members}) == 1
        assert all(branch.length <= firsts[i] for i in branch.members)


def test_a_conversation_that_grows_turn_by_turn_is_no_stack_overflow():
    ids = [list(range(n)) for n in range(10, 3000, 2)]
    found = branches(ids, [len(s) - 1 for s in ids], 0)
    assert partition(found) == list(range(len(ids)))


def test_prefixes_of_similar_length_run_together_and_branches_only_where_they_pay():
    ids = [[s] * 10 + [i] * 30 + [j] for s in (1, 2) for i in range(3, 10) for j in range(5)]
    ids += [[9] * 40 + [i] for i in range(5)]
    firsts = [len(s) - 1 for s in ids]
    found = [Prefix(10, tuple(range(35))), Prefix(10, tuple(range(35, 70))), Prefix(40, tuple(range(70, 75)))]
    long, short = prefix_batches(found, ids, firsts, 12)
    assert long == (tuple(found[2:]), [], [(0, i) for i in range(70, 75)])
    assert short.prefixes == tuple(found[:2])
    assert not short.alone
    assert sorted(i for _, b in short.several for i in b.members) == list(range(70))
    assert all(i // 35 == row for row, b in short.several for i in b.members)
    few = [[1] * 10 + [i] * (PASS_COST // 4 - 1) + [j] for i in (2, 3) for j in range(2)]
    (only,) = prefix_batches([Prefix(10, (0, 1, 2, 3))], few, [len(s) - 1 for s in few], 12)
    assert (only.several, len(only.alone)) == ([], 4)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "qwen3", "gemma2", "gemma3", "phi", "opt", "bloom", "falcon", "mixtral"]
)
def test_levels_change_no_value(name, monkeypatch):
    lm, packed = loaded(name), []
    ids = sev_like() + [[33, *s] for s in sev_like(seed=1)]  # two prefixes, the second one token longer
    monkeypatch.setattr(job, "prefix_batches", lambda *a: packed.append(prefix_batches(*a)) or packed[-1])
    shared = et.capture(lm, ids, ("resid_post",), batch_size=13, progress=False)
    plain = et.capture(lm, ids, ("resid_post",), batch_size=13, share_prefixes=False, progress=False)
    assert any(len(one.prefixes) == 2 and one.several and one.alone for one in packed[0]), "not all kinds of level"
    np.testing.assert_allclose(shared.residual.values, plain.residual.values, atol=3e-5)


def plan(lengths, per_row=100):
    rows = Rows.of(
        [str(i) for i in range(len(lengths))], [[0] * n for n in lengths], lengths, [range(n) for n in lengths], str,
        [{}] * len(lengths),
    )  # fmt: skip
    return Plan.make(rows, [Variable("logits", ("dim",), sizes={"dim": per_row})], {}, 1000 * per_row * 4)


def test_row_groups_are_cut_between_batches_of_equal_prompts():
    assert fitted(plan([64] * 80), 1000 * 400, 8).row_group == 512


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 9))
def test_row_groups_keep_the_budget(lengths, batch):
    before = plan(lengths)
    after = fitted(before, 1000 * 400, batch)
    assert after.row_group <= max(1000, before.row_group)
    assert sum(len(g) for g in after.groups) == sum(lengths)


def test_fresh_memory_can_be_written_while_it_is_readied():
    array = empty((WORTH // 4 + 5, 1), np.dtype(np.float32))
    array[:] = 3
    assert (array == 3).all()
