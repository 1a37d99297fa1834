"""Reading and writing inside a trace, where order, aliasing and shapes could go wrong."""

from __future__ import annotations

import functools

import nnsight
import pytest
import torch

from emotrace.labels import EmotraceError
from emotrace.model import load
from emotrace.sites import Site
from emotrace.testing import hooks, tiny

pytestmark = pytest.mark.usefixtures("anew")


@functools.cache
def loaded(name: str):
    return load(tiny.build(name, attn_implementation="eager"), tokenizer=tiny.tiny_tokenizer())


@functools.cache
def truth(name: str):
    return hooks.recorded(loaded(name), hooks.forward_inputs(loaded(name), batch(name)))


def batch(name: str):
    return tiny.batch(loaded(name)._module)


@pytest.mark.parametrize("name", ["llama", "granite", "opt", "bloom", "bert"])
def test_resid_mid_after_z(name):
    model = loaded(name)
    with torch.no_grad(), model.trace(batch(name)):
        z = nnsight.save(model.sites.read("z", 1))
        mid = nnsight.save(model.sites.read("resid_mid", 1))
        neuron = nnsight.save(model.sites.read("neuron", 1))
    for site, value in (("z", z), ("resid_mid", mid), ("neuron", neuron)):
        assert torch.equal(value, truth(name)[site, 1])


def test_resid_mid_cannot_be_written_once_resid_pre_is_gone():
    model = loaded("llama")
    value = truth("llama")["resid_mid", 1]

    def late() -> None:
        with torch.no_grad(), model.trace(batch("llama")):
            model.sites.read("z", 1)
            model.sites.write("resid_mid", value, 1)

    with pytest.raises(EmotraceError, match="ran past resid_pre"):
        late()


@pytest.mark.parametrize("name", ["llama", "granite", "opt"])
def test_resid_mid_follows_an_edit_of_resid_pre(name):
    model, before = loaded(name), truth(name)
    new = before["resid_pre", 1] + 1
    with torch.no_grad(), model.trace(batch(name)):
        model.sites.write("resid_pre", new, 1)
        mid = nnsight.save(model.sites.read("resid_mid", 1))
        attn_out = nnsight.save(model.sites.read("attn_out", 1))
    scale = model.sites.address("resid_mid", 1).scale
    torch.testing.assert_close(mid, new + scale * attn_out)


def test_every_layer_can_be_edited_in_one_trace():
    model = loaded("llama")
    v = torch.randn(32)
    with torch.no_grad(), model.trace(batch("llama")) as tracer:
        for layer in model.sites.layers("resid_mid"):
            model.sites.write("resid_mid", model.sites.read("resid_mid", layer) + v, layer)
        got = nnsight.save(tracer.result.logits)
    handles = [
        layer.self_attn.register_forward_hook(lambda module, args, output: (output[0] + v, *output[1:]))
        for layer in model._module.model.layers
    ]
    want = hooks.forward(model, hooks.forward_inputs(model, batch("llama")))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(got, want)


