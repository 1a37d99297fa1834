"""Activated neurons: against hooks on single sequences, with their labels."""

import numpy as np
import pytest
import torch

from emotrace.labels import EmotraceError
from emotrace.prompt_tuning import (
    Layout,
    Recipe,
    SoftPrompt,
    activated_neurons,
    concept_neurons,
    concept_prompts,
    name_embeddings,
)
from tests.helpers import hooked, loaded

LENGTH = 3
DOWN = {"roberta": "roberta.encoder.layer.{}.output.dense", "llama": "model.layers.{}.mlp.down_proj"}
ACT = {"roberta": "roberta.encoder.layer.{}.intermediate.intermediate_act_fn", "llama": "model.layers.{}.mlp.act_fn"}


def prompts(lm, cells=(("joy", 1), ("joy", 2), ("fear", 1), ("fear", 2))):
    rng = np.random.default_rng(0)
    width = lm.sites.address("embed").width
    recipe = Recipe(length=LENGTH, words=("-", "+"))
    vectors = [rng.normal(size=(LENGTH, width)).astype(np.float32) for _ in cells]
    return [SoftPrompt(v, v, e, s, recipe, (20, 30)) for v, (e, s) in zip(vectors, cells, strict=True)]


def literal(lm, name, prompt, laid, at, paths):
    """Inputs of modules under one prompt at one position, ``[layer, unit]``."""
    seen = {}

    def note(layer):
        def keep(h):
            seen[layer] = h[0, at].clone()
            return h

        return keep

    def insert(h):
        h = h.clone()
        h[0, laid.first : laid.first + LENGTH] = torch.tensor(prompt.vectors)
        return h

    contexts = [hooked(lm._module.get_input_embeddings(), "output", insert)]
    contexts += [hooked(lm._module.get_submodule(paths[name].format(i)), "input", note(i)) for i in range(3)]
    for c in contexts:
        c.__enter__()
    with torch.no_grad():
        lm._module(torch.tensor([laid.ids]))
    for c in contexts:
        c.__exit__(None, None, None)
    return np.stack([seen[i].numpy() for i in range(3)])


@pytest.mark.parametrize("name", ["roberta", "llama"])
@pytest.mark.parametrize(("stage", "position"), [("neuron", "answer"), ("neuron_pre", 1), ("active", -1)])
def test_neurons_under_prompts_are_what_hooks_see(name, stage, position):
    lm = loaded(name)
    tuned = prompts(lm)
    found = activated_neurons(lm, tuned, stage, position, progress=False)
    assert found.dims == ("emotion", "seed", "layer", "unit")
    assert found["emotion"].values.tolist() == ["joy", "fear"]
    assert found["seed"].values.tolist() == [1, 2]
    laid = Layout(lm.sites.encoder, LENGTH).bare()
    at = {"answer": laid.at, 1: laid.first + 1, -1: laid.first + LENGTH - 1}[position]
    for prompt in tuned:
        expected = literal(lm, name, prompt, laid, at, ACT if stage == "neuron_pre" else DOWN)
        expected = (expected > 0).astype(np.float32) if stage == "active" else expected
        here = found.sel(emotion=prompt.emotion, seed=prompt.seed).values
        np.testing.assert_allclose(here, expected, atol=2e-5)


@pytest.mark.parametrize("stage", ["neuron", "active"])
def test_the_vectors_of_a_prompt_are_pooled(stage):
    lm = loaded("llama")
    tuned = prompts(lm)[:2]
    pooled = activated_neurons(lm, tuned, stage, "prompt", progress=False)
    each = [activated_neurons(lm, tuned, stage, i, progress=False).values for i in range(LENGTH)]
    np.testing.assert_allclose(pooled.values, np.mean(each, axis=0), atol=1e-6)
    assert pooled.attrs["position"] == "prompt"


