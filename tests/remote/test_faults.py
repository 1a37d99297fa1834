"""Whatever goes wrong on the way: nothing is lost, nothing is written twice, and the store is that of an undisturbed run."""

import multiprocessing
import os
import random
import time

import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import attribution, scoring
from emotrace.forwards.capturing import filling
from emotrace.forwards.entering import keeping
from emotrace.labels import EmotraceError
from emotrace.remote import Remote, Server, jobs

FORK = multiprocessing.get_context("fork")
IDS = [[20 + (i * j) % 100 for j in range(2, 9)] for i in range(1, 31)]
OPTIONS = {"positions": "all", "batch_size": 4, "share_prefixes": False, "row_group_bytes": 25_000, "progress": False}


def content(store):
    """Every file of a store but what holds the command."""
    files = (p for p in store.rglob("*") if p.is_file() and p.name not in ("zarr.json", "table.json", ".lock"))
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(filling, "REQUEST_BYTES", 8_000)


@pytest.fixture(scope="module")
def undisturbed(pairs, tmp_path_factory):
    _, there = pairs("llama", "trusted")
    out = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "REQUEST_BYTES", 8_000)
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
def test_a_server_that_restarts(pair, impatient, small, undisturbed, tmp_path, monkeypatch, stale):
    _, there = pair("llama")
    monkeypatch.setattr(jobs, "STUCK", 2.0)
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


TRACEBACK = "Traceback (most recent call last):\n  File somewhere\nRuntimeError: CUDA out of memory.\n"


@pytest.mark.parametrize(
    ("told", "sent", "said"),
    [
        (TRACEBACK, 1, r"failed there: .*CUDA out of memory\. A smaller batch_size asks for less"),
        ("The model was evicted. Please try again later.", 3, r"failed 3 times: The model was evicted"),
    ],
    ids=["a traceback is believed", "a sentence is not, at first"],
)
def test_a_job_that_always_fails_is_an_error_that_can_be_continued(
    pair, impatient, small, undisturbed, tmp_path, told, sent, said
):
    _, there = pair("llama")
    out, before = tmp_path / "a.zarr", len(impatient.log())
    impatient.faults(error="running", times=-1, after=5, message=told)
    with pytest.raises(EmotraceError, match=said):
        et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    impatient.calm()
    asked = sum(job["error"] != "" for job in impatient.log()[before:])
    et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert content(out) == undisturbed
    assert sent <= asked < sent + jobs.IN_FLIGHT


def test_a_refused_key_leaves_a_store_that_continues_with_the_jobs_on_their_way(
    pair, impatient, small, undisturbed, tmp_path
):
    _, there = pair("llama")
    out, before = tmp_path / "a.zarr", len(impatient.log())
    impatient.faults(refuse="request", after=6)
    with pytest.raises(EmotraceError, match="refuses the API key"):
        et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert (tmp_path / "a.zarr.jobs").read_text().count("\n") >= 4
    et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert content(out) == undisturbed
    assert len(impatient.log()) - before == et.capture.plan(there, IDS, "resid_post", **OPTIONS).requests, (
        "a job was sent twice"
    )


def test_a_job_that_takes_too_long_is_cut_in_two(pair, impatient, undisturbed, tmp_path):
    _, there = pair("llama")
    before = len(impatient.log())
    impatient.faults(error="running", message="Overtime: the block ran past the execution timeout of 2.0 s", times=2)
    et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", **OPTIONS)
    assert content(tmp_path / "a.zarr") == undisturbed
    whole = et.capture.plan(there, IDS, "resid_post", **OPTIONS).requests
    assert len(impatient.log()) - before == whole + 4, "two jobs failed, and two took the place of each"


def test_an_interrupt_leaves_a_store_that_continues_with_other_requests(
    pair, impatient, small, undisturbed, tmp_path, monkeypatch
):
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
    monkeypatch.setattr(
        filling, "REQUEST_BYTES", 4_000
    )  # jobs on their way hold other rows: their answers are not taken
    et.capture(there, IDS, "resid_post", out=out, **OPTIONS)
    assert content(out) == undisturbed


