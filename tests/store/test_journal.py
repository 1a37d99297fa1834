"""A group's batches outlive the process that computed them, and no damaged one is taken for whole."""

import errno
import itertools
import json
import os
import resource
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emotrace import disk, store
from emotrace.labels import EmotraceError
from emotrace.store import entries, journal, layout

JOURNAL = "row_groups/commit/000000.journal"


class Stopped(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    """Every batch is written at once; when it is due by the clock is tested apart."""
    monkeypatch.setattr(journal, "SHARE", np.inf)


def batches(group, size):
    """Spans of a group in batches that are no runs of rows: the prompts, last ones first."""
    spans = [(p.start - group.start, p.stop - group.start) for p in group.prompts][::-1]
    return [spans[i : i + size] for i in range(0, len(spans), size)]


def run(make, path, plan, whole, size=1, stop=None):
    """Write a store batch by batch; which batches were computed, until so many were if asked."""
    computed = []
    with store.create_or_resume(path, plan) as writer:
        for group in writer.pending():
            buffers = writer.buffers(group)
            for array in buffers.values():
                array[...] = np.nan
            kept = writer.journal(group, buffers)
            there = kept.restore().done
            wanted = make.part(plan, whole, group)
            for variable in plan.variables:
                for cell in variable.cells():
                    got, values = (arrays[variable.name][cell][there] for arrays in (buffers, wanted))
                    assert np.array_equal(got, values)
            for batch in batches(group, size):
                rows = np.concatenate([np.arange(*span) for span in batch])
                if there[rows].all():
                    continue
                if len(computed) == stop:
                    raise Stopped
                for variable in plan.variables:
                    for cell in variable.cells():
                        buffers[variable.name][cell][rows] = wanted[variable.name][cell][rows]
                computed.append((group.index, *rows.tolist()))
                kept.add(batch, [len(computed)])
                kept.keep()
            writer.submit(group, buffers)
    return computed


def one_group(make, **kwargs):
    plan = make.plan((3, 5, 2, 7, 4, 1, 6), max_rows=100, **kwargs)
    assert plan.n_groups == 1
    return plan, make.arrays(plan)


def tree(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8), size=st.integers(1, 3), max_rows=st.integers(1, 30),
    stops=st.lists(st.integers(0, 6), max_size=3), source=st.sampled_from(["float32", "bfloat16", "float16"]),
)  # fmt: skip
def test_a_run_stopped_anywhere_computes_each_batch_once_and_ends_with_the_same_tree(
    make, tmp_path_factory, lengths, size, max_rows, stops, source
):
    folder = tmp_path_factory.mktemp("stopped")
    absent = make.residual(layers=(0, 1), source_dtype=source, absent=((0, "resid_mid"),))
    plan = make.plan(lengths, [absent, make.z()], max_rows=max_rows)
    whole = make.arrays(plan)
    at_once = run(make, folder / "whole", plan, whole, size)
    computed = []
    for stop in stops:
        try:
            computed += run(make, folder / "a", plan, whole, size, stop)
        except Stopped:
            computed += [None] * stop
    computed += run(make, folder / "a", plan, whole, size)
    assert len(computed) == len(at_once)
    assert make.files(folder / "a") == make.files(folder / "whole")
    assert tree(folder / "a") == tree(folder / "whole")


@pytest.fixture
def stopped(make, tmp_path):
    """A store whose only group has five of seven batches in its journal: (path, plan, arrays, bytes of the whole one)."""
    plan, whole = one_group(make)
    run(make, tmp_path / "whole", plan, whole)
    with pytest.raises(Stopped):
        run(make, tmp_path / "a", plan, whole, stop=5)
    return tmp_path / "a", plan, whole, make.files(tmp_path / "whole")


