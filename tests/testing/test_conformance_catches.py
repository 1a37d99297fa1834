"""The conformance suite runs on hybrids, and fails where a model or its table is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers

import emotrace as et
from emotrace.forwards.beginnings import Beginnings
from emotrace.sites.twin import randomise
from emotrace.testing import conformance, conformance_calls, tiny

pytestmark = pytest.mark.usefixtures("anew")


def lfm2():
    config = transformers.Lfm2Config(
        vocab_size=tiny.VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    module = transformers.Lfm2ForCausalLM._from_config(config, dtype=torch.float32)
    randomise(module)
    return et.load(module.eval(), tokenizer=tiny.tiny_tokenizer())


def openai_gpt():
    config = transformers.OpenAIGPTConfig(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    module = transformers.OpenAIGPTLMHeadModel._from_config(config, dtype=torch.float32)
    randomise(module)
    return et.load(module.eval(), tokenizer=tiny.tiny_tokenizer())


@pytest.mark.parametrize("build", [lfm2, openai_gpt])
def test_it_runs_where_only_some_layers_have_sites_and_where_blocks_return_lists(build):
    conformance.check(build())


def test_it_notices_padding_that_is_not_neutral():
    module = tiny.build("llama")
    for layer in module.model.layers:  # sees the columns of the padding
        layer.self_attn.register_forward_hook(lambda m, a, o: (o[0] + o[0].mean(1, keepdim=True), *o[1:]))
    model = et.load(module, tokenizer=tiny.tiny_tokenizer())
    assert not model.sites.beginnings.padded
    model.sites.beginnings = Beginnings()
    with pytest.raises(AssertionError, match="of a padded prompt"):
        conformance.check_padding(model)


def test_it_notices_heads_of_another_number():
    model = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    a = model.sites.address("z", 1)
    model.sites.addresses["z"][1] = dataclasses.replace(a, heads=8)
    with pytest.raises(AssertionError, match="heads of layer 1: the table says 8, the model shows 4"):
        conformance.check_heads(model)


def test_it_notices_a_reply_that_forgets_the_edit(monkeypatch):
    model = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    real = conformance_calls.generate
    monkeypatch.setattr(conformance_calls, "generate", lambda m, p, edits, **k: real(m, p, [], **k))
    with pytest.raises(AssertionError, match="of an edited reply"):
        conformance.check_generation(model)


def test_it_notices_beginnings_that_change_what_follows(monkeypatch):
    model = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    real = conformance_calls.capture
    cut = lambda m, p, *a, **k: real(m, [ids[8:] for ids in p], *a, **k)  # noqa: E731
    monkeypatch.setattr(conformance_calls, "capture", cut)
    with pytest.raises(AssertionError, match="begins like others"):
        conformance.check_shared(model)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), np.str_("three")])
def test_labels_of_numpy_are_labels(value):
    prompt = et.datasets.Prompt("a", token_ids=np.array([3, 4]), labels={"draw": value})
    assert prompt.labels["draw"] == value.item()
    assert prompt.token_ids == (3, 4)
