from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import emotrace as et
from emotrace.attribution import head_contributions, load_scores
from emotrace.datasets import Prompt, Prompts
from emotrace.forwards import streams
from emotrace.forwards.capturing import reduce
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.helpers import families, loaded

LABELS = ("anger", "fear", "disgust")
PARALLEL = ("gpt-neox", "falcon-new", "gpt-j")
POST_LN = ("bert", "distilbert", "opt-post-ln")
FAMILIES = (
    "llama",
    "gpt2",
    "gemma2",
    "olmo2",
    "granite",
    "minicpm3",
    "opt",
    "mixtral",
    "modernbert",
    *PARALLEL,
    *POST_LN,
)


def some_prompts(n=11, seed=0, longest=9):
    rng = np.random.default_rng(seed)
    return Prompts(
        Prompt(
            f"p{i}",
            token_ids=tuple(rng.integers(len(tiny.SPECIALS), tiny.VOCAB, rng.integers(4, longest + 1)).tolist()),
            labels={"emotion": LABELS[i % 3], "skeleton_id": f"s{i // 3}"},
        )
        for i in range(n)
    )


def random_directions(model, subs=("resid_mid", "resid_post"), seed=1):
    rng = np.random.default_rng(seed)
    sites = model.sites
    v = rng.normal(size=(len(LABELS), sites.n_layers, len(subs), sites.d_model)).astype(np.float32)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    coords = {"emotion": list(LABELS), "layer": np.arange(sites.n_layers), "sublayer": list(subs)}
    return xr.DataArray(v, dims=("emotion", "layer", "sublayer", "dim"), coords=coords)


def brute_force(model, prompts, directions, site, normed=False):
    """Importance ``[label of v, layer, head, prompt]`` by ablating one head after the other, and s(r) without ablation."""
    sublayer = "resid_post" if site == "attn_out" else "resid_mid"
    out, base = [], []
    for layer in range(model.sites.n_layers):
        v = directions.sel(layer=layer, sublayer=sublayer).values.astype(np.float64)

        def read(edits=None, layer=layer, v=v):
            acts = et.capture(model, prompts, [site], layers=[layer], edits=edits, progress=False)
            r = torch.from_numpy(acts.sel(layer=layer, sublayer=site).values)
            if normed:
                norm = model._module.get_submodule(model.sites.address("resid_mid", layer).mirror.path)
                with torch.no_grad():
                    r = norm(r.to(model._module.dtype)).float()
            scale = model.sites.scale if site == "attn_out" else 1.0
            return scale * v @ r.double().numpy().T

        s = read()
        base.append(s)
        heads = [
            s - read([et.Ablate("z", layers=[layer], heads=[h], positions="all")]) for h in range(model.sites.n_heads)
        ]
        out.append(heads)
    return np.moveaxis(np.array(out), 2, 0), np.stack(base, axis=1)


def summary(importance, base, prompts):
    """The literal definition of each variable of the Dataset."""
    of = np.array([p.labels["emotion"] for p in prompts])
    mean = np.array([importance[e, ..., of == name].mean(0) for e, name in enumerate(LABELS)])
    std = np.array([importance[e, ..., of == name].std(0) for e, name in enumerate(LABELS)])
    others = [
        np.mean([importance[e, ..., of == other].mean(0) for other in LABELS if other != name], axis=0)
        for e, name in enumerate(LABELS)
    ]
    baseline = np.array([base[e][:, of == name].mean(1) for e, name in enumerate(LABELS)])
    return {"mean": mean, "std": std, "contrast": mean - np.array(others), "baseline": baseline}


def assert_same(got, want, tolerance=2e-5):
    scale = max(np.abs(want["mean"]).max(), np.abs(want["baseline"]).max())
    for name, values in want.items():
        assert np.abs(got[name].values - values).max() <= tolerance * scale, name


@pytest.mark.parametrize("name", families(FAMILIES, "mixtral"))
def test_one_forward_is_zero_ablation_of_every_head(name):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    site = "attn_out" if name in PARALLEL else "resid_mid"
    got = head_contributions(model, prompts, directions, progress=False)
    importance, base = brute_force(model, prompts, directions, site)
    assert np.abs(importance).max() > 1e-2
    assert_same(got, summary(importance, base, prompts))
    assert got.attrs["readout_site"] == site
    assert got["mean"].dims == ("emotion", "layer", "head")
    assert got["n"].values.tolist() == [4, 4, 3]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite", "gpt-neox-sequential", "starcoder2"])
