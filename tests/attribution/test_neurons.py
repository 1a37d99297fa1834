from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import emotrace as et
from emotrace.attribution import load_scores, neuron_contributions
from emotrace.datasets import Prompt, Prompts
from emotrace.forwards import streams
from emotrace.forwards.capturing import reduce
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.helpers import loaded

LABELS = ("anger", "fear", "disgust")
FAMILIES = ("llama", "gpt2", "gpt-neox", "gpt-j", "granite", "minicpm3", "opt", "bloom", "phi3", "falcon-new", "bert")
POST_NORM = ("gemma2", "gemma3", "olmo2")


def some_prompts(n=11, seed=0):
    rng = np.random.default_rng(seed)
    return Prompts(
        Prompt(
            f"p{i}",
            token_ids=tuple(rng.integers(len(tiny.SPECIALS), tiny.VOCAB, rng.integers(4, 10)).tolist()),
            labels={"emotion": LABELS[i % 3], "skeleton_id": f"s{i // 3}"},
        )
        for i in range(n)
    )


def random_directions(model, seed=1):
    rng = np.random.default_rng(seed)
    sites = model.sites
    v = rng.normal(size=(len(LABELS), sites.n_layers, 1, sites.d_model)).astype(np.float32)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    coords = {"emotion": list(LABELS), "layer": np.arange(sites.n_layers), "sublayer": ["resid_post"]}
    return xr.DataArray(v, dims=("emotion", "layer", "sublayer", "dim"), coords=coords)


def branch(model, layer):
    """The down projection as plain torch, and the module of a post-norm or None."""
    sites, root = model.sites, model._module
    down, end = (root.get_submodule(sites.address(s, layer).path) for s in ("neuron", "mlp_out"))
    return down, None if any(m is down for m in end.modules()) else end


def one_by_one(model, acts, directions, layer):
    """c ``[label of v, prompt, unit]`` and what is left of c·⟨v, mlp_out⟩ ``[label, prompt]``: one neuron after the other."""
    down, norm = branch(model, layer)
    a = torch.from_numpy(acts.sel("neuron", layer=layer).values)
    v = torch.from_numpy(directions.sel(layer=layer, sublayer="resid_post").values).double()
    with torch.no_grad():
        out, empty = down(a), down(torch.zeros(1, a.shape[1]))
        # what a norm does to each coordinate of this prompt, its size held fixed
        stretch = torch.ones_like(out) if norm is None else norm(out) / out
        found = []
        for unit in range(a.shape[1]):
            alone = torch.zeros_like(a)
            alone[:, unit] = a[:, unit]
            found.append(((down(alone) - empty) * stretch).double() @ v.T)
        rest = (empty * stretch).double() @ v.T
    scale = model.sites.scale
    return scale * torch.stack(found, dim=-1).permute(1, 0, 2).numpy(), scale * rest.T.numpy()


@pytest.mark.parametrize("name", [*FAMILIES, *POST_NORM])
def test_contributions_are_those_of_one_neuron_after_the_other(name):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    got = neuron_contributions(model, prompts, directions, progress=False)
    acts = et.capture(model, prompts, ["neuron"], progress=False)
    of = np.array([p.labels["emotion"] for p in prompts])
    assert got["mean"].dims == ("emotion", "layer", "unit")
    assert got["n"].values.tolist() == [4, 4, 3]
    for layer in model.sites.layers("neuron"):
        c, rest = one_by_one(model, acts, directions, layer)
        size = np.abs(c).max()
        for e, label in enumerate(LABELS):
            mine = c[e][of == label]
            others = np.mean([c[e][of == other].mean(0) for other in LABELS if other != label], axis=0)
            here = got.sel(emotion=label, layer=layer)
            raw = acts.sel("neuron", emotion=label, layer=layer).values.mean(0)
            for variable, want in (
                ("mean", mine.mean(0)),
                ("positive", np.maximum(mine, 0).mean(0)),
                ("negative", np.minimum(mine, 0).mean(0)),
                ("contrast", mine.mean(0) - others),
            ):
                assert np.abs(here[variable].values - want).max() <= 2e-5 * size, variable
            np.testing.assert_allclose(here["activation"], raw, atol=1e-6)
            assert here["bias"].item() == pytest.approx(rest[e][of == label].mean(), abs=2e-5)


@pytest.mark.parametrize("name", [*FAMILIES, *POST_NORM, "gpt-neo", "starcoder2", "modernbert", "distilbert"])
def test_neurons_and_bias_add_up_to_the_mlp_output(name):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    got = neuron_contributions(model, prompts, directions, progress=False)
    acts = et.capture(model, prompts, ["mlp_out"], progress=False)
    for label in LABELS:
        for layer in got["layer"].values:
            v = directions.sel(emotion=label, layer=layer, sublayer="resid_post").values.astype(np.float64)
            out = acts.sel(emotion=label, layer=layer, sublayer="mlp_out").values.astype(np.float64)
            here = got.sel(emotion=label, layer=layer)
            total = here["mean"].sum().item() + here["bias"].item()
            assert total == pytest.approx(model.sites.scale * (out @ v).mean(), abs=1e-5 * np.abs(out).max())
            assert (here["positive"] + here["negative"]).values == pytest.approx(here["mean"].values, abs=1e-12)


def test_beta_times_activation_is_the_mean():
    model = loaded("llama")
    got = neuron_contributions(model, some_prompts(), random_directions(model), progress=False)
    np.testing.assert_allclose(got["beta"] * got["activation"], got["mean"], atol=1e-9)
    assert (got["positive"] >= 0).all()
    assert (got["negative"] <= 0).all()


