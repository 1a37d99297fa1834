"""Results of one model are refused by another, whatever the way, and fit the same weights elsewhere."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import transformers
import xarray as xr

import emotrace as et
from emotrace import discovery, provenance, rsa
from emotrace import prompt_tuning as pt
from emotrace.attribution import ablations
from emotrace.labels import EmotraceError
from emotrace.testing import tiny

REFUSED = r"made with the model .*, not for this model.*adopt"
FEW = {"max_new_tokens": 2, "progress": False}


def off_by(module, size, seed=3):
    """The same model after a little training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1 + size * torch.randn_like(weight))
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("llama", tmp_path_factory.mktemp("model") / "own")


@pytest.fixture(scope="module")
def own(folder):
    return et.load(folder)


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory):
    place = tiny.save("llama", tmp_path_factory.mktemp("other") / "tuned")
    off_by(transformers.AutoModelForCausalLM.from_pretrained(place), 0.01).save_pretrained(place)
    return et.load(place)


@pytest.fixture(scope="module")
def prompts():
    return et.datasets.Prompts.of(
        [{"key": f"{i}__x__{e}", "token_ids": [5 + i, 9, 11 + k], "emotion": e, "skeleton_id": str(i), "valence": "x"}
         for k, e in enumerate(("anger", "joy")) for i in range(2)]
    )  # fmt: skip


@pytest.fixture(scope="module")
def dirs(own, prompts):
    return et.directions.centered_mean(et.capture(own, prompts, progress=False))


@pytest.fixture(scope="module")
def circuit(own, prompts, dirs):
    return et.circuits.discover(own, prompts, dirs, neurons_per_layer=2, heads_per_layer=1, progress=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_known_in_every_dtype_and_a_trained_copy_is_another_model(folder, own, other, dtype):
    was = own.sites.identity
    again = et.load(folder, dtype=dtype).sites.identity
    assert provenance.same(was, again)
    assert provenance.same(again, was)
    assert not provenance.same(other.sites.identity, again)
    module = off_by(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)), 0.01)
    assert not provenance.same(was, et.load(module, tokenizer=tiny.tiny_tokenizer()).sites.identity)


def test_names_decide_where_weights_are_elsewhere():
    here = {"model_id": "tiny_model", "dtype": "float32", "weights_hash": "a", "weights_sample": "00ff"}
    there = {"model_id": "Org/Tiny_model", "dtype": "float32", "weights_hash": "shapes only", "weights_sample": ""}
    assert provenance.same(here, there)
    assert provenance.same({**there, "revision": "main"}, there)
    assert not provenance.same({**there, "revision": "v1"}, {**there, "revision": "v2"})
    assert not provenance.same(here, {**there, "model_id": "Org/other"})
    assert not provenance.same({**there, "model_id": "Org/other"}, there)  # of equal shapes: the hashes are alike
    assert provenance.same(
        {"weights_hash": "a", "dtype": "float32", "model_id": "renamed"}, here
    )  # of an older version
    assert not provenance.same({"weights_hash": "b", "dtype": "float32", "model_id": "renamed"}, here)
    assert provenance.same({"dtype": "float32"}, here)


def test_a_copy_of_the_model_in_any_dtype_uses_what_was_made_with_it(folder, prompts, dirs, circuit):
    edits = [
        et.Add("resid_post", layers=[1], vector=dirs.sel(emotion="joy"), scale="rms"),
        *circuit.edits(0.1, label="emotion"),
    ]
    for model in (et.load(folder, dtype="bfloat16"), et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())):
        assert et.generate(model, prompts[:1], edits, **FEW)
        et.attribution.head_contributions(model, prompts, dirs, progress=False)


