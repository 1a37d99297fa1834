"""A capture that is stopped at any batch computes the others once, and ends with the bytes of one that was not."""

import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import emotrace as et
from emotrace.attribution.weights import output_projection, reading_norm
from emotrace.labels import EmotraceError
from emotrace.store import journal
from tests.helpers import hooked, loaded

IDS = [[10 + (i * 7 + j) % 140 for j in range(3 + i % 9)] for i in range(40)]
SHARED = [[*range(30, 46), *ids] for ids in IDS[:12]]


class Stopped(Exception):
    """Raised in a forward."""


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(journal, "SHARE", np.inf)


def capture(path, die=None, ids=IDS, kill=False, lm=None, **options):
    """Forwards that a capture took; stopped at one of them if asked, by an exception or for good."""
    lm = lm or loaded()
    calls = [0]

    def forward(*_):
        calls[0] += 1
        if calls[0] == die:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped

    hook = lm._module.register_forward_pre_hook(forward)
    options = {"sites": ("resid_post", "z"), "batch_size": 4, **options}
    sites = options.pop("sites")
    try:
        et.capture(lm, ids, sites, out=path, progress=False, **options)
    finally:
        hook.remove()
    return calls[0]


def tree(path):
    return {
        p.relative_to(path).as_posix(): p.is_file() and p.read_bytes() for p in path.rglob("*") if "lock" not in p.name
    }


@settings(max_examples=10)
@given(
    batch=st.integers(1, 9), dies=st.lists(st.integers(1, 12), min_size=1, max_size=3), shared=st.booleans(),
    positions=st.sampled_from(["last", "all", (0, 2)]), group_bytes=st.sampled_from([3_000, 20_000, 1 << 28]),
)  # fmt: skip
def test_stopped_at_any_batch_it_ends_with_the_same_tree(tmp_path_factory, batch, dies, shared, positions, group_bytes):
    folder = tmp_path_factory.mktemp("stopped")
    options = {
        "batch_size": batch, "positions": positions, "row_group_bytes": group_bytes, "ids": SHARED if shared else IDS[:12],
    }  # fmt: skip
    total = capture(folder / "whole.zarr", **options)
    spent = 0
    for die in dies:
        try:
            spent += capture(folder / "a.zarr", die, **options)
            break
        except Stopped:
            spent += die - 1
    spent += capture(folder / "a.zarr", **options)
    passes = len(dies) * (4 if shared else 0)  # a shared beginning is computed anew by each run, for each group begun
    assert total <= spent <= total + passes
    assert tree(folder / "a.zarr") == tree(folder / "whole.zarr")


def test_what_a_killed_process_computed_is_not_computed_again(tmp_path):
    total = capture(tmp_path / "whole.zarr")
    assert total == 10
    pid = os.fork()
    if not pid:
        capture(tmp_path / "a.zarr", die=9, kill=True)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert et.store.begun(tmp_path / "a.zarr") == {0: 32}
    assert capture(tmp_path / "a.zarr") == 2
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "whole.zarr")


def test_what_is_done_counts_on_the_bar_and_a_journal_that_lacks_nothing_is_published(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        capture(tmp_path / "a.zarr", die=10)
    assert capture(tmp_path / "a.zarr") == 1
    with monkeypatch.context() as patched:  # the last batch is kept too where publishing fails
        patched.setattr(et.store.Writer, "_write", lambda *_: (_ for _ in ()).throw(EmotraceError("no")))
        with pytest.raises(EmotraceError, match="no"):
            capture(tmp_path / "b.zarr")
    assert et.store.begun(tmp_path / "b.zarr") == {0: 40}
    assert capture(tmp_path / "b.zarr") == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


def test_how_often_an_edit_fired_is_kept_with_the_batch(tmp_path):
    """An edit that fires in the first batch only must not be called silent by the run that computes the others."""
    lm = loaded()
    ids = [list(range(20, 32)), *IDS[:8]]
    edits = [et.Scale("resid_post", layers=[1], positions=(11, 12), strength=0.5)]
    options = {"ids": ids, "edits": edits, "batch_size": 1}
    capture(tmp_path / "whole.zarr", **options)
    with pytest.raises(Stopped):
        capture(tmp_path / "a.zarr", die=4, **options)
    assert capture(tmp_path / "a.zarr", lm=lm, **options) == 6
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "whole.zarr")


def test_a_journal_with_numbers_that_are_not_finite_is_not_kept(tmp_path):
    lm = loaded()
    with (
        hooked(lm._module.model.layers[1], "output", lambda h: h * torch.nan),
        pytest.raises(EmotraceError, match="finite"),
    ):
        capture(tmp_path / "a.zarr")
    assert et.store.begun(tmp_path / "a.zarr") == {}
    assert capture(tmp_path / "a.zarr") == 10


