"""Finding: right paths, refusals, and proofs that can fail."""

from __future__ import annotations

import pytest
import torch
import transformers

from emotrace.labels import EmotraceError
from emotrace.sites import find, twin
from emotrace.sites.equations import confirm
from emotrace.sites.finding import record_ids
from emotrace.testing import tiny

KNOWN = {
    "llama": {
        "embed": ("model.embed_tokens", "output"),
        "z": ("model.layers.1.self_attn.o_proj", "input"),
        "o_proj_out": ("model.layers.1.self_attn.o_proj", "output"),
        "attn_out": ("model.layers.1.self_attn", "output"),
        "neuron_pre": ("model.layers.1.mlp.act_fn", "input"),
        "neuron": ("model.layers.1.mlp.down_proj", "input"),
        "mlp_out": ("model.layers.1.mlp", "output"),
        "resid_post": ("model.layers.1", "output"),
        "final_norm": ("model.norm", "output"),
        "logits": ("lm_head", "output"),
    },
    "gemma2": {
        "attn_out": ("model.layers.1.post_attention_layernorm", "output"),
        "o_proj_out": ("model.layers.1.self_attn.o_proj", "output"),
        "mlp_out": ("model.layers.1.post_feedforward_layernorm", "output"),
    },
    "olmo2": {"attn_out": ("model.layers.1.post_attention_layernorm", "output")},
    "gpt2": {
        "z": ("transformer.h.1.attn.c_proj", "input"),
        "neuron": ("transformer.h.1.mlp.c_proj", "input"),
        "neuron_pre": ("transformer.h.1.mlp.act", "input"),
        "final_norm": ("transformer.ln_f", "output"),
    },
    "opt": {"neuron": ("model.decoder.layers.1.fc2", "input"), "mlp_out": ("model.decoder.layers.1.fc2", "output")},
    "bloom": {
        "attn_out": ("transformer.h.1.self_attention.dense", "output"),
        "mlp_out": ("transformer.h.1.mlp.dense_4h_to_h", "output"),
    },
    "phi3": {"neuron_pre": ("model.layers.1.mlp.activation_fn", "input")},
    "bert": {
        "z": ("bert.encoder.layer.1.attention.output.dense", "input"),
        "attn_out": ("bert.encoder.layer.1.attention.output.dense", "output"),
        "resid_mid": ("bert.encoder.layer.1.attention.output.LayerNorm", "output"),
        "neuron": ("bert.encoder.layer.1.output.dense", "input"),
        "mlp_out": ("bert.encoder.layer.1.output.dense", "output"),
        "logits": ("cls.predictions.decoder", "output"),
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_paths(name):
    sites = find(tiny.build(name))
    for site, (path, side) in KNOWN[name].items():
        address = sites.address(site, 1 if ".1" in path else None)
        assert (address.path, address.side) == (path, side)


def test_resid_mid_is_the_next_norms_input_at_the_attentions_output():
    address = find(tiny.build("llama")).address("resid_mid", 1)
    assert (address.kind, address.path) == ("mid", "model.layers.1.self_attn")
    assert address.mirror is not None
    assert (address.mirror.path, address.mirror.side) == ("model.layers.1.post_attention_layernorm", "input")
    assert address.base is not None
    assert address.base.site == "resid_pre"


@pytest.mark.parametrize(
    ("name", "first", "kind"),
    [
        ("llama", "model.embed_tokens", "base"),
        ("gpt2", "transformer.drop", "base"),
        ("gpt-neox", "gpt_neox.emb_dropout", "plain"),
        ("opt", "model.decoder.embed_positions", "mid"),
        ("granite", "model.embed_tokens", "scaled"),
    ],
)
def test_what_a_layer_is_given_is_the_output_before_it(name, first, kind):
    sites = find(tiny.build(name))
    pre = [sites.address("resid_pre", layer) for layer in (0, 1)]
    assert (pre[0].path, pre[0].side, pre[0].kind) == (first, "output", kind)
    assert (pre[1].path, pre[1].side) == (sites.address("resid_post", 0).path, "output")
    assert pre[1].order > sites.address("resid_post", 0).order
    assert sites.address("resid_post", 1).path in sites.cached  # what comes with its input is left alone
    assert not {pre[0].path, pre[1].base and pre[1].base.path} & sites.cached


def test_sizes_of_heads_come_from_z():
    sites = find(tiny.build("qwen3"))  # head_dim 16 with d_model 32 and 4 heads
    assert (sites.n_heads, sites.n_kv_heads, sites.head_dim, sites.d_model, sites.d_ff) == (4, 2, 16, 32, 48)
    assert sites.vocab_size == 160
    assert sites.size("z") == {"head": 4, "head_dim": 16}
    assert sites.size("neuron") == {"unit": 48}
    assert sites.size("resid_post") == {"dim": 32}
    assert find(tiny.build("falcon")).n_kv_heads == 1
    assert find(tiny.build("falcon-new")).n_kv_heads == 2


def test_a_layer_whose_residual_does_not_close_has_no_sites():
    model = tiny.build("llama")
    model.model.layers[1].register_forward_hook(lambda module, args, output: 2 * output)
    sites = find(model)
    assert sites.layers("resid_post") == (0, 2)
    assert list(sites.unproven) == [1]
    assert "closes" in sites.unproven[1]
    with pytest.raises(EmotraceError, match=r"layer 1 of LlamaForCausalLM has no site 'z': it exists in layers 0, 2"):
        sites.address("z", 1)


def test_a_projection_that_is_not_a_matrix_product_is_no_site():
    model = tiny.build("llama")
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, output: 2 * output)
    model.model.layers[2].self_attn.o_proj.register_forward_hook(lambda module, args, output: 2 * output)
    sites = find(model)
    assert sites.layers("neuron") == (1, 2)
    assert sites.layers("z") == (0, 1)
    assert sites.layers("mlp_out") == sites.layers("resid_mid") == (0, 1, 2)


def test_an_activation_that_does_not_make_the_neurons_is_no_site():
    model = tiny.build("gpt2")
    model.transformer.h[1].mlp.act.register_forward_hook(lambda module, args, output: 2 * output)
    model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    sites = find(model)
    assert sites.layers("neuron_pre") == (0, 2)
    assert sites.layers("neuron") == (0, 1, 2)


def test_no_layer_that_closes_is_refused():
    model = tiny.build("llama")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(
        EmotraceError, match=r"LlamaForCausalLM: the residual closes on the twin but not on the weights"
    ):
        find(model)


def test_a_shared_layer_is_refused():
    config = transformers.AlbertConfig(
        vocab_size=160, embedding_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4,
    )  # fmt: skip
    with pytest.raises(EmotraceError, match="AlbertForMaskedLM: found no list of 3 layers"):
        find(transformers.AlbertForMaskedLM(config).eval())


def test_falcons_mlp_output_is_known_to_be_overwritten():
    sites = find(tiny.build("falcon"))
    assert sites.address("mlp_out", 0).overwritten
    assert not sites.address("attn_out", 0).overwritten
    assert not any(
        a.overwritten for by_layer in find(tiny.build("llama")).addresses.values() for a in by_layer.values()
    )


def test_finding_leaves_the_model_as_it_was():
    model = tiny.build("gpt2").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    find(model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_twin_has_all_layers_at_a_cost_that_does_not_depend_on_the_width():
    with torch.device("meta"):
        wide = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=5))
    small, recording, _ = twin.shrunken(wide, record_ids)
    assert small is not None
    assert recording is not None
    assert len(small.model.layers) == 5
    assert {n for n, _ in small.named_modules()} == {n for n, _ in wide.named_modules()}
    assert sum(p.numel() for p in small.parameters()) < 500_000
    sites = find(wide)
    assert (sites.d_model, sites.d_ff, sites.head_dim) == (4096, 11008, 128)
    assert sites.address("logits").width == sites.vocab_size == 32_000