def again(make, path, plan, whole):
    """The batches that a repeated run computes, and what it says."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        computed = run(make, path, plan, whole)
    return computed, " ".join(str(w.message) for w in told)


def test_an_entry_cut_at_any_byte_is_computed_again_and_is_no_damage(make, stored, stopped):
    path, plan, whole, wanted = stopped
    data = (path / JOURNAL).read_bytes()
    stops = [0, *(e.stop for e in kept(path, plan).entries)]
    before = make.files(path)
    for cut in (*stops, *range(1, len(data), len(data) // 12)):
        (path / JOURNAL).write_bytes(data[:cut])
        assert store.verify(path) == []
        computed, said = again(make, path, plan, whole)
        assert len(computed) == 7 - sum(stop <= cut for stop in stops[1:])
        assert not said
        assert make.files(path) == wanted
        put_back(path, before)


def test_an_entry_damaged_at_any_byte_is_computed_again_and_named(make, stopped):
    path, plan, whole, wanted = stopped
    data = (path / JOURNAL).read_bytes()
    before = make.files(path)
    ends = [e.stop for e in kept(path, plan).entries]
    for at in (*range(0, 120, 7), *range(120, len(data), len(data) // 16)):
        (path / JOURNAL).write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
        damage = store.verify(path)
        computed, said = again(make, path, plan, whole)
        lost = next(i for i, end in enumerate(ends) if at < end)
        assert 2 < len(computed) <= 7 - lost, at  # the entry itself at least; behind a damaged head, all that follow
        assert make.files(path) == wanted
        if damage:
            assert {(d.path, d.group) for d in damage} == {(JOURNAL, 0)}
            assert "computed again" in said
        else:  # the head says more bytes than there are, as if it were cut off
            assert not said
        put_back(path, before)


def test_of_a_damaged_entry_only_its_own_rows_are_computed_again(make, stopped):
    path, plan, whole, wanted = stopped
    entry = kept(path, plan).entries[2]
    flip(path / JOURNAL, entry.stop - 20)
    assert [str(d) for d in store.verify(path)] == [
        f"{JOURNAL}: entry at byte {entry.start}: the checksum differs (row group 0)"
    ]
    computed, said = again(make, path, plan, whole)
    assert list(computed[0][1:]) == entry.rows.tolist()
    assert len(computed) == 3
    assert "the checksum differs" in said
    assert make.files(path) == wanted


def test_repair_takes_out_damaged_entries_and_leaves_the_others(make, stopped):
    path, plan, whole, wanted = stopped
    entry = kept(path, plan).entries[2]
    flip(path / JOURNAL, entry.stop - 20)
    assert [(d.path, d.group) for d in store.repair(path)] == [(JOURNAL, 0)]
    assert store.verify(path) == []
    assert len(kept(path, plan).entries) == 4
    computed, said = again(make, path, plan, whole)
    assert len(computed) == 3
    assert not said
    assert make.files(path) == wanted


@pytest.mark.parametrize("other", ["weights", "plan", "group"])
def test_the_journal_of_another_store_is_never_taken_for_its_own(make, tmp_path, stopped, other):
    path, plan, whole, wanted = stopped
    attrs = {"model_id": "tiny", "weights_hash": "other"} if other == "weights" else None
    foreign = make.plan(
        lengths := (3, 5, 2, 7, 4, 1, 6) if other != "plan" else (4, 4, 2, 7, 4, 1, 6), attrs=attrs, max_rows=100
    )
    if other == "group":
        data = (path / JOURNAL).read_bytes()
        (path / JOURNAL).write_bytes(data[:24] + b"\1" + data[25:])
    else:
        with pytest.raises(Stopped):
            run(make, tmp_path / "b", foreign, {k: v + 1 for k, v in whole.items()}, stop=5)
        os.replace(tmp_path / "b" / JOURNAL, path / JOURNAL)
    assert len(store.verify(path)) == 1, lengths
    computed, said = again(make, path, plan, whole)
    assert len(computed) == 7
    assert "another plan" in said or "head differs" in said
    assert make.files(path) == wanted


def test_versions_and_command_may_differ_when_a_journal_is_continued(make, stopped):
    path, _, whole, _ = stopped
    plan, _ = one_group(make, attrs={"model_id": "tiny", "command": "other", "versions": {"torch": "9"}})
    computed, said = again(make, path, plan, whole)
    assert (len(computed), said) == (2, "")


def test_info_ls_and_readers_know_a_journal(make, stopped):
    path, plan, whole, _ = stopped
    there = int(kept(path, plan).done.sum())
    assert store.begun(path) == store.info(path)["groups_begun"] == {0: there}
    assert json.dumps(store.info(path))
    assert store.ls(path).variable.tolist() == ["residual", "z"]
    assert len(store.open_activations(path)) == 0
    run(make, path, plan, whole)
    assert store.begun(path) == store.info(path)["groups_begun"] == {}


def test_a_journal_left_by_a_run_killed_after_its_commit_goes_with_the_next(make, stopped):
    path, plan, whole, wanted = stopped
    data = (path / JOURNAL).read_bytes()
    run(make, path, plan, whole)
    (path / JOURNAL).write_bytes(data)
    assert store.verify(path) == []
    assert store.begun(path) == {}
    assert run(make, path, plan, whole) == []
    assert make.files(path) == wanted


def test_an_older_version_that_knows_no_journal_leaves_none(make, stopped):
    path, plan, whole, wanted = stopped
    make.write(path, plan, whole)  # as it wrote: without a journal
    assert make.files(path) == wanted


def test_a_full_disk_keeps_what_was_written_and_the_store_continues(make, tmp_path):
    plan = make.plan([8] * 4, [make.residual(dim=5_000)], max_rows=100)
    whole = make.arrays(plan)
    run(make, tmp_path / "whole", plan, whole)
    store.create_or_resume(tmp_path / "a", plan).close()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000))  # two batches
        try:
            run(make, tmp_path / "a", plan, whole)
        except EmotraceError as error:
            os._exit(0 if "repeat the same command" in str(error) else 1)
        os._exit(2)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 0
    assert store.verify(tmp_path / "a") == []
    assert len(run(make, tmp_path / "a", plan, whole)) == 2
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")


def test_when_publishing_fails_the_journal_has_every_batch(make, tmp_path, monkeypatch):
    plan, whole = one_group(make)
    run(make, tmp_path / "whole", plan, whole)
    monkeypatch.setattr(journal, "SHARE", -1)  # nothing is due before the end

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store.Writer, "_chunk", full)
        with pytest.raises(EmotraceError, match="disk is full"):
            run(make, tmp_path / "a", plan, whole)
    assert run(make, tmp_path / "a", plan, whole) == []
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")


def test_where_the_disk_has_no_room_for_both_the_groups_come_first(make, tmp_path, monkeypatch):
    plan, whole = one_group(make)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 2 * plan.group_bytes)
    seen = []
    monkeypatch.setattr(journal.Journal, "flush", lambda self, sync=False: seen.append(self._size()))
    run(make, tmp_path / "a", plan, whole)
    assert not seen
    monkeypatch.setattr(disk, "free_bytes", lambda _: 3 * plan.group_bytes)
    run(make, tmp_path / "b", plan, whole)
    assert seen


def test_the_journal_takes_its_share_of_the_time_and_no_more_but_is_written_at_latest_after_a_minute(
    monkeypatch, tmp_path
):
    clock = [1000.0]
    monkeypatch.setattr(journal, "SHARE", 0.02)
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    synced = []
    monkeypatch.setattr(disk, "sync_file", lambda path: (synced.append(clock[0]), tick(0.5)))
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)

    def tick(seconds):
        clock[0] += seconds

    pace = journal.Pace()
    assert not pace.due(1)  # no time has passed
    written, lost, longest = [], 0.0, 0.0
    for _ in range(20_000):
        tick(0.1)
        lost += 0.1
        if pace.due(40 << 20):
            began = clock[0]
            tick(0.3)  # a disk that writes 140 MB a second
            pace.wrote(tmp_path / "x", 40 << 20, began, sync=False)
            written.append(began)
            longest, lost = max(longest, lost), 0.0
    assert pace.spent <= 0.021 * (clock[0] - 1000)
    assert longest <= 60.2
    assert min(b - a for a, b in itertools.pairwise(synced)) >= 30
    assert len(written) > 40
    tick(60)
    pace.spent = 1e9  # a disk that is ever so slow
    assert pace.due(1 << 40)


def test_writing_takes_no_memory_that_grows_with_the_batch(make, tmp_path):
    plan = make.plan([200], [make.residual(dim=4096, layers=(0,))], max_rows=1000)
    whole = make.arrays(plan)
    with store.create_or_resume(tmp_path / "a", plan) as writer:
        (group,) = writer.pending()
        arrays = make.part(plan, whole, group)
        kept_ = writer.journal(group, arrays)
        kept_.add([(0, 200)], [])
        tracemalloc.start()
        try:
            kept_.flush()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        writer.commit(group, arrays)
    assert sum(a.nbytes for a in whole.values()) > 6_000_000
    assert peak < 5 * entries.BLOCK


def kept(path, plan):
    made = layout.fingerprint(store.open_activations(path).attrs)
    return entries.read(path / JOURNAL, made, 0, plan.n_rows, plan.variables)


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def put_back(path, files):
    for p in path.rglob("*"):
        if p.is_file() and p.relative_to(path).as_posix() not in files:
            p.unlink()
    for name, data in files.items():
        (path / name).write_bytes(data)
