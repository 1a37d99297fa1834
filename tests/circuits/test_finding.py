"""Discover in one pass: what it reads, what it is equal to, and how it goes on after a kill."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace.attribution import head_contributions, load_scores, neuron_contributions
from emotrace.circuits import difference_vectors, discover
from emotrace.forwards import passes, streams
from emotrace.labels import EmotraceError
from emotrace.traced import requests
from tests.circuits.test_assembly import directions_of
from tests.circuits.test_differences import prompts
from tests.helpers import loaded

COUNTS: dict[str, Any] = {"neurons_per_layer": 3, "heads_per_layer": 1}


def apart(model, given, directions, accepted=None, head_readout="residual"):
    """The three results, each of its own pass."""
    options: dict[str, Any] = {"accepted": accepted, "progress": False}
    return {
        "neuron": neuron_contributions(model, given, directions, **options),
        "head": head_contributions(model, given, directions, head_readout=head_readout, **options),
        "differences": difference_vectors(model, given, **options),
    }


def saved(folder):
    stems = {"neuron": "neurons", "head": "heads", "differences": "differences"}
    return {name: load_scores(folder / name, stem) for name, stem in stems.items()}


@pytest.fixture
def forwards(monkeypatch):
    """Rows of every forward."""
    found, real = [], requests.forward

    def forward(model, steps, one, *rest):
        found.append(len(one.inputs["input_ids"]))
        return real(model, steps, one, *rest)

    monkeypatch.setattr(requests, "forward", forward)
    return found


@pytest.mark.parametrize(
    ("name", "readout"),
    [("llama", "residual"), ("llama", "normed"), ("gemma2", "normed"), ("falcon", "residual"), ("bert", "residual")],
)
def test_one_pass_gives_the_bits_of_the_three_functions(name, readout, tmp_path, forwards):
    model, given = loaded(name), prompts()
    directions = directions_of(model, given)
    want = apart(model, given, directions, head_readout=readout)
    forwards.clear()
    circuit = discover(
        model, given, directions, head_readout=readout, batch_size=8, out=tmp_path / "eight", **COUNTS, progress=False
    )
    assert forwards == [8, 8, 8, 3]
    assert circuit.meta["prompts_digest"] == given.digest
    forwards.clear()
    discover(model, given, directions, head_readout=readout, out=tmp_path / "all", **COUNTS, progress=False)
    assert forwards == [27]
    for part, found in saved(tmp_path / "all").items():
        xr.testing.assert_identical(found, want[part])


def test_prompts_outside_the_complete_groups_count_for_scores_alone(tmp_path, forwards):
    model, given = loaded("llama"), prompts()
    directions = directions_of(model, given)
    accepted = [key for i, key in enumerate(given.keys) if i not in (4, 12)]  # of two groups of three
    want = apart(model, given, directions, accepted)
    assert (want["head"].attrs["n_prompts"], want["differences"].attrs["n_rows"]) == (25, 21)
    forwards.clear()
    discover(model, given, directions, accepted=iter(accepted), out=tmp_path, **COUNTS, progress=False)
    assert forwards == [25]
    found = saved(tmp_path)
    xr.testing.assert_identical(found["head"], want["head"])
    xr.testing.assert_identical(found["neuron"], want["neuron"])
    assert found["differences"].attrs == want["differences"].attrs
    for variable in want["differences"]:  # other prompts in the batch: the forwards round otherwise
        scale = float(np.abs(want["differences"][variable]).max())
        assert float(np.abs(found["differences"][variable] - want["differences"][variable]).max()) <= 1e-6 * scale


def test_chunks_do_not_matter_and_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, forwards):
    model, given = loaded("llama"), prompts(n=12)
    directions = directions_of(model, given)
    want = apart(model, given, directions)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1)  # chunks of 32
    options: dict[str, Any] = {**COUNTS, "progress": False}
    base = discover(model, given, directions, out=tmp_path / "base", **options)
    assert discover.plan(model, given, directions, **options).row_groups == 4
    for part, found in saved(tmp_path / "base").items():
        for variable in found:
            scale = float(np.abs(want[part][variable]).max())
            assert float(np.abs(found[variable] - want[part][variable]).max()) <= 1e-6 * scale, (part, variable)
    real = passes.reductions

    def killed(*args, **kwargs):
        for i, found in enumerate(real(*args, **kwargs)):
            if i == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(passes, "reductions", killed)
    with pytest.raises(KeyboardInterrupt):
        discover(model, given, directions, out=tmp_path / "killed", **options)
    monkeypatch.setattr(passes, "reductions", real)
    forwards.clear()
    again = discover(model, given, directions, out=tmp_path / "killed", **options)
    assert sum(forwards) == len(given) - 64
    assert again.digest == base.digest
    both = saved(tmp_path / "base"), saved(tmp_path / "killed")
    for part, found in both[0].items():
        xr.testing.assert_identical(both[1][part], found)
    forwards.clear()
    assert discover(model, given, directions, out=tmp_path / "killed", **options).digest == base.digest
    assert forwards == []
    with pytest.raises(EmotraceError, match="readout"):
        discover(model, given, directions, out=tmp_path / "killed", head_readout="normed", **options)


def test_sums_of_the_three_functions_in_the_folder_are_left_alone(tmp_path, forwards):
    model, given = loaded("llama"), prompts()
    directions = directions_of(model, given)
    neuron_contributions(model, given[:6], directions, out=tmp_path / "neuron", progress=False)
    head_contributions(model, given[:6], directions, out=tmp_path / "head", progress=False)
    sums = {path: path.read_bytes() for path in tmp_path.glob("*/sums.*")}
    assert len(sums) == 4
    forwards.clear()
    discover(model, given, directions, out=tmp_path, **COUNTS, progress=False)
    assert sum(forwards) == len(given)
    assert {path: path.read_bytes() for path in sums} == sums
    assert saved(tmp_path)["neuron"].attrs["n_prompts"] == 27
    head_contributions(model, given[:6], directions, out=tmp_path / "other", progress=False)
    with pytest.raises(EmotraceError, match="method"):
        discover(model, given, directions, out=tmp_path / "other", **COUNTS, progress=False)


def test_kinds_in_other_layers_are_read_in_the_same_pass(tmp_path, forwards):
    model, given = loaded("deepseek-v3"), prompts()
    directions = directions_of(model, given)
    assert list(model.sites.layers("neuron")) != list(model.sites.layers("z"))
    want = apart(model, given, directions)
    forwards.clear()
    discover(model, given, directions, out=tmp_path, **COUNTS, progress=False)
    assert forwards == [27]
    for part, found in saved(tmp_path).items():
        xr.testing.assert_identical(found, want[part])


def test_weights_that_cannot_be_used_are_refused_before_the_pass(forwards, monkeypatch):
    model, given = loaded("llama"), prompts()
    directions = directions_of(model, given)
    forwards.clear()

    def refuse(*args):
        raise ValueError("a norm of another kind")

    monkeypatch.setattr(passes.contributions, "betas", refuse)
    with pytest.raises(EmotraceError, match="a norm of another kind"):
        discover(model, given, directions, **COUNTS, progress=False)
    assert forwards == []
    assert et.circuits.discover.plan(model, given, directions, **COUNTS, progress=False).bytes > 0