def test_requests_are_cut_alike_and_those_whose_rows_are_kept_are_not_sent(tmp_path, monkeypatch):
    from emotrace.forwards.capturing import filling

    monkeypatch.setattr(filling, "REQUEST_BYTES", 6_000)
    there = et.load(loaded()._module, tokenizer=loaded().tokenizer, remote="local")
    total = capture(tmp_path / "whole.zarr", lm=there)
    names = []
    request = filling.Request
    monkeypatch.setattr(filling, "Request", lambda name, *args: names.append(name) or request(name, *args))
    with pytest.raises(Stopped):
        capture(tmp_path / "a.zarr", die=7, lm=there)
    sent = names.copy()
    names.clear()
    assert capture(tmp_path / "a.zarr", lm=there) < total - 3
    assert names[0] == sent[-1]
    assert not {*names} & {*sent[:-1]}
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "whole.zarr")


def killed_at_random(path, whole, rng, kills, **options):
    """A capture killed so often at random moments by the clock, then repeated to its end; rows found in its journals."""
    capture(whole, **options)
    began = time.monotonic()
    capture(None, **options)
    took = time.monotonic() - began
    left = seen = 0
    for _ in range(30 * kills):
        if seen == kills:
            break
        pid = os.fork()
        if not pid:
            try:
                capture(path, **options)
            finally:
                os._exit(0)
        while not path.exists() and time.monotonic() < began + 300:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 1.2)) * took)
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):  # done before it was killed
            assert tree(path) == tree(whole)
            shutil.rmtree(path)
            continue
        seen += 1
        assert et.store.verify(path) == []
        left += sum(et.store.begun(path).values())
    assert seen == kills
    capture(path, **options)
    assert tree(path) == tree(whole)
    return left


def test_killed_at_random_moments_it_ends_with_the_same_tree(tmp_path):
    options = {"batch_size": 1, "positions": "all"}
    killed_at_random(tmp_path / "a.zarr", tmp_path / "whole.zarr", np.random.default_rng(0), 3, **options)


@pytest.mark.soak
def test_killed_again_and_again_it_ends_with_the_same_tree(tmp_path):
    left = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        options = {
            "batch_size": int(rng.integers(1, 6)), "positions": ("last", "all", (0, 2))[seed % 3],
            "row_group_bytes": (4_000, 30_000, 1 << 28)[seed % 3], "ids": (IDS, SHARED)[seed % 2],
        }  # fmt: skip
        left += killed_at_random(tmp_path / f"{seed}.zarr", tmp_path / f"whole{seed}.zarr", rng, 5, **options)
    assert left


def test_what_norms_divide_by_is_made_when_a_group_is_whole(tmp_path):
    lm = loaded("gemma2")
    options = {"lm": lm, "sites": ("resid_mid", "z", "neuron"), "components": True, "row_group_bytes": 20_000}
    capture(tmp_path / "whole.zarr", **options)
    with pytest.raises(Stopped):
        capture(tmp_path / "a.zarr", die=5, **options)
    capture(tmp_path / "a.zarr", **options)
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "whole.zarr")
    acts = et.open_activations(tmp_path / "a.zarr")
    assert acts.n_groups > 1
    for layer in range(3):
        norm = reading_norm(lm, layer)
        mid = torch.from_numpy(acts.sel(layer=layer, sublayer="resid_mid").values)
        np.testing.assert_allclose(acts.sel("mid_norm", layer=layer).values, norm.size(mid).numpy(), rtol=1e-6)
        branch = output_projection(lm, "neuron", layer)
        x = torch.from_numpy(acts.sel("neuron", layer=layer).values)
        size = branch.norm.size(branch.output(x)).numpy()
        np.testing.assert_allclose(acts.sel("neuron_norm", layer=layer).values, size, rtol=1e-6)


def test_an_edit_that_acts_in_row_groups_of_an_earlier_run_alone_is_not_silent(tmp_path):
    ids = [IDS[8], IDS[17], *([IDS[0]] * 14)]  # two long prompts, of the first row group
    edits = [et.Ablate("resid_post", layers=[1], positions=(9, 10))]
    options = {"edits": edits, "ids": ids, "batch_size": 2, "row_group_bytes": 3_000, "share_prefixes": False}
    total = capture(tmp_path / "whole.zarr", **options)
    with pytest.raises(Stopped):
        capture(tmp_path / "a.zarr", total, **options)
    assert list((tmp_path / "a.zarr/row_groups/commit").glob("000000.json")), "the first group is committed"
    capture(tmp_path / "a.zarr", **options)
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "whole.zarr")