def test_the_normed_read_out_is_the_mlp_norm_after_zero_ablation(name):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    got = head_contributions(model, prompts, directions, head_readout="normed", progress=False)
    assert_same(got, summary(*brute_force(model, prompts, directions, "resid_mid", normed=True), prompts))
    residual = head_contributions(model, prompts, directions, progress=False)
    assert np.abs(got["mean"] - residual["mean"]).max() > 1e-2


@pytest.mark.parametrize("name", ["olmo2", "bert"])
def test_without_a_norm_before_the_mlp_both_read_outs_are_one(name):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    a, b = (
        head_contributions(model, prompts, directions, head_readout=r, progress=False) for r in ("residual", "normed")
    )
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())


def test_heads_and_bias_add_up_to_the_attention_output():
    model, prompts = loaded("gpt2"), some_prompts()
    directions = random_directions(model)
    got = head_contributions(model, prompts, directions, progress=False)
    acts = et.capture(model, prompts, ["attn_out"], progress=False)
    for name in LABELS:
        for layer in range(model.sites.n_layers):
            v = directions.sel(emotion=name, layer=layer, sublayer="resid_mid").values
            want = (acts.sel(emotion=name, layer=layer, sublayer="attn_out").values @ v).mean()
            bias = model._module.transformer.h[layer].attn.c_proj.bias.detach().numpy() @ v
            assert got["mean"].sel(emotion=name, layer=layer).sum().item() + bias == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("readout", ["residual", "normed"])
def test_a_large_norm_block_is_cut_without_a_trace(readout, monkeypatch):
    model, prompts = loaded("gemma2"), some_prompts()
    directions = random_directions(model)
    whole = head_contributions(model, prompts, directions, head_readout=readout, progress=False)
    monkeypatch.setattr("emotrace.traced.contributions.BLOCK_BYTES", 1)
    cut = head_contributions(model, prompts, directions, head_readout=readout, progress=False)
    np.testing.assert_allclose(cut["mean"], whole["mean"], atol=1e-6)


@given(batch_size=st.integers(1, 12), seed=st.integers(0, 3), readout=st.sampled_from(["residual", "normed"]))
def test_neither_batches_nor_padding_nor_order_matter(batch_size, seed, readout):
    model, prompts = loaded("llama"), some_prompts(seed=seed)
    directions = random_directions(model)
    whole = head_contributions(model, prompts, directions, head_readout=readout, progress=False)
    order = np.random.default_rng(seed).permutation(len(prompts))
    mixed = Prompts(prompts[int(i)] for i in order)
    other = head_contributions(model, mixed, directions, head_readout=readout, batch_size=batch_size, progress=False)
    for name in ("mean", "std", "contrast", "baseline"):
        np.testing.assert_allclose(other[name], whole[name], atol=1e-5)


