"""Loading: everything that can be given, and everything that is refused."""

from __future__ import annotations

import json
import pickle
import threading

import nnsight
import pytest
import torch
import transformers
from nnsight import TransformersModel

from emotrace import traced
from emotrace.forwards.capturing import capture
from emotrace.forwards.entering import locked
from emotrace.forwards.generation import generate
from emotrace.identity import identity
from emotrace.labels import EmotraceError
from emotrace.model import load
from emotrace.testing import conformance, hooks, tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.save("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


def config_only(path, **settings):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    return path


# -- what can be given --------------------------------------------------------------------------------------------


def test_a_directory_is_nnsights_own_model_with_sites(directory):
    model = load(directory)
    assert type(model) is TransformersModel
    assert not model._module.training
    assert model.sites.form == "sequential"
    assert model.sites.identity["model_id"] == "tiny-llama"
    assert model.sites.identity["dtype"] == "float32"
    assert (model.sites.encode(["Hello", "Hello there"])["attention_mask"] == 0).any()
    conformance.check(model)


def test_a_model_object_has_the_places_and_the_logits_of_the_directory(directory):
    module = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model, other = load(module, tokenizer=str(directory)), load(directory)
    assert model._module is module
    with torch.no_grad(), model.trace(model.sites.encode("Hello")) as tracer:
        a = nnsight.save(tracer.result.logits)
    with torch.no_grad(), other.trace(other.sites.encode("Hello")) as tracer:
        b = nnsight.save(tracer.result.logits)
    assert torch.equal(a, b)
    assert model.sites.identity["weights_hash"] == other.sites.identity["weights_hash"]
    assert model.sites.identity["config_hash"] == other.sites.identity["config_hash"]


def test_an_nnsight_model_is_used_as_it_is(directory):
    mine = TransformersModel(str(directory), task="text-generation", dispatch=True)
    model = load(mine)
    assert model is mine
    assert model.sites.encoder.tokenizer is mine.tokenizer
    conformance.check_order(model, tiny.batch(model._module))


def test_an_nnsight_model_without_weights_has_sites(directory):
    mine = TransformersModel(str(directory), task="text-generation", tokenizer=tiny.tiny_tokenizer())
    model = load(mine)
    assert all(p.is_meta for p in model._module.parameters())
    assert model.sites.layers("resid_mid") == (0, 1, 2)
    assert model.sites.d_ff == 48


def test_a_model_can_be_loaded_twice(directory):
    model = load(directory)
    sites = model.sites
    again = load(model)
    assert again is model
    assert again.sites == sites
    assert again.sites.identity["weights_hash"] == sites.identity["weights_hash"]


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert"])
def test_masked_models(name, tmp_path):
    model = load(tiny.save(name, tmp_path / name))
    assert "MaskedLM" in type(model._module).__name__
    batch = model.sites.encode([{"text": "I am <mask>."}, {"text": "so"}])
    assert batch["attention_mask"][1, -1] == 0, "encoders are padded on the right"
    conformance.check_order(model, batch)


def test_the_loaded_dtype(tmp_path):
    module = tiny.build("llama").bfloat16()
    module.save_pretrained(tmp_path)
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).sites.identity["dtype"] == "float32", "on a CPU the default is float32"
    assert load(tmp_path, dtype="bfloat16")._module.dtype == torch.bfloat16
    assert load(tmp_path, dtype=torch.float16)._module.dtype == torch.float16
    assert load(tmp_path, dtype="auto")._module.dtype == torch.bfloat16


def test_the_attention_implementation(directory):
    assert not load(directory, attn_implementation="sdpa").sites.has("attn_pattern")
    eager = load(directory, attn_implementation="eager")
    assert eager.sites.has("attn_pattern")
    assert eager.sites.identity["attn_implementation"] == "eager"


def test_a_model_without_a_tokenizer_takes_ids_only():
    model = load(tiny.build("llama"))
    assert model.sites.encode([[5, 6, 7], [8, 9]])["attention_mask"].sum() == 5
    with pytest.raises(EmotraceError, match="has no tokenizer"):
        model.sites.encode("text")