def test_every_function_that_takes_a_model_refuses_what_another_made(own, other, prompts, dirs, circuit, tmp_path):
    joy = dirs.sel(emotion="joy")
    add = [et.Add("resid_post", layers=[1], vector=joy, scale="rms")]
    et.edits.save_edits(circuit.ablations("joy"), tmp_path / "edits")
    scores = et.attribution.head_contributions(own, prompts, dirs, progress=False)
    plain = et.datasets.Prompts.of(
        [{"key": f"{i}__x", "token_ids": [5 + i, 9], "skeleton_id": str(i)} for i in range(2)]
    )
    reference = et.attribution.reference_direction(dirs, et.attribution.stable_block(dirs))
    calls = {
        "generate": lambda: et.generate(other, prompts, add, **FEW),
        "capture": lambda: et.capture(other, prompts, edits=circuit.edits(0.1), progress=False),
        "ablations": lambda: et.generate(other, prompts, circuit.ablations("joy"), **FEW),
        "edits from a file": lambda: et.generate(other, prompts, et.edits.load_edits(tmp_path / "edits"), **FEW),
        "mixture": lambda: et.generate(other, prompts, et.edits.mixture(dirs, "joy=1", site="resid_post"), **FEW),
        "bake": lambda: et.interop.bake(other, add, tmp_path / "baked"),
        "heads": lambda: et.attribution.head_contributions(other, prompts, dirs, progress=False),
        "neurons": lambda: et.attribution.neuron_contributions(other, prompts, dirs, progress=False),
        "influence": lambda: et.attribution.sublayer_influence(other, plain, dirs, progress=False),
        "reference": lambda: et.attribution.sublayer_influence(
            other, plain, et.adopt(dirs, other), reference=reference, progress=False
        ),
        "ablation curve": lambda: et.attribution.ablation_curve(other, prompts, dirs, scores, progress=False),
        "scores of a curve": lambda: et.attribution.ablation_curve(
            other, prompts, et.adopt(dirs, other), scores, progress=False
        ),
        "tokens": lambda: et.attribution.top_tokens(other, joy),
        "circuit": lambda: circuit.check(other),
        "metric": lambda: discovery.Projection(dirs).reads(other),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
        except EmotraceError as error:
            said[name] = str(error)
    assert [name for name in calls if not re.search(REFUSED, said.get(name, ""))] == []
    assert not (tmp_path / "baked").exists()


def test_discovery_results_know_their_model(own, other, prompts, dirs):
    pairs = discovery.pairs(own, prompts[:2], prompts[2:])
    metric = discovery.Projection(dirs)
    found = discovery.select(discovery.scores(own, pairs, metric, method="eap", progress=False), 3)
    assert provenance.of(found) == provenance.of(own.sites.identity)
    with pytest.raises(EmotraceError, match=REFUSED):
        et.generate(other, prompts, discovery.edits(found), **FEW)
    with pytest.raises(EmotraceError, match=REFUSED):
        discovery.evaluate(other, pairs, discovery.Projection(et.adopt(dirs, other)), found, progress=False)


def test_what_is_adopted_is_used_and_says_where_it_came_from(own, other, prompts, dirs, circuit, tmp_path):
    taken = et.adopt(dirs, other)
    assert taken.attrs["adopted_from"] == "own"
    add = [et.Add("resid_post", layers=[1], vector=dirs.sel(emotion="joy"))]
    for edits in ([et.Add("resid_post", layers=[1], vector=taken.sel(emotion="joy"))], et.adopt(add, other)):
        assert et.generate(other, prompts[:1], edits, **FEW)
    assert et.generate(other, prompts[:1], et.adopt(circuit, other).edits(0.1), **FEW)
    et.adopt(circuit, other).save(tmp_path)
    told = {**provenance.of(other.sites.identity), "adopted_from": "own"}
    assert provenance.of(et.Circuit.load(tmp_path)) == told
    et.edits.save_edits(et.adopt(circuit, other).edits(0.1), tmp_path / "made of it")
    et.edits.save_edits(et.adopt(add, other), tmp_path / "taken")
    for name in ("made of it", "taken"):
        assert all(provenance.of(edit) == told for edit in et.edits.load_edits(tmp_path / name))
    with pytest.raises(EmotraceError, match=REFUSED):
        et.generate(own, prompts[:1], et.adopt(add, other), **FEW)
    with pytest.raises(EmotraceError, match="adopt takes"):
        et.adopt({"a": 1}, other)


def test_numbers_of_the_users_own_belong_to_no_model(other, prompts):
    size = other.sites.d_model
    for vector in (np.ones(size), torch.ones(size), xr.DataArray(np.ones(size, "float32"), dims="dim")):
        assert et.generate(other, prompts[:1], [et.Add("resid_post", layers=[1], vector=vector)], **FEW)


def test_soft_prompts_are_of_one_model(own, other):
    size = own.sites.d_model
    vectors = np.ones((2, size), "float32")
    prompt = pt.SoftPrompt(vectors, vectors, "joy", 0, pt.Recipe(), (1, 2), provenance.of(own.sites.identity))
    prompt.check(own)
    dataclasses.replace(prompt, model={}).check(other)
    with pytest.raises(EmotraceError, match=REFUSED):
        prompt.check(other)
    taken = et.adopt(prompt, other)
    taken.check(other)
    assert taken.model["adopted_from"] == "own"
    with pytest.raises(EmotraceError, match=r"joy-0 was made with the model .*, anger-0 with another"):
        pt.as_edits([prompt, dataclasses.replace(taken, emotion="anger")], 1)


def test_a_soft_prompt_that_was_copied_over_another_is_no_other(own, tmp_path):
    vectors = np.ones((2, own.sites.d_model), "float32")
    prompt = pt.SoftPrompt(vectors, vectors, "joy", 0, pt.Recipe(), (1, 2))
    for folder in ("joy-0", "anger-0"):
        prompt.save(tmp_path / folder)
    with pytest.raises(EmotraceError, match=r"anger-0 and .*joy-0 both hold the prompt joy-0"):
        pt.tuned_prompts(tmp_path)


def test_values_and_masks_of_neurons_know_their_model(own, other, prompts):
    reference = ablations.reference_values(own, prompts, "neuron", {1: [0, 2]}, progress=False)
    stored = et.capture(own, prompts, "neuron", progress=False).sel("neuron")
    donor = {p.key: prompts[0].key for p in prompts}
    scores = (
        stored.isel(token=0)
        .expand_dims(attribute=["a"])
        .drop_vars([n for n, c in stored.coords.items() if c.dims == ("token",)])
    )
    masks = rsa.select_neurons(scores, k=[3], draws=1)
    first = masks.masked.isel(mask=0)
    for make in (
        lambda: ablations.mean_ablation("neuron", {1: [0, 2]}, reference),
        lambda: ablations.mean_ablation("neuron", {1: [0, 2]}, stored),
        lambda: ablations.resample_ablation("neuron", {1: [0, 2]}, reference, donor),
        lambda: pt.mask_edits(first),
        lambda: pt.mask_edits(first, "multiply", factors=masks.multipliers().isel(mask=0)),
    ):
        assert et.generate(own, prompts[:1], make(), **FEW)
        with pytest.raises(EmotraceError, match=REFUSED):
            et.generate(other, prompts[:1], make(), **FEW)
    taken = et.adopt(masks, other)
    assert taken.attrs["adopted_from"] == "own"
    assert et.generate(other, prompts[:1], pt.mask_edits(taken.masked.isel(mask=0)), **FEW)
    with pytest.raises(EmotraceError, match=r"mask_edits: mask was made with .*, factors with another"):
        pt.mask_edits(first, "multiply", factors=taken.multipliers().isel(mask=0))


def test_what_is_put_together_is_of_one_model(own, other, prompts, dirs):
    acts = et.capture(other, prompts, progress=False)
    options = {"against": "anger"}
    joy = dirs.sel(emotion=["joy"])
    with pytest.raises(EmotraceError, match=r"auroc: acts was made with .*, vectors with another"):
        et.directions.auroc(acts, joy, **options)
    assert et.directions.auroc(acts, et.adopt(joy, other), **options).notnull().any()
    assert et.directions.auroc(et.capture(own, prompts, progress=False), joy, **options).notnull().any()
    scores = {"head": et.attribution.head_contributions(own, prompts, dirs, progress=False)}
    allocation = et.circuits.even_allocation(["anger", "joy"], [1], {"head": 4}, 0, 1)
    differences = et.circuits.difference_vectors(other, prompts, progress=False)
    with pytest.raises(EmotraceError, match=r"assemble: head was made with .*, differences with another"):
        et.circuits.assemble(scores, differences, allocation)
    assert len(et.circuits.assemble(scores, et.adopt(differences, own), allocation).components)


def test_an_influence_that_would_not_be_used_is_no_argument_and_a_plan_knows_its_model(own, other, prompts, dirs):
    plain = et.datasets.Prompts.of(
        [{"key": f"{i}__x", "token_ids": [5 + i, 9], "skeleton_id": str(i)} for i in range(2)]
    )
    influence = et.attribution.sublayer_influence(own, plain, dirs, progress=False)
    with pytest.raises(EmotraceError, match=r"discover\(influence=…\) .* preset"):
        et.circuits.discover(own, prompts, dirs, influence=influence, progress=False)
    allocation = et.circuits.published_allocation(influence, total=12, available={"neuron": 48, "head": 4})
    with pytest.raises(EmotraceError, match=rf"discover\(allocation=…\): {REFUSED}"):
        et.circuits.discover(other, prompts, et.adopt(dirs, other), allocation=allocation, progress=False)
