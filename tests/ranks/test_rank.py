"""Which rank a process is: as it is told, or as SLURM and torchrun say."""

import pytest

import emotrace as et
from emotrace.labels import EmotraceError
from emotrace.ranks import ALONE, Rank, chosen, taking
from emotrace.ranks.rank import of_environment


@pytest.mark.parametrize(
    ("said", "rank"),
    [
        ({}, (0, 1)),
        (dict(zip([f"SLURM_ARRAY_TASK_{n}" for n in ("ID", "COUNT", "MIN", "STEP")], "5312", strict=True)), (2, 3)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3"}, (0, 1)),  # some ids of no even step
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (1, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (2, 8)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
        ({"RANK": "x", "WORLD_SIZE": "2"}, (0, 1)),
    ],
)  # fmt: skip
def test_the_rank_is_that_of_slurm_and_torchrun(said, rank):
    assert of_environment(said)[0] == rank


def test_what_the_environment_says_is_printed_and_what_is_given_comes_first(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    assert chosen(None, None, "capture(rank)") == ALONE  # nothing is kept: nothing is shared
    assert not capsys.readouterr().err
    assert chosen(None, "x", "capture(rank)") == Rank(1, 3)
    assert capsys.readouterr().err == "emotrace: rank 1 of 3, as SLURM_ARRAY_TASK_ID says\n"
    with taking(0, 2):
        assert chosen(None, "x", "capture(rank)") == Rank(0, 2)
        assert chosen((3, 4), "x", "capture(rank)") == Rank(3, 4)


@pytest.mark.parametrize("rank", [(2, 2), (-1, 2), (0, 0)])
def test_what_is_no_rank_is_refused(rank):
    with pytest.raises(EmotraceError, match="rank"):
        chosen(rank, "x", "capture(rank)")


def test_ranks_without_a_place_to_share_are_refused():
    with pytest.raises(EmotraceError, match="out="):
        chosen((0, 2), None, "capture(rank)")
    assert et.ranks.Rank is Rank


def test_the_flags_belong_together():
    from emotrace.cli.groups import Ranked

    assert Ranked().pair is None
    assert Ranked(rank=1, of=3).pair == (1, 3)
    with pytest.raises(EmotraceError, match=r"--rank I and --of N belong together"):
        _ = Ranked(rank=1).pair
    with pytest.raises(EmotraceError, match=r"ranks of 3 are 0 to 2"):
        _ = Ranked(rank=3, of=3).pair
