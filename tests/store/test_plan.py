import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import store
from emotrace.labels import EmotraceError
from emotrace.store.rows import column

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(lengths=LENGTHS, max_rows=st.integers(1, 20), budget=st.integers(1, 5000))
def test_groups_partition_the_rows_as_a_naive_count_does(make, lengths, max_rows, budget):
    plan = make.plan(lengths, max_rows=max_rows, row_group_bytes=budget)
    owner = [i for i, n in enumerate(lengths) for _ in range(n)]
    seen = []
    for index, group in enumerate(plan.groups):
        assert group.index == index
        assert len(group) == plan.row_group or group is plan.groups[-1]
        inside = [(p, r) for p, start, stop in group.prompts for r in range(start, stop)]
        assert inside == [(owner[r], r) for r in range(group.start, group.stop)]
        assert len({p for p, _ in inside}) == len(group.prompts)
        seen += [r for _, r in inside]
    assert seen == list(range(sum(lengths)))
    assert plan.row_group <= max_rows


def test_the_budget_sizes_groups_but_keeps_a_prompt_whole(make):
    row = sum(v.row_bytes for v in (make.residual(), make.z()))
    assert make.plan([2] * 20, row_group_bytes=5 * row, max_rows=99).row_group == 5
    assert make.plan([2] * 9 + [7], row_group_bytes=5 * row, max_rows=99).row_group == 7
    assert make.plan([100], row_group_bytes=2 * row, max_rows=999).row_group < 100  # not at any price


def test_digest_changes_with_labels_sizes_and_cells_but_not_with_attrs(make):
    base = make.plan().digest
    assert make.plan(attrs={"model_id": "other"}).digest == base
    labels = [{"emotion": "anger", "n": 0}] * 5
    other = store.Plan.make(make.rows([3, 5, 2, 7, 4], labels, 1), [make.residual(), make.z()], {}, max_rows=4)
    assert len({base, other.digest, make.plan(max_rows=5).digest, make.plan(variables=[make.residual()]).digest}) == 4


def test_absent_cells_are_not_counted(make):
    whole, part = make.residual(), make.residual(absent=((1, "resid_mid"),))
    assert part.row_bytes * 6 == whole.row_bytes * 5
    with pytest.raises(EmotraceError, match="absent cell"):
        make.residual(absent=((2, "resid_mid"),))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"position": 1}, "'position'"),
        ({"a/b": 1}, "'a/b'"),
        ({"layer": 1}, "'layer'"),
        ({"residual": 1}, "'residual'"),
        ({"x": [1]}, "x must be all strings"),
        ({"x": "\ud800"}, "not valid Unicode"),
    ],
)
def test_labels_the_store_cannot_hold_are_refused(make, labels, message):
    with pytest.raises(EmotraceError, match=message):
        store.Plan.make(make.rows([2], [labels]), [make.residual()], {})


def test_mixed_and_missing_labels(make):
    rows = make.rows([1, 1], [{"a": "x", "n": 1}, {"b": True}])
    assert rows.labels["a"].tolist() == ["x", ""]
    assert np.isnan(rows.labels["n"][1])
    for lost in (
        [2**53 + 1, None],
        [2**63, 1],
        np.array([2**63], np.uint64),
    ):  # rounded or wrapped they were other numbers
        with pytest.raises(EmotraceError, match="does not hold; make its values strings"):
            column("n", lost)
    with pytest.raises(EmotraceError, match="n must be all strings or all numbers; it holds 1"):
        make.rows([1, 1], [{"n": 1}, {"n": "x"}])


def test_empty_and_unordered_tables_are_refused(make):
    with pytest.raises(EmotraceError, match="empty"):
        store.Rows.of(["a"], [[1, 2]], [2], [[]], str, [{}])
    with pytest.raises(EmotraceError, match="increasing"):
        store.Rows.of(["a"], [[1, 2]], [2], [[1, 0]], str, [{}])


def test_attrs_must_be_json(make):
    with pytest.raises(EmotraceError, match="attr 'when'"):
        make.plan(attrs={"when": object()})
