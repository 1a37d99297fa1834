"""What a layer has is the layer's own, and a place is called by what it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import emotrace as et
from emotrace import configs
from emotrace.labels import EmotraceError
from emotrace.sites import find
from emotrace.sites.heads import carried, parts
from emotrace.sites.twin import randomise
from emotrace.testing import tiny

pytestmark = pytest.mark.usefixtures("anew")

GQA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HYBRID = {
    **GQA, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
ZAMBA = {**GQA, "mamba_d_state": 8, "n_mamba_heads": 4, "layers_block_type": ["mamba", "hybrid"] * 2}


def build(name: str, **settings):
    cls = getattr(transformers, name)
    base = {"vocab_size": tiny.VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    module = cls._from_config(cls.config_class(**base, **settings), dtype=torch.float32)
    randomise(module)
    return module.eval()


@pytest.fixture(scope="module")
def hybrid():
    return build("Qwen3_5ForCausalLM", **HYBRID, linear_num_value_heads=8, head_dim=16)


def test_heads_are_those_of_each_layer(hybrid):
    sites = find(hybrid)
    assert [sites.heads(i) for i in range(4)] == [8, 4, 8, 4]
    assert sites.size("z", 0) == {"head": 8, "head_dim": 8}
    assert sites.size("z", [1, 3]) == {"head": 4, "head_dim": 16}
    with pytest.raises(EmotraceError, match=r"differ in 'z'.*layers=\[0, 2\] or layers=\[1, 3\]"):
        sites.size("z")
    assert sites.head_dim is None
    assert "head 8 × head_dim 8 (layers 0, 2)" in sites.table().set_index("site").loc["z", "shape"]


def test_a_head_of_linear_attention_is_cut_as_by_a_hook(hybrid):
    model, ids = et.load(hybrid, tokenizer=tiny.tiny_tokenizer()), [11, 12, 13, 14]

    def hook(module, args):
        value = args[0].clone()
        value[..., 40:48] = 0
        return (value,)

    handle = hybrid.model.layers[2].linear_attn.out_proj.register_forward_pre_hook(hook)
    with torch.no_grad():
        want = hybrid(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    edit = et.Ablate("z", layers=2, heads=[np.int64(5)], positions="all")
    acts = et.capture(model, [ids], "logits", positions="last", edits=[edit], progress=False)
    assert np.allclose(acts["logits"].values.ravel(), want, atol=1e-4)
    with pytest.raises(EmotraceError, match="no head 4; layer 1 of the model has heads 0 to 3"):
        et.capture(model, [ids], "logits", edits=[et.Ablate("z", layers=[1], heads=[4])], progress=False)
    with pytest.raises(EmotraceError, match=r"layers=\[1, 3\]"):
        et.capture(model, [ids], "z", progress=False)
    part = et.capture(model, [ids], "z", layers=[1, 3], positions="last", progress=False)
    assert part["z"].sizes["head"] == 4


def test_heads_that_nothing_shows_are_refused():
    sites = find(
        build("DiffLlamaForCausalLM", **GQA | {"num_attention_heads": 8})
    )  # two softmax heads make one part of z
    with pytest.raises(EmotraceError, match="heads of layer 1 of DiffLlamaForCausalLM are not known"):
        sites.heads(1)


def test_one_tensor_is_not_two_branches():
    model = build("Zamba2ForCausalLM", **ZAMBA)
    sites = find(model)
    assert sites.form == "stream"
    assert sites.layers("resid_post") == (0, 1, 2, 3)
    assert not {"attn_out", "mlp_out", "z", "neuron"} & set(sites.names)
    with pytest.raises(EmotraceError, match=r"no site 'attn_out' \(its layers were not shown to add"):
        sites.address("attn_out", 1)


def test_a_convolution_in_the_place_of_the_mlp_is_no_mlp():
    model = build("LlamaForCausalLM", **GQA)

    class Mixes(torch.nn.Module):
        def forward(self, x):
            return x + x.roll(1, dims=1)

    for layer in model.model.layers:
        layer.mlp = Mixes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emotrace.sites.twin.LARGEST", 0)  # the twin would have the MLP of its class
        sites = find(model)
    assert sites.form == "stream"
    assert "does not follow its own token alone" in sites.unproven[0]


def test_a_norm_over_all_heads_leaves_them_unknown():
    moved = torch.ones(6, 8, dtype=torch.bool)
    assert parts(moved) == 1
    assert parts(torch.eye(8, dtype=torch.bool)) == 0
    blocks = torch.block_diag(*[torch.ones(2, 2)] * 4).bool()
    assert parts(blocks) == 4
    assert parts(blocks[:4]) == 0
    assert parts(torch.cat([blocks, torch.block_diag(*[torch.ones(4, 4)] * 2).bool()])) == 4


def test_heads_are_carried_by_the_names_that_say_them():
    twin = {"attn.head_dim": 16, "attn.num_key_value_groups": 4, "config.num_attention_heads": 4}
    real = {"attn.head_dim": 128, "attn.num_key_value_groups": 4, "config.num_attention_heads": 32}
    assert carried(twin, real, 4, 64, 4096) == 32
    assert carried({}, {}, 4, 64, 4096) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(EmotraceError, match=r"model\.layers\.1\.mlp\.up_proj\.weight' are not finite"):
        find(model)


def test_activations_that_are_not_finite_name_site_and_layer():
    model = tiny.build("llama")
    model.model.layers[1].self_attn.register_forward_hook(lambda m, a, o: (o[0] * float("inf"), *o[1:]))
    with pytest.raises(EmotraceError, match="attn_out of layer 1 are not finite"):
        find(model)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
     ("FNetForMaskedLM", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2})],
)  # fmt: skip
def test_models_without_attention_are_refused(name, settings):
    with pytest.raises(EmotraceError, match="has no attention module") as refusal:
        find(build(name, **settings))
    assert len(str(refusal.value)) < 300


def test_layers_of_their_own_configuration():
    settings = {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 0, "sliding_window": 4}
    model = build("Gemma4ForCausalLM", **GQA, **settings, layer_types=["sliding_attention", "full_attention"] * 2)
    sites = find(model)
    assert [sites.size("z", i)["head_dim"] for i in range(4)] == [16, 32, 16, 32]
    config = configs.text_config(model.config)
    assert configs.number(config, "head_dim") is None
    assert (configs.number(config, "head_dim", 0), configs.number(config, "head_dim", 1)) == (16, 32)


def test_what_is_no_model_of_token_ids_is_refused():
    sizes = {"num_latents": 4, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 2}
    heads = {"num_self_attention_heads": 4, "num_cross_attention_heads": 4}
    with pytest.raises(EmotraceError, match="no input embedding of one vocabulary"):
        find(build("PerceiverForMaskedLM", **sizes, **heads))


def test_a_site_that_the_weights_do_not_confirm_says_why():
    model = tiny.build("llama")
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(
        EmotraceError, match=r"layer 0 .* has no site 'neuron'.*holds on the twin but not on the weights"
    ):
        find(model).address("neuron", 0)


@pytest.mark.parametrize(("part", "site"), [("LlamaAttention", "z"), ("LlamaMLP", "neuron")])
def test_a_branch_that_is_not_its_projection_has_no_heads_or_neurons(monkeypatch, part, site):
    """Half of what the projection returns: W·z would be twice what joins the residual stream."""
    cls = getattr(transformers.models.llama.modeling_llama, part)
    whole = cls.forward

    def half(self, *args, **kwargs):
        out = whole(self, *args, **kwargs)
        return (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5

    monkeypatch.setattr(cls, "forward", half)
    sites = find(build("LlamaForCausalLM", **GQA))
    assert sites.has("attn_out")
    assert sites.has("mlp_out")
    assert not sites.has(site)
