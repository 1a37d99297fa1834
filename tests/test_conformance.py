"""The conformance suite over every family, on tiny random models built offline."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings

import pytest
import torch

from emotrace.labels import SITES, EmotraceError
from emotrace.model import load
from emotrace.sites import find
from emotrace.testing import conformance, tiny

pytestmark = pytest.mark.usefixtures("anew")

PARALLEL = {"phi", "gpt-neox", "gpt-j", "falcon", "falcon-new", "cohere", "stablelm-parallel"}
POST_LN = {"bert", "roberta", "distilbert", "electra", "deberta-v2", "deberta-v2-conv", "opt-post-ln"}
EXPERTS = {"mixtral", "qwen3-moe"}
DEBERTA = {"deberta-v2", "deberta-v2-conv"}  # returns its attention weights only when it is asked for them
SCALES = {"minicpm3": 1.4 / math.sqrt(3), "granite": 0.22}


@functools.cache
def loaded(name: str):
    return load(tiny.build(name, attn_implementation="eager"), tokenizer=tiny.tiny_tokenizer())


@functools.cache
def batch(name: str):
    return tiny.batch(loaded(name)._module)


@pytest.fixture(params=tiny.NAMES)
def name(request) -> str:
    return request.param


def test_the_form_and_the_missing_sites_are_those_of_the_architecture(name):
    sites = loaded(name).sites
    form = "parallel" if name in PARALLEL else "post-ln" if name in POST_LN else "sequential"
    assert sites.form == form
    assert sites.scale == pytest.approx(SCALES.get(name, 1.0), rel=1e-7)
    assert not sites.unproven
    assert sites.closure_error < 1e-6
    missing = {"resid_mid"} if form == "parallel" else {"final_norm"} if form == "post-ln" else set()
    missing |= {"neuron", "neuron_pre"} if name in EXPERTS else set()
    missing |= {"attn_pattern"} if name in DEBERTA else set()
    assert {s for s in SITES if not sites.has(s)} == missing
    dense = (0,) if name == "deepseek-v3" else tuple(range(sites.n_layers))  # the others hold experts
    for site in sites.names:
        if sites.layers(site):
            assert sites.layers(site) == (dense if site in ("neuron", "neuron_pre") else tuple(range(sites.n_layers)))


def test_the_names_mean_what_they_say(name):
    conformance.check_equations(loaded(name), batch(name))


def test_every_site_of_every_layer_reads_as_a_plain_hook(name):
    conformance.check_reads(loaded(name), batch(name))


def test_all_sites_read_in_one_trace(name):
    conformance.check_order(loaded(name), batch(name))


def test_a_write_at_every_site_is_a_hook_edit_and_changes_the_logits(name):
    conformance.check_writes(loaded(name), batch(name))


def test_a_value_that_was_read_can_be_written(name):
    conformance.check_read_then_write(loaded(name), batch(name))


def test_invokes_see_their_own_rows(name):
    conformance.check_invokes(loaded(name), batch(name))


def test_padding_changes_nothing(name):
    conformance.check_padding(loaded(name))


def test_replies_behind_kept_first_tokens(name):
    conformance.check_kept(loaded(name))


def test_absent_sites_are_refused(name):
    conformance.check_absent(loaded(name))


def test_places_of_the_users_own(name):
    conformance.check_own_places(loaded(name), batch(name))


@pytest.mark.parametrize("name", [n for n in tiny.NAMES if n not in DEBERTA])
def test_attn_pattern_is_transformers_own(name):
    conformance.check_pattern(loaded(name), batch(name))


def test_bfloat16_weights_have_the_same_places_and_read_alike(name):
    exact = loaded(name).sites
    model = load(tiny.build(name, attn_implementation="eager").bfloat16(), tokenizer=tiny.tiny_tokenizer())
    assert model.sites.closure_error > 0
    assert (model.sites.form, model.sites.scale) == (exact.form, exact.scale)
    assert places(model.sites) == places(exact)
    conformance.check_order(model, batch(name))


def test_a_model_without_weights_has_the_same_places_and_widths(name):
    real = loaded(name).sites
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialising nothing is a no-op, says torch
        hollow = type(loaded(name)._module)(loaded(name)._module.config)
    sites = find(hollow)
    assert (sites.form, sites.scale, sites.n_heads) == (real.form, real.scale, real.n_heads)
    assert places(sites) == places(real)
    for site in real.names:
        if site != "attn_pattern":
            for layer, address in real.addresses[site].items():
                assert sites.address(site, layer).width == address.width, (site, layer)


def places(sites):
    return {
        (site, layer): (a.path, a.side, a.index, a.flat, a.kind, a.scale, a.overwritten, a.mirror and a.mirror.path)
        for site in sites.names
        for layer, a in sites.addresses[site].items()
    }


def test_a_bfloat16_write_is_a_hook_edit():
    for family in ("phi", "mixtral", "bert"):
        model = load(tiny.build(family).bfloat16(), tokenizer=tiny.tiny_tokenizer())
        conformance.check_writes(model, batch(family))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3-moe", "bert"])
def test_sdpa_has_every_site_but_the_pattern(family):
    model = load(tiny.build(family, attn_implementation="sdpa"), tokenizer=tiny.tiny_tokenizer())
    assert set(loaded(family).sites.names) - set(model.sites.names) == {"attn_pattern"}
    with pytest.raises(EmotraceError, match=r"attn_pattern.*'sdpa'.*attn_implementation='eager'"):
        model.sites.address("attn_pattern", 0)
    conformance.check_order(model, batch(family))


def test_the_suite_notices_a_wrong_address():
    model = load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    right = model.sites.addresses["mlp_out"]
    model.sites.addresses["mlp_out"] = model.sites.addresses["attn_out"]
    with pytest.raises(AssertionError, match="the residual at layer 0"):
        conformance.check(model)
    model.sites.addresses["mlp_out"] = right
    address = model.sites.address("z", 1)
    model.sites.addresses["z"][1] = dataclasses.replace(address, path="model.layers.0.self_attn.o_proj")
    with pytest.raises(AssertionError, match="z at layer 1"):
        conformance.check(model)


def test_check_runs_the_whole_suite():
    conformance.check(loaded("gpt-neo"))
