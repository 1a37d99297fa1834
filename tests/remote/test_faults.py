"""Whatever goes wrong on the way: nothing is lost, nothing is written twice, and the store is that of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import emotrace as et
from emotrace.capturing import afar
from emotrace.labels import EmotraceError
from emotrace.remote import Remote

IDS = [[20 + (i * j) % 100 for j in range(2, 9)] for i in range(1, 31)]
OPTIONS = {"positions": "all", "batch_size": 4, "share_prefixes": False, "row_group_bytes": 25_000, "progress": False}


def content(store):
    """Every file of a store but what holds the command."""
    files = (p for p in store.rglob("*") if p.is_file() and p.name not in ("zarr.json", "table.json", ".lock"))
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in files}


def committed(server, before):
    return [job for job in server.log()[before:] if job["served"]]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(afar, "REQUEST_BYTES", 8_000)


@pytest.fixture(scope="module")
def undisturbed(pair, tmp_path_factory):
    _, there = pair("llama")
    out = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(afar, "REQUEST_BYTES", 8_000)
        et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    return content(out)


@pytest.mark.parametrize(
    "fault",
    [
        {"http": "request"}, {"http": "response", "times": 3}, {"http": "results"},
        {"drop": "request"}, {"drop": "reply"}, {"drop": "response", "times": 2}, {"drop": "results"},
        {"error": "running"}, {"error": "completed"}, {"lose": "job"}, {"lose": "result"}, {"twice": "run"},
        {"delay": "response", "seconds": 0.1, "times": 3}, {"delay": "results", "seconds": 0.1},
    ],
    ids=lambda fault: " ".join(f"{k} {v}" for k, v in fault.items()),
)  # fmt: skip
def test_a_fault_changes_nothing(pair, impatient, small, undisturbed, tmp_path, fault):
    _, there = pair("llama")
    impatient.faults(**({"after": 1} | fault))
    et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", **OPTIONS)
    assert content(tmp_path / "a.zarr") == undisturbed
    assert not list(tmp_path.glob("*.jobs"))


@pytest.mark.parametrize("stale", [False, True])
def test_a_server_that_restarts(pair, impatient, small, undisturbed, tmp_path, stale):
    _, there = pair("llama")
    impatient.faults(restart="running", after=2, seconds=0.2, stale=stale)
    et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", **OPTIONS)
    assert content(tmp_path / "a.zarr") == undisturbed


def test_an_expired_result_is_computed_again(pair, impatient, small, undisturbed, tmp_path):
    _, there = pair("llama")
    impatient.faults(delay="response", seconds=0.3, after=3)
    impatient.modes(expire_urls=0.2)
    try:
        et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", **OPTIONS)
    finally:
        impatient.modes(expire_urls=None)
    assert content(tmp_path / "a.zarr") == undisturbed


def test_a_job_that_always_fails_is_an_error_that_can_be_continued(pair, impatient, small, undisturbed, tmp_path):
    _, there = pair("llama")
    out = tmp_path / "a.zarr"
    impatient.faults(error="running", times=-1, after=5, message="CUDA out of memory")
    with pytest.raises(EmotraceError, match=r"failed 3 times: .*CUDA out of memory"):
        et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    impatient.calm()
    et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert content(out) == undisturbed


def test_a_refused_key_leaves_a_store_that_continues_with_the_jobs_on_their_way(
    pair, impatient, small, undisturbed, tmp_path
):
    _, there = pair("llama")
    out, before = tmp_path / "a.zarr", len(impatient.log())
    impatient.faults(refuse="response", after=6)
    with pytest.raises(EmotraceError, match="refuses the API key"):
        et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert (tmp_path / "a.zarr.jobs").read_text().count("\n") >= 4
    et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert content(out) == undisturbed
    jobs = impatient.log()[before:]
    assert len(jobs) == et.capture(there, IDS, "resid_post", dry_run=True, **OPTIONS).requests, "a job was sent twice"


def test_an_interrupt_leaves_a_store_that_continues(pair, impatient, small, undisturbed, tmp_path, monkeypatch):
    _, there = pair("llama")
    out = tmp_path / "a.zarr"
    original, seen = Remote.results, []

    def interrupted(self, *args, **options):
        for answer in original(self, *args, **options):
            seen.append(answer)
            if len(seen) == 5:
                raise KeyboardInterrupt
            yield answer

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "results", interrupted)
        with pytest.raises(KeyboardInterrupt):
            et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    shown = len(et.open_activations(out))
    assert 0 < shown < sum(map(len, IDS))
    et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert content(out) == undisturbed


def test_one_call_survives_what_a_capture_survives(pair, impatient):
    here, there = pair("llama")
    impatient.faults(error="running")
    impatient.faults(drop="response")
    rows = [et.generate(lm, IDS[:2], max_new_tokens=3, progress=False) for lm in (here, there)]
    assert [row["token_ids"] for row in rows[0]] == [row["token_ids"] for row in rows[1]]


CLIENT = """
import sys
import emotrace as et
from emotrace.capturing import afar
from emotrace.remote import Server
afar.REQUEST_BYTES = 8_000
ids = [[20 + (i * j) % 100 for j in range(2, 9)] for i in range(1, 31)]
lm = et.load(sys.argv[1], remote=Server(sys.argv[2], sys.argv[3]))
et.capture(lm, ids, "resid_post", positions="all", batch_size=4, share_prefixes=False, row_group_bytes=25_000,
           progress=False, out=sys.argv[4])
"""


def test_a_client_killed_at_random_moments(deployed, impatient, undisturbed, tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    model = deployed["llama"].parent / "client" / "llama"
    command = [sys.executable, tmp_path / "client.py", model, impatient.url, impatient.key, tmp_path / "a.zarr"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rng = random.Random(os.environ.get("EMOTRACE_SEED", "3"))
    impatient.faults(delay="running", seconds=0.15, times=-1)
    for _ in range(2):
        before = len(impatient.log())
        process = subprocess.Popen(command, env=environment)
        wanted = before + rng.randrange(3, 7)
        while len(impatient.log()) < wanted and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    impatient.calm()
    subprocess.run(command, env=environment, check=True)
    assert content(tmp_path / "a.zarr") == undisturbed
    assert np.isfinite(et.open_activations(tmp_path / "a.zarr").residual.values).all()