def test_one_call_survives_what_a_capture_survives(pair, impatient):
    here, there = pair("llama")
    impatient.faults(error="running")
    impatient.faults(drop="response")
    rows = [et.generate(lm, IDS[:2], max_new_tokens=3, progress=False) for lm in (here, there)]
    assert [row["token_ids"] for row in rows[0]] == [row["token_ids"] for row in rows[1]]


def client(model, url, key, out):
    torch.set_num_threads(1)  # a fork has no threads of its own
    et.capture(et.load(model, remote=Server(url, key)), IDS, "resid_post", out=out, **OPTIONS)


def test_a_client_killed_at_random_moments(deployed, impatient, key, small, undisturbed, tmp_path):
    model = deployed["llama"].parent / "client" / "llama"
    rng = random.Random(os.environ.get("EMOTRACE_SEED", "3"))
    impatient.faults(delay="running", seconds=0.1, times=-1)
    for _ in range(4):
        before = len(impatient.log())
        process = FORK.Process(target=client, args=(model, impatient.url, key, tmp_path / "a.zarr"))
        process.start()
        wanted = before + rng.randrange(1, 5)
        while len(impatient.log()) < wanted and process.is_alive():
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.join()
    impatient.calm()
    client(model, impatient.url, key, tmp_path / "a.zarr")
    assert content(tmp_path / "a.zarr") == undisturbed
    assert not list(tmp_path.glob("*.jobs"))


def generation(lm, out):
    return [
        row["token_ids"] for row in et.generate(lm, IDS[:9], max_new_tokens=2, batch_size=3, out=out, progress=False)
    ]


def likelihood(lm, out):
    asked = [{"key": str(i), "token_ids": ids, "reply_ids": [40, 41 + i]} for i, ids in enumerate(IDS[:9])]
    with keeping(lm, out):
        return scoring.perplexity(lm, asked, 3)


def contributions(lm, out):
    asked = [
        {"key": f"{i}", "token_ids": ids, "emotion": e}
        for i, (ids, e) in enumerate(zip(IDS, ("a", "b") * 8, strict=False))
    ]
    width = lm.sites.d_model
    grid = {"emotion": ["a", "b"], "layer": [1, 2], "sublayer": ["resid_post"]}
    values = torch.randn(2, 2, 1, width, generator=torch.Generator().manual_seed(0)).numpy()
    dirs = xr.DataArray(values, dims=(*grid, "dim"), coords=grid)
    found = attribution.neuron_contributions(lm, asked, dirs, out=out, progress=False)
    return found["contrast"].values.tolist()


def calling(what, model, url, key, out):
    torch.set_num_threads(1)
    return what(et.load(model, remote=Server(url, key)), out)


@pytest.mark.parametrize("what", [generation, likelihood, contributions], ids=lambda what: what.__name__)
def test_what_was_asked_before_a_kill_is_not_asked_again(deployed, pair, impatient, key, what, tmp_path):
    model, out = deployed["llama"].parent / "client" / "llama", tmp_path / "made"
    pair("llama")
    before = len(impatient.log())
    there = et.load(model, remote=Server(impatient.url, key))
    loaded = len(impatient.log())
    want = what(there, tmp_path / "undisturbed")
    whole = len(impatient.log()) - loaded
    impatient.faults(delay="running", seconds=0.5, times=-1, after=loaded - before)
    process = FORK.Process(target=calling, args=(what, model, impatient.url, key, out))
    loading = len(impatient.log()) + loaded - before  # which asks, too
    process.start()
    while not any(log.stat().st_size for log in tmp_path.glob("made.jobs")) and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(list(tmp_path.glob("*.jobs"))) == 1
    impatient.calm()
    between = len(impatient.log())
    got = what(there, out)
    asked = len(impatient.log()) - loading
    assert asked == whole, f"{between - loading} before the kill"
    assert got == want
    assert not list(tmp_path.glob("*.jobs"))