def test_identity_tells_checkpoints_apart(directory):
    one, other = tiny.build("llama"), tiny.build("llama", seed=1)
    a, b = identity(one, "x", None), identity(other, "x", None)
    assert a["config_hash"] == b["config_hash"]
    assert a["weights_hash"] != b["weights_hash"]
    assert identity(tiny.build("llama"), "x", None) == a
    with torch.no_grad():
        one.model.layers[2].mlp.down_proj.weight[-1, -1] += 1
    assert identity(one, "x", None)["weights_hash"] != a["weights_hash"], "one weight is enough"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_weights_that_change_places_are_other_weights(dtype, axis, step):
    module = tiny.build("llama").to(dtype)
    before = identity(module, "x", None)["weights_hash"]
    weight = module.model.layers[1].mlp.up_proj.weight.data
    weight.index_copy_(axis, torch.tensor([8, 8 + step]), weight.index_select(axis, torch.tensor([8 + step, 8])))
    assert identity(module, "x", None)["weights_hash"] != before


def test_buffers_of_the_checkpoint_are_weights():
    module = tiny.build("deepseek-v3")
    before = identity(module, "x", None)["weights_hash"]
    module.model.layers[1].mlp.gate.e_score_correction_bias[2] += 1  # chooses other experts; no parameter
    assert identity(module, "x", None)["weights_hash"] != before


# -- nnsight's own use --------------------------------------------------------------------------------------------


def test_ordinary_nnsight_use_still_works(directory):
    model = load(directory)
    with model.trace("Hello") as tracer:
        hidden = model.model.layers[1].output.save()
        logits = tracer.result.logits.save()
    assert hidden.shape[-1] == 32
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            a = nnsight.save(model.sites.read("resid_post", 1))
        with tracer.invoke("Hello there"):
            model.model.layers[0].output[:] += 1
    torch.testing.assert_close(a[:, -hidden.shape[1] :], hidden)
    with model.scan("Hello"):
        shape = nnsight.save(tuple(model.sites.read("resid_mid", 2).shape))
    assert shape == tuple(hidden.shape)
    with model.session():
        with model.trace("Hello"):
            h = model.sites.read("neuron", 0)
        with model.trace("Hello"):
            model.sites.write("neuron", h * 0, 0)
            edited = nnsight.save(model.lm_head.output)
    assert not torch.equal(edited, logits)
    with model.generate("Hello", max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        ids = nnsight.save(tracer.result)
    assert ids.shape[1] == hidden.shape[1] + 3
    with model.edit() as (_, copy):
        copy.model.layers[1].mlp.output[:] = 0
    with copy.trace("Hello") as tracer:
        zeroed = nnsight.save(tracer.result.logits)
    assert not torch.equal(zeroed, logits)


def test_what_runs_in_a_trace_is_registered_to_ship_by_value(directory):
    nnsight.register(traced)
    model = load(directory)
    batch = model.sites.encode(["Hello"])
    place = model.sites.place("resid_mid", 1)
    with torch.no_grad(), model.trace(batch):
        here = nnsight.save(traced.places.fetch(place))
    with torch.no_grad(), model.trace(batch, remote="local"):
        there = nnsight.save(traced.places.fetch(place))
    assert torch.equal(here, there)


def test_one_trace_at_a_time_from_any_thread(directory):
    model = load(directory)
    batch = model.sites.encode(["Hello"])
    with torch.no_grad():
        want = model._module(**hooks.forward_inputs(model, batch)).logits
    got, failed = [], []

    def work() -> None:
        try:
            for _ in range(5):
                with locked(model), torch.no_grad(), model.trace(batch) as tracer:
                    value = nnsight.save(tracer.result.logits)
                got.append(value)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(got) == 15
    assert all(torch.equal(value, want) for value in got)


def test_the_module_can_still_be_saved_and_copied(directory, tmp_path):
    model = load(directory)
    model._module.save_pretrained(tmp_path)
    assert pickle.loads(pickle.dumps(model._module.state_dict())).keys() == model._module.state_dict().keys()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model._module.lm_head.weight)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_missing_and_broken_directories(tmp_path):
    with pytest.raises(EmotraceError, match=r"not a directory.*directory, a GGUF file or a hub id"):
        load(tmp_path / "nowhere")
    with pytest.raises(EmotraceError, match=r"no config.json in it"):
        load(tmp_path)
    with pytest.raises(EmotraceError, match="cannot be loaded"):
        load(config_only(tmp_path / "strange", model_type="no-such-model"))
    with pytest.raises(EmotraceError, match="cannot be loaded"):
        load(config_only(tmp_path / "no-weights", model_type="llama", num_hidden_layers=1))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(EmotraceError, match="cannot be loaded"):
        load(tmp_path / "broken")


