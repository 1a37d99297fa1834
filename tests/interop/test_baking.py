"""Baked checkpoints: plain transformers does with them what emotrace's edits do."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import xarray as xr

import emotrace as et
from emotrace import circuits
from emotrace.interop import bake
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.testing import tiny
from tests.helpers import loaded

PROMPTS = [[11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33, 34, 35, 36, 37]]
STEPS = 8
SITES = ("z", "neuron", "o_proj_out", "attn_out", "mlp_out", "resid_mid", "resid_post")


def vector(model, site, size=1.0, seed=0):
    width = model.sites.address(site, 0).width
    return size * torch.randn(width, generator=torch.Generator().manual_seed(seed))


def greedy(folder, prompts):
    """Greedy replies of a checkpoint with nothing but transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    for ids in prompts:
        inputs = torch.tensor([ids])
        made = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=STEPS, pad_token_id=0
        )
        reply = made[0, len(ids) :].tolist()
        out.append(reply[: reply.index(2)] if 2 in reply else reply)
    return out


def replies(model, prompts, edits=None):
    rows = et.generate(model, prompts, edits, max_new_tokens=STEPS, progress=False)
    return [row["token_ids"] for row in rows]


def test_baked_llama_generates_as_the_edited_one(tmp_path):
    model = loaded("llama")
    before = {name: p.clone() for name, p in model._module.named_parameters()}
    edits = [
        et.Add("resid_post", layers=[0, 1], vector=vector(model, "resid_post"), strength=0.7, positions="all"),
        et.Add("z", layers=[2], vector=vector(model, "z", seed=1), heads=[1, 3], strength=2.0, positions="all"),
        et.Add("neuron", layers=[1], vector=torch.tensor([2.0, -3.0]), units=[5, 40], positions="all"),
        et.Add("attn_out", layers=[0], vector=vector(model, "attn_out", seed=2), positions="all"),
    ]
    out = bake(model, edits, tmp_path / "baked")
    wanted = replies(model, PROMPTS, edits)
    assert wanted != replies(model, PROMPTS)
    assert greedy(out, PROMPTS) == wanted
    config = json.loads((out / "config.json").read_text())
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)
    assert (out / "model.safetensors").is_file()
    assert transformers.AutoTokenizer.from_pretrained(out)("abc")["input_ids"] == model.tokenizer("abc")["input_ids"]
    told = json.loads((out / "emotrace" / "bake.json").read_text())
    assert told["settings"] == ["attention_bias", "mlp_bias"]
    assert told["largest_deviation_of_logits"] < 1e-5 < 0.1 < told["largest_change_of_logits"]
    assert told["from"]["weights_hash"] == model.sites.identity["weights_hash"]
    assert len(et.edits.load_edits(out / "emotrace")) == 4
    assert all(torch.equal(p, before[name]) for name, p in model._module.named_parameters())
    assert not model._module.config.attention_bias
    assert [p.name for p in tmp_path.iterdir()] == ["baked"]


def test_only_the_biases_meant_are_not_zero(tmp_path):
    model, delta = loaded("llama"), torch.arange(32.0)
    out = bake(model, [et.Add("mlp_out", layers=[1], vector=delta, strength=0.1, positions="all")], tmp_path / "b")
    baked = transformers.AutoModelForCausalLM.from_pretrained(out)
    state = {n: p for n, p in baked.named_parameters() if n.endswith(".bias")}
    assert len(state) == 9  # gate, up and down of three layers; attention is left as it was
    for name, bias in state.items():
        wanted = 0.1 * delta if name == "model.layers.1.mlp.down_proj.bias" else torch.zeros_like(bias)
        torch.testing.assert_close(bias.detach(), wanted)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["gpt2", "granite"])
def test_every_site_of_models_with_biases_and_scaled_residuals(tmp_path, name, site):
    """GPT-2: Conv1D with biases of its own; Granite: a residual scale of 0.22, and logits that it scales afterwards."""
    model = loaded(name)
    edits = [et.Add(site, layers=[0, 2], vector=vector(model, site, 0.5), positions="all")]
    out = bake(model, edits, tmp_path / "baked")
    assert greedy(out, PROMPTS) == replies(model, PROMPTS, edits)
    plain = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        change = (
            (plain(torch.tensor([PROMPTS[0]])).logits - model._module(torch.tensor([PROMPTS[0]])).logits).abs().max()
        )
    assert change > 0.005