def test_chunks_do_not_matter_and_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    model, prompts = loaded("llama"), some_prompts(n=90)
    directions = random_directions(model)
    whole = head_contributions(model, prompts, directions, progress=False)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1)  # chunks of 32
    alone = head_contributions(model, prompts, directions, progress=False)
    np.testing.assert_allclose(alone["mean"], whole["mean"], atol=1e-6)
    real, calls = reduce.prepared, []

    def dies_at_the_third(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(reduce, "prepared", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        head_contributions(model, prompts, directions, out=tmp_path, progress=False)
    resumed = head_contributions(model, prompts, directions, out=tmp_path, progress=False)
    assert calls == [32, 32, 26, 26]
    xr.testing.assert_identical(resumed, alone)
    again = head_contributions(model, prompts, directions, out=tmp_path, progress=False)
    assert len(calls) == 4
    xr.testing.assert_identical(again, alone)
    xr.testing.assert_identical(load_scores(tmp_path, "heads"), alone)
    with pytest.raises(EmotraceError, match="readout"):
        head_contributions(model, prompts, directions, out=tmp_path, head_readout="normed", progress=False)


def test_only_accepted_prompts_and_asked_layers():
    model, prompts = loaded("llama"), some_prompts()
    directions = random_directions(model)
    keys = [p.key for p in prompts if p.labels["skeleton_id"] != "s1"]
    got = head_contributions(model, prompts, directions, accepted=keys, layers=[2, 0], progress=False)
    want = head_contributions(
        model, Prompts(p for p in prompts if p.key in keys), directions.sel(layer=[0, 2]), progress=False
    )
    assert got["layer"].values.tolist() == [0, 2]
    assert got["n"].values.tolist() == [3, 3, 2]
    for name in ("mean", "std", "contrast", "baseline"):
        np.testing.assert_array_equal(got[name], want[name])


def test_directions_are_used_as_unit_vectors_and_matched_by_name():
    model, prompts = loaded("llama"), some_prompts()
    directions = random_directions(model)
    want = head_contributions(model, prompts, directions, progress=False)
    mixed = 3 * directions.isel(emotion=[2, 0, 1], layer=[1, 2, 0], sublayer=[1, 0]).transpose("dim", ...)
    got = head_contributions(model, prompts, mixed, progress=False)
    np.testing.assert_allclose(got["contrast"].sel(emotion=list(LABELS)), want["contrast"], rtol=1e-5, atol=1e-9)


def test_removing_a_positive_head_lowers_the_projection():
    model, prompts = loaded("llama"), some_prompts()
    directions = random_directions(model)
    got = head_contributions(model, prompts, directions, progress=False)["mean"].sel(emotion="anger")
    layer, head = (int(i) for i in np.unravel_index(int(got.values.argmax()), got.shape))
    mine = prompts.where(emotion="anger")
    v = directions.sel(emotion="anger", layer=layer, sublayer="resid_mid").values
    edit = et.Ablate("z", layers=[layer], heads=[head], positions="last")
    before, after = (
        (et.capture(model, mine, "resid_mid", layers=layer, edits=e, progress=False).residual.values @ v).mean()
        for e in (None, [edit])
    )
    assert before - after == pytest.approx(float(got.max()), rel=1e-4)
    assert after < before


def test_a_dry_run_says_what_would_be_done(tmp_path):
    model, prompts = loaded("llama"), some_prompts()
    dry = head_contributions.plan(model, prompts, random_directions(model), out=tmp_path)
    assert (dry.prompts, dry.rows, dry.row_groups) == (11, 11, 1)
    assert dry.bytes == 8 * 3 * 3 * (4 * 4 + 1)
    assert not list(tmp_path.iterdir())


def test_bfloat16_weights():
    module = tiny.build("llama").to(torch.bfloat16)
    model, prompts = et.load(module, tokenizer=tiny.tiny_tokenizer()), some_prompts()
    directions = random_directions(model)
    for readout in ("residual", "normed"):
        got = head_contributions(model, prompts, directions, head_readout=readout, progress=False)
        want = summary(*brute_force(model, prompts, directions, "resid_mid", normed=readout == "normed"), prompts)
        assert_same(got, want, tolerance=3e-2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"head_readout": "normd"}, "Did you mean 'normed'"),
        ({"label": "mood"}, "mood"),
        ({"layers": [7]}, "no layer 7"),
        ({"layers": slice(0, 2)}, "a slice; give integers"),
        ({"accepted": "p1"}, "a list of names"),
        ({"accepted": ["p1", "p4"]}, "has emotion 'anger'"),
        ({"directions": lambda d: d.sel(emotion=["anger", "fear"])}, "disgust"),
        ({"directions": lambda d: d.sel(sublayer=["resid_post"])}, "resid_mid"),
        ({"directions": lambda d: d.sel(sublayer="resid_post")}, "belong to 'resid_post'"),
        ({"directions": lambda d: d.isel(dim=slice(8))}, "wide"),
        ({"directions": lambda d: d * 0}, "norm zero"),
        ({"directions": lambda d: d.values}, "DataArray"),
        ({"directions": lambda d: d.sel(layer=[0]), "layers": [1]}, "layer of the directions"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(change, word, monkeypatch):
    model = loaded("llama")
    monkeypatch.setattr(reduce, "prepared", None)
    options = {k: v for k, v in change.items() if k != "directions"}
    directions = change.get("directions", lambda d: d)(random_directions(model))
    with pytest.raises(EmotraceError, match=word):
        head_contributions(model, some_prompts(), directions, **options)


def test_the_normed_read_out_of_a_parallel_model_is_refused():
    model = loaded("gpt-neox")
    with pytest.raises(EmotraceError, match="parallel"):
        head_contributions(model, some_prompts(), random_directions(model), head_readout="normed")