def test_the_sign_is_that_of_the_ablation():
    model, prompts = loaded("gpt2"), some_prompts()
    directions = random_directions(model)
    got = neuron_contributions(model, prompts, directions, progress=False)["mean"].sel(emotion="fear")
    layer, unit = (int(i) for i in np.unravel_index(int(got.values.argmax()), got.shape))
    v = directions.sel(emotion="fear", layer=layer, sublayer="resid_post").values
    edit = et.Ablate("neuron", layers=[layer], units=[unit], positions="last")
    before, after = (
        (et.capture(model, prompts.where(emotion="fear"), "resid_post", layers=layer, edits=e, progress=False)
         .residual.values @ v).mean()
        for e in (None, [edit])
    )  # fmt: skip
    assert after < before
    assert before - after == pytest.approx(float(got.max()), rel=1e-3)


def test_activation_before_the_nonlinearity():
    model, prompts = loaded("llama"), some_prompts()
    directions = random_directions(model)
    got = neuron_contributions(model, prompts, directions, variable="neuron_pre", progress=False)
    plain = neuron_contributions(model, prompts, directions, progress=False)
    acts = et.capture(model, prompts, ["neuron_pre"], progress=False)
    for label in LABELS:
        want = acts.sel("neuron_pre", emotion=label).values.mean(1)
        np.testing.assert_allclose(got["activation"].sel(emotion=label), want, atol=1e-6)
    np.testing.assert_array_equal(got["contrast"], plain["contrast"])


@given(batch_size=st.integers(1, 12), seed=st.integers(0, 3), name=st.sampled_from(["llama", "gemma2"]))
def test_neither_batches_nor_padding_nor_order_matter(batch_size, seed, name):
    model, prompts = loaded(name), some_prompts(seed=seed)
    directions = random_directions(model)
    whole = neuron_contributions(model, prompts, directions, progress=False)
    mixed = Prompts(prompts[int(i)] for i in np.random.default_rng(seed).permutation(len(prompts)))
    other = neuron_contributions(model, mixed, directions, batch_size=batch_size, progress=False)
    for variable in whole:
        np.testing.assert_allclose(other[variable], whole[variable], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path, monkeypatch):
    model, prompts = loaded(name), some_prompts(n=80)
    directions = random_directions(model)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1)  # chunks of 32
    alone = neuron_contributions(model, prompts, directions, progress=False)
    real, calls = reduce.prepared, []

    def dies_at_the_second(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(reduce, "prepared", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        neuron_contributions(model, prompts, directions, out=tmp_path, progress=False)
    resumed = neuron_contributions(model, prompts, directions, out=tmp_path, progress=False)
    assert calls == [32, 32, 32, 16]
    xr.testing.assert_identical(resumed, alone)
    xr.testing.assert_identical(load_scores(tmp_path, "neurons"), alone)
    # the sums do not depend on the directions: others are answered without a forward
    other = neuron_contributions(model, prompts, random_directions(model, seed=2), out=tmp_path, progress=False)
    assert len(calls) == 4
    assert np.abs(other["mean"] - alone["mean"]).max() > 1e-3
    with pytest.raises(EmotraceError, match="prompts_digest"):
        neuron_contributions(model, some_prompts(n=80, seed=5), directions, out=tmp_path, progress=False)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_mixtures_of_experts_are_refused_by_name(name):
    model = loaded(name)
    with pytest.raises(EmotraceError, match=r"no site 'neuron'.*mixtures of experts.*closest is 'mlp_out'"):
        neuron_contributions(model, some_prompts(), random_directions(model))


def test_only_the_dense_layer_of_a_partial_mixture():
    model = loaded("deepseek-v3")
    got = neuron_contributions(model, some_prompts(), random_directions(model), progress=False)
    assert got["layer"].values.tolist() == [0]
    with pytest.raises(EmotraceError, match="layer 1 of"):
        neuron_contributions(model, some_prompts(), random_directions(model), layers=[0, 1])


def test_a_dry_run_says_what_would_be_done():
    model = loaded("llama")
    dry = neuron_contributions.plan(model, some_prompts(), random_directions(model))
    assert (dry.prompts, dry.row_groups) == (11, 1)
    assert dry.bytes == 2 * 8 * 3 * 3 * model.sites.d_ff


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"variable": "neurons"}, "Did you mean 'neuron'"),
        ({"label": "mood"}, "mood"),
        ({"layers": []}, "empty"),
        ({"accepted": ["nobody"]}, "none of the keys"),
        ({"layers": 3}, "no layer 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(options, word, monkeypatch):
    model = loaded("llama")
    monkeypatch.setattr(reduce, "prepared", None)
    with pytest.raises(EmotraceError, match=word):
        neuron_contributions(model, some_prompts(), random_directions(model), **options)


def test_a_prompt_that_is_too_long_is_found_before_the_first_forward(monkeypatch):
    model = loaded("gpt2")
    monkeypatch.setattr(reduce, "prepared", None)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1)
    prompts = some_prompts(n=60)
    long = Prompt("long", token_ids=(20,) * 65, labels={"emotion": "fear", "skeleton_id": "s"})
    with pytest.raises(EmotraceError, match="at most 64"):
        neuron_contributions(model, Prompts([*prompts, long]), random_directions(model), progress=False)