def test_parallel_masked_and_low_precision_models(tmp_path):
    for name, site in (("gpt-neox", "resid_post"), ("bert", "mlp_out"), ("llama-tied", "resid_mid")):
        model = loaded(name)
        bake(model, [et.Add(site, layers=[1], vector=vector(model, site), positions="all")], tmp_path / name)
    masked = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "bert")
    assert type(masked).__name__ == "BertForMaskedLM"
    model = et.load(tiny.build("llama").to(torch.bfloat16), tokenizer=tiny.tiny_tokenizer())
    out = bake(model, [et.Add("z", layers=[1], vector=vector(model, "z"), positions="all")], tmp_path / "bf16")
    assert transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def test_a_circuit_is_baked_for_one_emotion(tmp_path):
    model = loaded("llama")
    rng = np.random.default_rng(0)
    coords = {"emotion": list(EMOTIONS), "layer": range(3)}
    payload = xr.Dataset(
        {
            "z": (("emotion", "layer", "head", "head_dim"), rng.standard_normal((6, 3, 4, 8)).astype(np.float32)),
            "neuron": (("emotion", "layer", "unit"), 3 * rng.standard_normal((6, 3, 48)).astype(np.float32)),
        },
        coords,
    )
    rows = [(e, kind, 1, n, 0, 1.0) for n, e in enumerate(EMOTIONS) for kind in ("neuron", "head") if n < 4]
    table = pd.DataFrame(rows, columns=["emotion", "kind", "layer", "index", "rank", "score"])
    edits = circuits.Circuit(table, payload).edits(2.0, neuron_positions="all", head_positions="all")
    with pytest.raises(EmotraceError, match=r"one per emotion; select one: vector.sel\(emotion='anger'\)"):
        bake(model, edits, tmp_path / "x")
    edits = [replace(e, vector=e.vector.sel(emotion="fear")) for e in edits]
    out = bake(model, edits, tmp_path / "fear")
    assert greedy(out, PROMPTS) == replies(model, PROMPTS, edits)


ADD = {"layers": [1], "vector": torch.ones(32), "positions": "all"}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (et.Add("resid_post", layers=[1], vector=torch.ones(32)), "acts on every token.*positions='all'"),
        (et.Add("resid_post", layers=[1], vector=torch.ones(32), positions=(0, 4)), "acts on every token"),
        (et.Add("resid_post", **ADD, scale="rms"), "depends on the state.*mean_rms"),
        (et.Add("resid_post", **ADD, scale="unit"), "Use scale='raw'"),
        (et.Ablate("neuron", layers=[1], positions="all"), "Ablate cannot be baked; only Add"),
        (et.Scale("mlp_out", layers=[1], strength=0.5, positions="all"), "Scale cannot be baked"),
        (et.Project("mlp_out", layers=[1], vector=torch.ones(32), positions="all"), "Project cannot be baked"),
        (et.Add("resid_pre", **ADD), "is no bias of a projection; choose among"),
        (
            et.Add(et.Site("model.layers.1.mlp"), vector=torch.ones(32), positions="all"),
            r"model\.layers\.1\.mlp:output",
        ),
        (et.Add("resid_post", layers=[7], vector=torch.ones(32), positions="all"), "no layer 7"),
    ],
)
def test_what_a_bias_cannot_do_is_refused_with_the_reason(tmp_path, edit, words):
    with pytest.raises(EmotraceError, match=words):
        bake(loaded("llama"), [edit], tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "site", "words"),
    [
        ("qwen2", "z", r"self_attn\.o_proj has no bias, and Qwen2Config cannot give it one"),
        ("gemma", "neuron", "its settings attention_bias do not"),
        ("gemma2", "resid_post", "normalises the projection's output before 'resid_post'.*lies 'neuron'"),
        ("gemma2", "attn_out", "normalises.*'z' \\(and o_proj_out\\)"),
        ("bert", "resid_post", "post-LN.*'mlp_out'"),
        ("mixtral", "mlp_out", "no site 'neuron'"),
    ],
)
def test_families_that_cannot_hold_it_say_why(tmp_path, name, site, words):
    model = loaded(name)
    with pytest.raises(EmotraceError, match=words):
        bake(model, [et.Add(site, layers=[1], vector=vector(model, site), positions="all")], tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_deviates_leaves_nothing_behind(tmp_path, monkeypatch):
    """The comparison is with the edited model itself, so an error of ours anywhere before it shows."""
    module = importlib.import_module("emotrace.interop.baking")
    good = module.output_projection

    def wrong(*a):
        found = good(*a)
        found.scale = 1.01
        return found

    monkeypatch.setattr(module, "output_projection", wrong)
    model = loaded("llama")
    with pytest.raises(EmotraceError, match="logits deviate"):
        bake(model, [et.Add("resid_post", **ADD)], tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_bad_calls(tmp_path):
    model = loaded("llama")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(EmotraceError, match="exists already"):
        bake(model, [et.Add("resid_post", **ADD)], tmp_path / "used")
    with pytest.raises(EmotraceError, match="no edits"):
        bake(model, [], tmp_path / "x")
    with pytest.raises(EmotraceError, match="width 32"):
        bake(model, [et.Add("resid_post", layers=[1], vector=torch.ones(3), positions="all")], tmp_path / "x")
    (tmp_path / "empty").mkdir()
    assert bake(model, [et.Add("resid_post", **ADD)], tmp_path / "empty", probe=["a b c"]) == tmp_path / "empty"
    told = json.loads((tmp_path / "empty" / "emotrace" / "bake.json").read_text())
    assert told["probe_tokens"] == model.sites.encoder.ids(et.datasets.Prompts.of(["a b c"]))