def test_resid_mid_at_every_generated_token():
    model = loaded("granite")
    v = 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    prompt = {"input_ids": torch.tensor([[1, 20, 30]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), model.generate(prompt, **options) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:4]:
            value = model.sites.read("resid_mid", 1)
            seen.append(value)
            model.sites.write("resid_mid", value + v, 1)
        ids = nnsight.save(tracer.result)
    assert [tuple(x.shape) for x in seen] == [(1, 3, 32)] + [(1, 1, 32)] * 3
    attention = model._module.model.layers[1].self_attn
    handle = attention.register_forward_hook(lambda module, args, output: (output[0] + v / 0.22, *output[1:]))
    with torch.no_grad():
        want = model._module.generate(**prompt, **options)
    handle.remove()
    assert torch.equal(ids, want)
    with torch.no_grad():
        assert not torch.equal(want, model._module.generate(**prompt, **options))


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_a_write_does_not_use_the_resid_pre_of_an_earlier_token(name):
    model = loaded(name)
    prompt = {"input_ids": torch.tensor([[1, 20]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    target = torch.arange(32.0).expand(1, 1, 32)
    with torch.no_grad(), model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        seen = nnsight.save([])
        for step in tracer.iter[:3]:
            if step == 0:
                model.sites.read("resid_mid", 1)
            else:
                model.sites.write("resid_mid", target, 1)
                seen.append(model.model.layers[1].post_attention_layernorm.input)
    assert len(seen) == 2
    for value in seen:
        torch.testing.assert_close(value, target)


def test_a_model_that_flattens_its_tokens_in_generation():
    model = loaded("opt")
    prompts = tiny.batch(model._module)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), model.generate(prompts, **options) as tracer:
        shapes = nnsight.save([])
        for _ in tracer.iter[:3]:
            value = model.sites.read("neuron", 1)
            shapes.append(tuple(value.shape))
            model.sites.write("neuron", torch.zeros_like(value), 1)
        ids = nnsight.save(tracer.result)
    assert shapes == [(2, 7, 48), (2, 1, 48), (2, 1, 48)]
    handle = model._module.model.decoder.layers[1].fc2.register_forward_pre_hook(lambda m, args: (0 * args[0],))
    with torch.no_grad():
        want = model._module.generate(**prompts, **options)
    handle.remove()
    assert torch.equal(ids, want)


def test_a_tensor_that_the_model_overwrites_stays_what_it_was():
    model = loaded("falcon")
    with torch.no_grad(), model.trace(batch("falcon")):
        value = nnsight.save(model.sites.read("mlp_out", 1))
    assert torch.equal(value, truth("falcon")["mlp_out", 1])
    written = value.clone()
    with torch.no_grad(), model.trace(batch("falcon")):
        model.sites.write("mlp_out", written, 1)
    assert torch.equal(written, value), "the model changed the user's own tensor"


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_gradients_reach_what_was_read(name):
    model = loaded(name)
    with model.trace(batch(name)) as tracer:
        h = model.sites.read("mlp_out", 1)
        loss = tracer.result.logits.square().sum()
        gradients = nnsight.save(list(torch.autograd.grad(loss, [h])))
    (gradient,) = gradients
    assert gradient.shape == (2, 7, 32)
    assert float(gradient.abs().max()) > 0


def test_one_vector_stands_for_all_tokens():
    model = loaded("llama")
    v = torch.arange(32.0)
    with torch.no_grad(), model.trace(batch("llama")):
        model.sites.write("resid_post", v, 0)
        after = nnsight.save(model.sites.read("resid_pre", 1))
    assert torch.equal(after, v.expand(2, 7, 32))


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_value_of_another_shape_is_refused(name):
    model = loaded(name)
    with (
        pytest.raises(EmotraceError, match=r"'neuron', layer=1.*cannot be written"),
        torch.no_grad(),
        model.trace(batch(name)),
    ):
        model.sites.write("neuron", torch.zeros(2, 7, 47), 1)
    with torch.no_grad(), model.trace(batch(name)):  # the model works after a refusal
        z = nnsight.save(model.sites.read("z", 0))
    assert torch.equal(z, truth(name)["z", 0])


def test_outside_a_trace_nothing_can_be_read():
    sites = loaded("bert").sites
    with pytest.raises(EmotraceError, match=r"read\('resid_post', layer=0\) is for the inside of a trace"):
        sites.read("resid_post", layer=0)


def test_refusals_of_places_of_the_users_own():
    sites = loaded("bert").sites
    with pytest.raises(EmotraceError, match=r"side='middle'.*'input' or 'output'"):
        Site("bert.encoder", side="middle")  # type: ignore[arg-type]
    with pytest.raises(EmotraceError, match=r"no module 'bert.encodr'.*Did you mean 'bert.encoder'"):
        sites.resolve(Site("bert.encodr"))
    with pytest.raises(EmotraceError, match="is a list of modules"):
        sites.resolve(Site("bert.encoder.layer"))
    with pytest.raises(EmotraceError, match="layer=2 does not apply"):
        sites.resolve(Site("bert.encoder"), 2)
    with pytest.raises(EmotraceError, match="has no element 7"), loaded("bert").trace(batch("bert")):
        sites.read(Site("bert.encoder.layer.0.attention", index=7))
    assert sites.resolve(Site("bert.encoder.layer.0.output.dense")).path.endswith("output.dense")


def test_a_place_without_a_tensor_is_refused():
    model = load(tiny.build("llama", attn_implementation="sdpa"), tokenizer=tiny.tiny_tokenizer())
    place = Site("model.layers.0.self_attn", index=1)
    with pytest.raises(EmotraceError, match="holds no tensor but a NoneType"), model.trace(batch("llama")):
        model.sites.read(place)


def test_what_is_asked_wrongly_is_refused():
    sites = loaded("llama").sites
    with pytest.raises(EmotraceError, match=r"unknown site 'resid_pots'.*Did you mean 'resid_post'"):
        sites.address("resid_pots", 0)
    with pytest.raises(EmotraceError, match="no layer 3 for site 'z': layers are 0 to 2"):
        sites.address("z", 3)
    with pytest.raises(EmotraceError, match="no layer -1"):
        sites.address("z", -1)
    with pytest.raises(EmotraceError, match="needs a layer"):
        sites.address("z")
    with pytest.raises(EmotraceError, match="belongs to the whole model"):
        sites.address("logits", 0)
    with pytest.raises(
        EmotraceError, match=r"FalconForCausalLM has no site 'resid_mid'.*parallel.*closest is 'attn_out'"
    ):
        loaded("falcon").sites.address("resid_mid", 0)
    with pytest.raises(EmotraceError, match=r"Mixtral.*no site 'neuron'.*mixtures of experts.*closest is 'mlp_out'"):
        loaded("mixtral").sites.address("neuron", 0)
    with pytest.raises(EmotraceError, match=r"layer 2 of Deepseek.*no site 'neuron': it exists in layers 0\..*mlp_out"):
        loaded("deepseek-v3").sites.address("neuron", 2)


def test_sites_without_a_model_say_so():
    from emotrace.sites import find

    with pytest.raises(EmotraceError, match="not attached to a model"):
        find(tiny.build("llama")).place("z", 0)


def test_the_table_shows_path_shape_and_error():
    table = loaded("deepseek-v3").sites.table().set_index("site")
    assert table.loc["neuron", "layers"] == "0"
    assert table.loc["z", "layers"] == "0–2"
    assert table.loc["z", "shape"] == "head 4 × head_dim 8"
    assert table.loc["logits", "layers"] == "–"
    assert table.loc["attn_out", "side"] == "output[0]"
    assert not table.loc["attn_pattern", "writable"]
    assert (table["error"] < 1e-5).all()
    sites = loaded("llama").sites
    assert "sequential" in sites.describe()
    assert sites.describe() in str(sites)
    assert "resid_mid" in str(sites)
    assert len(repr(sites)) < 200
    assert "residual scale 0.22" in loaded("granite").sites.describe()