def test_rotary_dimensions_that_do_not_fit_a_narrow_head():
    config = transformers.PhiConfig(
        vocab_size=160, hidden_size=80, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1,
        partial_rotary_factor=0.4,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.PhiForCausalLM(config)
    assert find(model).head_dim == 80


def test_where_no_twin_runs_the_weights_prove_themselves(monkeypatch):
    monkeypatch.setattr(twin, "LARGEST", 0)
    model = tiny.build("llama")
    assert twin.shrunken(model, record_ids)[2].endswith("parameters")
    assert find(model).layers("resid_mid") == (0, 1, 2)
    with torch.device("meta"):
        hollow = type(model)(model.config)
    with pytest.raises(EmotraceError, match=r"no shrunken twin can be built.*Load it with weights"):
        find(hollow)


def test_a_site_without_an_equation_of_its_own_is_refused():
    model = tiny.build("llama")
    sites = find(model)
    proof = sites.proofs[1]
    proof.sites["mlp_in"] = proof.sites["resid_pre"]
    with pytest.raises(EmotraceError, match=r"unknown site 'mlp_in' in the equations of sites"):
        confirm(record_ids(model), proof)


def test_weights_that_disagree_with_the_twin_are_proven_alone():
    model = tiny.build("granite")
    for layer in model.model.layers:
        layer.residual_multiplier = 0.5
    sites = find(model)
    assert sites.scale == 0.5
    assert sites.layers("resid_mid") == (0, 1, 2)
