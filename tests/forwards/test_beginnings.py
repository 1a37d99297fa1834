"""Beginnings: values are those of one prompt at a time, whatever the batch; the twin is a plain forward per prompt."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import emotrace as et
from emotrace import discovery
from emotrace.discovery import batches as pair_batches
from emotrace.discovery import nodes
from emotrace.forwards import beginnings
from emotrace.forwards.beginnings import Beginnings
from emotrace.forwards.reruns import Reruns
from emotrace.prompt_tuning.layout import Layout
from emotrace.prompt_tuning.readouts import Readout
from emotrace.sites.twin import randomise
from emotrace.testing import tiny

pytestmark = pytest.mark.usefixtures("anew")

BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 2}
BART |= {
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
GQA = {**BERT, "num_key_value_heads": 2}
OTHERS = {  # class, settings, path of the last layer
    "bart": ("BartForCausalLM", BART, "model.decoder.layers.1"),
    "roberta-causal": ("RobertaForCausalLM", {**BERT, "is_decoder": True}, "roberta.encoder.layer.1"),
    "convbert": ("ConvBertForMaskedLM", {**BERT, "embedding_size": 16, "head_ratio": 2}, "convbert.encoder.layer.1"),
    "lfm2": ("Lfm2ForCausalLM", {**GQA, "layer_types": ["conv", "full_attention"]}, "model.layers.1"),
    "longformer": ("LongformerForMaskedLM", {**BERT, "attention_window": 4}, "longformer.encoder.layer.1"),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {**GQA, "sliding_window": None, "max_position_embeddings": 256, "original_max_position_embeddings": 32}
        | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}
           | {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}},
        "model.layers.1",
    ),
}  # fmt: skip
LAST = {"llama": "model.layers.2", "mistral": "model.layers.2"} | {name: path for name, (*_, path) in OTHERS.items()}
TEXTS = ["The train was late", "Rain", "A dog sat by the door.", "I won"]
REPLY = [40, 50, 60]


@cache
def known(name: str, **options):
    if name not in OTHERS:
        return et.load(tiny.build(name, **options), tokenizer=tiny.tiny_tokenizer())
    cls, own, _ = OTHERS[name]
    cls = getattr(transformers, cls)
    base = {"vocab_size": tiny.VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        module = cls._from_config(cls.config_class(**base | own), dtype=torch.float32)
    randomise(module)
    return et.load(module.eval(), tokenizer=tiny.tiny_tokenizer())


def by_hook(model, name, ids):
    """Output of the last layer and logits of one prompt, by a plain forward."""
    seen = []
    layer = model._module.get_submodule(LAST[name])
    handle = layer.register_forward_hook(lambda m, a, o: seen.append(o if isinstance(o, torch.Tensor) else o[0]))
    with torch.no_grad():
        logits = model._module(input_ids=torch.tensor([ids])).logits[0]
    handle.remove()
    return seen[0].reshape(len(ids), -1).numpy(), logits


@pytest.mark.parametrize(
    ("name", "options", "padded", "shared"),
    [
        ("llama", {}, np.inf, np.inf),
        ("mistral", {"sliding_window": 100}, np.inf, 50),
        ("gpt-neo", {"window_size": 6}, np.inf, 0),
        ("bert", {}, np.inf, 0),
        ("bart", {}, 0, 0),
        ("roberta-causal", {}, 0, 0),
        ("convbert", {}, 0, 0),
        ("phi3-longrope", {}, 16, 16),
    ],
)
def test_what_a_model_allows(name, options, padded, shared):
    model = known(name, **options)
    assert beginnings.shared_up_to(model) == shared
    found = model.sites.beginnings
    assert (found.padded, found.batched) == (padded, True)
    assert str(found) in model.sites.describe()
    assert ("batches" in model.sites.identity) == (padded == 0)


@pytest.mark.parametrize("name", ["bart", "roberta-causal", "lfm2"])
def test_neighbours_change_nothing(name):
    """Activations, replies and the likelihood of replies."""
    model = known(name)
    ids = model.sites.encoder.ids(TEXTS)
    acts = et.capture(model, TEXTS, "resid_post", positions="all", progress=False)
    layer = model.sites.n_layers - 1
    for key, one in zip(et.datasets.Prompts.of(TEXTS).keys, ids, strict=True):
        got = acts.sel(layer=layer, sublayer="resid_post", key=key).values
        np.testing.assert_allclose(got, by_hook(model, name, one)[0], rtol=1e-4, atol=1e-4)
    items = [{"key": str(i), "token_ids": one, "reply_ids": REPLY} for i, one in enumerate(ids)]
    want = []
    for one in ids:
        logp = by_hook(model, name, one + REPLY)[1].log_softmax(-1)
        want.append(-np.mean([float(logp[len(one) - 1 + t, r]) for t, r in enumerate(REPLY)]))
    np.testing.assert_allclose(np.log(et.scoring.perplexity(model, items)), want, rtol=1e-4)
    got = [row["token_ids"] for row in et.generate(model, TEXTS, max_new_tokens=5, progress=False)]
    for one, reply in zip(ids, got, strict=True):
        alone = model._module.generate(torch.tensor([one]), max_new_tokens=5, do_sample=False, pad_token_id=0)
        alone = alone[0, len(one) :].tolist()
        assert reply == (alone[: alone.index(2)] if 2 in alone else alone)


@settings(max_examples=8)
@given(order=st.permutations(range(len(TEXTS))), size=st.integers(1, 5), name=st.sampled_from(["convbert", "bart"]))
def test_order_and_batch_size_change_nothing(order, size, name):
    model = known(name)
    texts = [TEXTS[i] for i in order]
    acts = et.capture(model, texts, "resid_post", positions="last", batch_size=size, progress=False)
    got = acts.sel(layer=model.sites.n_layers - 1, sublayer="resid_post")
    for key, one in zip(et.datasets.Prompts.of(texts).keys, model.sites.encoder.ids(texts), strict=True):
        row = got.values[got["key"].values.tolist().index(key)]
        np.testing.assert_allclose(row, by_hook(model, name, one)[0][-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [4, 9, 14])
def test_a_shared_prefix_behind_a_small_window(window):
    model = known("mistral", sliding_window=window)
    texts = [
        "Always answer in one short line: " + t for t in ("the train was late again", "rain", "I won", "no", "a dog")
    ]
    acts = et.capture(model, texts, "resid_post", positions="last", progress=False)
    got = acts.sel(layer=2, sublayer="resid_post").values
    want = [by_hook(model, "mistral", one)[0][-1] for one in model.sites.encoder.ids(texts)]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_reruns(name):
    model = known(name)
    reruns = Reruns(model, TEXTS, "resid_post", model.sites.n_layers - 1)
    done = {}
    for rows in reruns.batches(range(len(TEXTS)), 3):
        done |= dict(zip(rows, reruns.batch(rows).run([]), strict=True))
    for i, one in enumerate(model.sites.encoder.ids(TEXTS)):
        np.testing.assert_allclose(done[i], by_hook(model, name, one)[0][-1], rtol=1e-4, atol=1e-4)


def test_pairs_of_unequal_length_stay_in_order():
    model = known("bart")
    clean, other = [[1, 50, 60, 7], [1, 51, 7], [1, 52, 7]], [[1, 50, 61, 62, 7], [1, 53, 54, 7], [1, 55, 56, 7]]
    pairs, metric = discovery.pairs(model, clean, other, align="spans"), discovery.KL()
    seen = nodes.seen(model, metric, ["head"])
    found = list(pair_batches.ready(model, pairs, metric, seen, "counterfactual", 8))
    assert [len(batch) for batch in found] == [1, 2]
    for got, a, b in zip(torch.cat([batch.counterfactual for batch in found]), clean, other, strict=True):
        p, q = (by_hook(model, "bart", ids)[1][-1].log_softmax(-1) for ids in (a, b))
        torch.testing.assert_close(got, -(p.exp() * (p - q)).sum(), rtol=1e-4, atol=1e-4)


def test_soft_prompts_among_texts_of_unequal_length():
    model = known("bart")
    readout = Readout(model, Layout(model.sites.encoder, 2), [40, 41])
    laid, vectors = readout.layout.texts(TEXTS), torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    vectors.requires_grad_(True)
    together = readout.logits(laid, vectors)
    alone = torch.cat([readout.logits([one], vectors) for one in laid])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    slopes = [torch.autograd.grad(x[:, 0].sum(), vectors)[0] for x in (together, alone)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def allowing(**what):
    class Sites:
        model_class = "This"
        beginnings = Beginnings(**what)

    class Model:
        sites = Sites

    return Model


def test_batches_by_length():
    lengths = [3, 9, 5, 9, 3, 5, 1]
    assert beginnings.batches(allowing(), lengths, 3) == [[1, 3, 2], [5, 0, 4], [6]]
    assert beginnings.batches(allowing(padded=5), lengths, 3) == [[1, 3], [2, 5, 0], [4, 6]]
    assert beginnings.batches(allowing(padded=0), lengths, 3, rows=[0, 2, 4, 6]) == [[2], [0, 4], [6]]
    assert beginnings.batches(allowing(padded=0, batched=False), lengths, 3)[:2] == [[1], [3]]
    assert beginnings.batches(allowing(), lengths, lambda longest: 18 // longest) == [[1, 3], [2, 5, 0], [4, 6]]
    pairs = [(3, 4), (3, 4), (3, 5), (9, 5), (9, 5)]
    assert beginnings.neighbours(allowing(), pairs, 4) == [range(4), range(4, 5)]
    assert beginnings.neighbours(allowing(padded=5), pairs, 4) == [range(2), range(2, 3), range(3, 5)]


def test_refusals():
    with pytest.raises(et.EmotraceError, match=r"LongformerForMaskedLM: .* holds 1?[26] columns for 11 tokens"):
        known("longformer")
    model = known("bart")
    with pytest.raises(et.EmotraceError, match="padding is not neutral"):
        model.sites.encode(TEXTS)
    assert model.sites.encode([TEXTS[0]] * 2)["input_ids"].shape[0] == 2
    with pytest.raises(et.EmotraceError, match="change each other"):
        beginnings.refuse_coupled(allowing(batched=False, padded=0), "circuits")
