"""Ranks of a capture, also ones that are killed, end with the tree of one process."""

import json
import os
import signal
import time

import pytest

import emotrace as et
from emotrace.labels import EmotraceError
from tests.helpers import loaded

IDS = [[10 + (i * 7 + j) % 140 for j in range(3 + i % 9)] for i in range(40)]
OPTIONS = {"sites": ("resid_post", "z"), "batch_size": 2, "row_group_bytes": 8_000, "progress": False}


def tree(path):
    return {p.relative_to(path).as_posix(): p.is_file() and p.read_bytes() for p in path.rglob("*")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The tree of one writer."""
    path = tmp_path_factory.mktemp("alone") / "a.zarr"
    et.capture(loaded(), IDS, out=path, **OPTIONS)
    return tree(path)


def started(path, rank, die=None):
    """A process that takes a rank, and dies at one of its forwards if asked."""
    child = os.fork()
    if child:
        return child
    lm, calls = loaded(), [0]

    def forward(*_):
        calls[0] += 1
        if calls[0] == die:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        lm._module.register_forward_pre_hook(forward)
        et.capture(lm, IDS, out=path, rank=rank, **OPTIONS)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
        os._exit(1)
    os._exit(0)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_ranks_one_of_which_dies_end_with_the_tree_of_one_process(alone, tmp_path):
    loaded()
    assert ended(started(tmp_path / "a.zarr", (1, 3), die=3)) == -signal.SIGKILL
    children = [started(tmp_path / "a.zarr", (i, 3)) for i in (0, 2)]
    assert [ended(child) for child in children] == [0, 0]
    assert et.open_activations(tmp_path / "a.zarr").complete
    assert tree(tmp_path / "a.zarr") == alone
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_rank_whose_machine_is_gone_is_taken_over_once_its_lease_lapses(alone, tmp_path):
    assert ended(started(tmp_path / "a.zarr", (0, 2), die=9)) == -signal.SIGKILL
    held = list((tmp_path / "a.zarr/row_groups/commit").glob("0*.lease"))
    assert held

    def said(until):
        for lease in held:
            there = json.loads(lease.read_text())
            lease.write_text(json.dumps({**there, "machine": "another", "until": until}))

    said(time.time() + 999)
    child, watched = started(tmp_path / "a.zarr", (1, 2)), time.monotonic() + 2
    while time.monotonic() < watched:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it waits for a rank that may live
        time.sleep(0.1)
    said(time.time() - 1)
    assert ended(child) == 0
    assert tree(tmp_path / "a.zarr") == alone


def test_one_rank_finishes_what_was_begun_by_one_process_and_the_other_way_round(alone, tmp_path):
    assert ended(started(tmp_path / "a.zarr", (0, 1), die=9)) == -signal.SIGKILL
    assert ended(started(tmp_path / "a.zarr", (1, 2), die=9)) == -signal.SIGKILL
    assert ended(started(tmp_path / "a.zarr", (0, 1))) == 0
    assert tree(tmp_path / "a.zarr") == alone


def test_two_processes_of_one_rank_and_ranks_beside_a_lone_writer_are_refused(make_writer):
    open_ = make_writer[1]
    with open_((0, 2)), pytest.raises(EmotraceError, match=r"another process is writing to .*a\.zarr as rank 0 of 2"):
        open_((0, 2))
    with open_((0, 2)), pytest.raises(EmotraceError, match=r"another process is writing to .*a\.zarr"):
        open_((0, 1))
    with open_((0, 1)), pytest.raises(EmotraceError, match=r"another process is writing to .*a\.zarr"):
        open_((1, 2))


@pytest.fixture
def make_writer(tmp_path, monkeypatch):
    from emotrace import store
    from emotrace.ranks import Rank
    from emotrace.store import opening

    monkeypatch.setattr(opening, "OPENING", 0.2)
    rows = store.Rows.of(["a"], [range(9)], [9], [range(9)], str, [{}])
    plan = store.Plan.make(rows, [store.Variable("x", ("dim",), sizes={"dim": 4})], {}, max_rows=3)
    path = tmp_path / "a.zarr"
    store.create_or_resume(path, plan).close()
    return path, lambda rank: store.create_or_resume(path, plan, rank=Rank(*rank))


def test_other_numbers_of_another_rank_are_refused(make_writer):
    path, open_ = make_writer
    with open_((0, 2)) as writer:
        group = next(writer.claimed())
        buffers = writer.buffers(group)
        buffers["x"][...] = 1
        record = path / "row_groups/commit/000000.json"
        record.write_text("{}")
        with pytest.raises(EmotraceError, match=r"row group 0 .* was committed with other numbers by another rank"):
            writer.commit(group, buffers)
        record.unlink()