def test_a_directory_without_a_tokenizer(tmp_path):
    tiny.build("llama").save_pretrained(tmp_path)
    with pytest.raises(EmotraceError, match=r"tokenizer of .* cannot be loaded"):
        load(tmp_path)
    assert load(tmp_path, tokenizer=tiny.tiny_tokenizer()).sites.encode("Hello")["input_ids"].shape[0] == 1


def test_a_merged_adapter_replies_and_is_captured_as_peft_has_it():
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `peft`)")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny.build("llama"), settings).eval()
    prompts = [list(range(20, 34)), [5, 9, 30]]
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    with torch.no_grad():
        wanted = [adapted.generate(input_ids=torch.tensor([i]), **greedy)[0, len(i) :].tolist() for i in prompts]
        states = [adapted(torch.tensor([i]), output_hidden_states=True).hidden_states[1][0, -1] for i in prompts]
    with pytest.raises(EmotraceError, match=r"PEFT model.*merge_and_unload"):
        load(adapted)
    plain = generate(
        load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer()), prompts, max_new_tokens=6, progress=False
    )
    model = load(adapted.merge_and_unload(), tokenizer=tiny.tiny_tokenizer())
    rows = generate(model, prompts, max_new_tokens=6, progress=False)
    assert [row["token_ids"] for row in rows] == [ids[: ids.index(2)] if 2 in ids else ids for ids in wanted]
    assert [row["token_ids"] for row in plain] != [row["token_ids"] for row in rows]
    acts = capture(model, prompts, "resid_post", layers=0, progress=False)
    torch.testing.assert_close(torch.tensor(acts.residual.values[0, 0]), torch.stack(states), rtol=0, atol=2e-5)


def test_peft_adapters(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with pytest.raises(EmotraceError, match=r"PEFT adapter.*merge_and_unload"):
        load(tmp_path)
    adapted = tiny.build("llama")
    adapted.peft_config = {"default": object()}
    with pytest.raises(EmotraceError, match=r"PEFT model.*merge_and_unload"):
        load(adapted)


def test_quantized_models(tmp_path):
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path = tiny.save("llama", tmp_path / "q")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": quantized}))
    with pytest.raises(EmotraceError, match=r"is quantized.*bitsandbytes"):
        load(path)
    model = tiny.build("llama")
    model.config.quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(EmotraceError, match="is quantized"):
        load(model)


def test_encoder_decoders_and_other_tasks(tmp_path):
    t5 = transformers.T5Config(vocab_size=160, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    t5.architectures = ["T5ForConditionalGeneration"]
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(EmotraceError, match="encoder-decoder"):
        load(tmp_path / "t5")
    with pytest.raises(EmotraceError, match="encoder-decoder"):
        load(transformers.T5ForConditionalGeneration(t5))
    vit = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    vit.architectures = ["ViTForImageClassification"]
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(EmotraceError, match="no causal or masked model"):
        load(tmp_path / "vit")
    with pytest.raises(EmotraceError, match="not Linear"):
        load(torch.nn.Linear(2, 2))


def test_options_that_cannot_be(directory):
    with pytest.raises(EmotraceError, match=r"dtype='float31'.*float32, bfloat16, float16, auto"):
        load(directory, dtype="float31")
    with pytest.raises(EmotraceError, match="device='gpu:99'"):
        load(directory, device="gpu:99")
    with pytest.raises(EmotraceError, match="device='cuda:99'"):
        load(directory, device="cuda:99")
    with pytest.raises(EmotraceError, match="give one of them"):
        load(directory, device="cpu", device_map="auto")
    with pytest.raises(EmotraceError, match="loaded already; device, dtype cannot apply"):
        load(tiny.build("llama"), device="cpu", dtype="bfloat16")
    with pytest.raises(EmotraceError, match=r"cannot be loaded.*attn_implementation"):
        load(directory, attn_implementation="no-such-attention")
    with pytest.raises(EmotraceError, match="not an ISO day"):
        load(directory, date="26 July 2024")