def test_embeddings_of_names_are_means_over_their_tokens():
    lm = loaded("gemma2")  # what its embedding looks up, it multiplies
    found = name_embeddings(lm, ["joy", "fear"])
    ids = lm.sites.encoder.tokenizer(" fear", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    expected = lm._module.get_input_embeddings()(torch.tensor(ids)).mean(0)
    np.testing.assert_allclose(found.sel(emotion="fear").values, expected.detach().numpy(), rtol=1e-5)
    with pytest.raises(EmotraceError, match="at least one name"):
        name_embeddings(lm, [])


def test_a_text_may_follow_the_prompt_and_the_store_keeps_the_labels(tmp_path):
    import emotrace as et

    lm = loaded("roberta")
    tuned = prompts(lm)
    found = activated_neurons(lm, tuned, text="abc", layers=[2], out=tmp_path / "a.zarr", progress=False)
    assert found["layer"].values.tolist() == [2]
    laid = Layout(lm.sites.encoder, LENGTH).texts(["abc"])[0]
    expected = literal(lm, "roberta", tuned[3], laid, laid.at, DOWN)[2]
    np.testing.assert_allclose(found.sel(emotion="fear", seed=2, layer=2).values, expected, atol=2e-5)
    stored = et.open_activations(tmp_path / "a.zarr").sel("neuron", emotion="fear", seed=2)
    np.testing.assert_array_equal(stored.values.ravel(), found.sel(emotion="fear", seed=2).values.ravel())


def test_what_cannot_be_read_is_refused():
    lm = loaded("roberta")
    tuned = prompts(lm)
    with pytest.raises(EmotraceError, match="unknown stage 'neurons'"):
        activated_neurons(lm, tuned, "neurons")
    with pytest.raises(EmotraceError, match="one of 3 prompt vectors"):
        activated_neurons(lm, tuned, position=3)
    with pytest.raises(EmotraceError, match="'fear' has nothing for seed 2"):
        activated_neurons(lm, tuned[:3], progress=False)
    with pytest.raises(EmotraceError, match="is empty"):
        activated_neurons(lm, [])


def test_plain_prompts_of_a_decoder_give_the_mean_of_each_cell():
    import emotrace as et

    lm = loaded("llama")
    plain = concept_prompts(["joy", "fear"], ["I feel {concept}", "so much {concept}"])
    found = concept_neurons(lm, plain, progress=False)
    acts = et.capture(lm, ["so much fear"], "neuron", progress=False).sel("neuron")
    np.testing.assert_allclose(found.sel(emotion="fear", seed=1).values, acts.values.squeeze(), atol=1e-5)
    spans = concept_neurons(lm, plain, positions="all", progress=False)
    held = et.capture(lm, plain, "neuron", positions="all", progress=False)
    np.testing.assert_array_equal(concept_neurons(held).values, spans.values)
    part = concept_neurons(held.where(position="last", unit=[7, 3]), "active")
    assert part["unit"].values.tolist() == [3, 7]
    np.testing.assert_array_equal(part.values, concept_neurons(lm, plain, "active", progress=False).sel(unit=[3, 7]))
    acts = et.capture(lm, ["so much fear"], "neuron", positions="all", progress=False).sel("neuron")
    everywhere = acts.transpose("token", "layer", "unit").values.mean(0)
    np.testing.assert_allclose(spans.sel(emotion="fear", seed=1).values, everywhere, atol=1e-5)
    twice = [{"key": k, "text": t, "emotion": "joy", "seed": 0} for k, t in (("a", "ab"), ("b", "cde"))]
    mean = concept_neurons(lm, twice, "active", progress=False).values.squeeze()
    both = (
        et.capture(lm, ["ab", "cde"], "neuron", progress=False).sel("neuron").transpose("token", "layer", "unit").values
    )
    np.testing.assert_allclose(mean, (both > 0).mean(0))
    with pytest.raises(EmotraceError, match=r"has no \{concept\}"):
        concept_prompts(["joy"], ["I feel well"])
    with pytest.raises(EmotraceError, match="unknown label 'theme'"):
        concept_neurons(lm, plain, label="theme")
