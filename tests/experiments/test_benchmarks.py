"""The benchmarks run from end to end on tiny sizes, and their arithmetic is right; no time is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.benchmarks import timing, work
from experiments.benchmarks.peaks import WORKS
from experiments.benchmarks.search import differences
from experiments.benchmarks.spine import QUESTIONS, app
from experiments.benchmarks.timing import ratio

ROOT = Path(__file__).resolve().parents[2]
SPINE = ROOT / "experiments" / "benchmarks" / "spine.py"


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """No time is asserted, and to collect all of the tests' garbage before every turn takes seconds."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


def spine(*flags):
    return CliRunner().invoke(app, ["--quick", *flags])


QUICKEST = "read"
"""The question that every run of the tests asks; the others run by `make benchmarks`."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == QUICKEST else pytest.mark.benchmark) for n in sorted(QUESTIONS)]
)
def test_a_question_is_answered(name):
    done = spine("--only", name)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.split("| question |")[1].splitlines()[2:] if line.startswith("|")]
    assert len(rows) == {"steering": 4, "journal": 4, "alike": 2, "opening": 2, "peak": len(WORKS)}.get(name, 1)
    assert all(float(row.split("|")[2].split()[0]) > 0 for row in rows)


def test_a_store_of_many_rows_is_made_and_read():
    command = [sys.executable, str(SPINE.with_name("rows.py")), "--rows", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[4:6]] == [
        "one key, the first time",
        "ten rows by number",
    ]


@pytest.mark.benchmark
def test_ranks_are_compared_with_one_process():
    command = [sys.executable, str(SPINE.with_name("ranks.py")), "--repetitions", "1", "--prompts", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "same bytes: True" in done.stdout
    assert "median of 1" in done.stdout


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["heads_shipped", "sublayers_shipped"])
def test_attribution_is_compared_with_what_it_replaces(name):
    command = [sys.executable, str(SPINE.with_name("attribution.py")), "--quick", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert name.split("_")[0] in done.stdout


@pytest.mark.benchmark
def test_two_dtypes_are_compared():
    command = [sys.executable, str(SPINE.with_name("dtypes.py")), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "likeliest next token is the same" in done.stdout


@pytest.mark.benchmark
def test_scores_out_of_a_store_are_compared_with_reading_it():
    command = [sys.executable, str(SPINE.with_name("asked.py")), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "≤ 1.5" in line]
    assert len(rows) == 2
    assert all(float(row.split("|")[2].split()[0]) > 0 for row in rows)


@pytest.mark.benchmark
def test_a_search_is_compared_with_that_of_another_checkout():
    command = [sys.executable, str(SPINE.with_name("search.py")), "--quick", "--against", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip(): line.split("|")[2] for line in done.stdout.splitlines() if line.startswith("|")}
    assert all(float(rows[name].split()[0]) > 0 for name in ("generation", "likelihood", "peak memory"))


def test_searches_that_found_something_else_are_not_compared():
    found = {"replies": "a", "perplexity": [2.0, 3.0], "kl": [0.1, 0.0]}
    assert differences(found, found) == []
    assert differences(found, {**found, "kl": [0.1, 1e-7]}) == []
    wrong = differences(found, {"replies": "b", "perplexity": [2.0, 3.1], "kl": [0.1, 0.01]})
    assert [w.split()[0] for w in wrong] == ["the", "perplexity", "kl"]


def test_an_unknown_question_is_refused():
    done = spine("--only", "speed")
    assert done.exit_code == 2
    assert "disk_last" in done.stderr


def test_ratio_takes_turns_and_divides_the_medians():
    turns = []
    found = ratio(lambda: turns.append("work"), lambda: turns.append("reference"), 3)
    assert turns == ["reference", "work"] * 4
    assert found.median == found.seconds / found.reference
    assert found.low <= found.high


def test_the_twin_has_the_same_weights_and_was_never_wrapped():
    pair = work.llama(work.QUICK)
    theirs = dict(pair.twin.named_parameters())
    assert all((p == theirs[n]).all() for n, p in pair.model._module.named_parameters())
    assert not any(module is pair.model._module for module in pair.twin.modules())


def test_stand_in_ids_share_the_beginnings_of_the_prompts():
    ids = work.sev_ids(work.llama(work.QUICK).model, limit=2)
    assert len(ids) == 2 * 3 * 6
    assert len({tuple(i[:4]) for i in ids}) == 1
    assert len({tuple(i) for i in ids}) == len(ids)
