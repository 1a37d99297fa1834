"""The sweep over model classes: a spread of kinds is right or refused, and what is wrong is found."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from emotrace.labels import EmotraceError

pytestmark = pytest.mark.usefixtures("anew")

ROOT = Path(__file__).resolve().parents[2]
SPREAD = {
    "BertForMaskedLM": "proven",  # post-LN, masked
    "GPTNeoXForCausalLM": "proven",  # parallel
    "Gemma2ForCausalLM": "proven",  # post-norms, windows
    "DeepseekV32ForCausalLM": "proven",  # latent attention to the tokens that an index chooses, experts
    "JambaForCausalLM": "proven",  # recurrent and attention layers
    "BartForCausalLM": "proven",  # numbers its positions itself, so that padding is not neutral
    "OpenAIGPTLMHeadModel": "proven",  # no cache, lists as outputs
    "AlbertForMaskedLM": "refused",  # one layer, visited several times
}
GENERATE = ("BartForCausalLM", "OpenAIGPTLMHeadModel")
"""Of these generation and perplexity are tried as well; the others' are in the tests of their rooms."""


@pytest.fixture(scope="module")
def sweep():
    sys.path.insert(0, str(ROOT / "experiments"))
    module = importlib.import_module("sweep_families")
    with pytest.MonkeyPatch.context() as patch:  # half the layers: a recurrent one and one with attention are two
        for name in ("num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers"):
            patch.setitem(module.families.SIZES, name, 2)
        yield module
    sys.path.remove(str(ROOT / "experiments"))


def built(sweep, name):
    return sweep.families.build({n: k for k, n in sweep.families.names()}[name], name)


@pytest.mark.parametrize("name", SPREAD)
def test_a_class_is_right_or_refused(sweep, name):
    found = sweep.family_checks.check(built(sweep, name), generates=name in GENERATE)
    assert not found.wrong
    assert found.outcome == SPREAD[name], found.reason
    if found.outcome == "proven":
        assert {"values", "roles", "edits"} <= {*found.passed}
        assert (name in GENERATE) == ({"generation", "perplexity"} <= {*found.passed})
        assert {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= {*found.sites}
    else:
        assert found.reason.startswith(name)


def test_every_class_is_tried_once_and_most_can_be_built(sweep):
    names = [n for _, n in sweep.families.names()]
    assert len(names) == len(set(names)) >= 200
    assert {"LlamaForCausalLM", "RobertaForMaskedLM", "BertLMHeadModel"} <= set(names)


def test_what_is_wrong_is_found(sweep, monkeypatch):
    checks, module = sweep.family_checks, built(sweep, "Gemma2ForCausalLM")
    load, capture = checks.et.load, checks.et.capture

    def swapped(given):
        model = load(given)
        by = model.sites.addresses
        by["attn_out"], by["mlp_out"] = by["mlp_out"], by["attn_out"]
        return model

    def shifted(*args, **options):
        acts = capture(*args, **options)
        if options["batch_size"] > 1:
            acts.sel("residual").values[..., 0] += 1e-2
        return acts

    monkeypatch.setattr(checks.et, "load", swapped)
    found = checks.check(module, generates=False)
    assert "takes something from other tokens" in found.wrong["mlp_out"]
    assert "z makes attn_out" in found.wrong
    monkeypatch.setattr(checks.et, "load", load)
    monkeypatch.setattr(checks.et, "capture", shifted)
    found = checks.check(module, generates=False)
    assert found.outcome == "wrong"
    assert {"resid_post in a batch", "mlp_out in a batch, last"} <= set(found.wrong)
    assert not [what for what in found.wrong if what.endswith(" alone")]


def test_a_class_that_cannot_be_compared_is_not_built(sweep, monkeypatch):
    module = built(sweep, "GPTNeoXForCausalLM")
    layer = module.gpt_neox.layers[0].attention
    sweep.family_checks.plain_forward(module)
    noise = layer.dense.register_forward_hook(lambda m, a, out: out + torch.randn(out.shape))
    with pytest.raises(ValueError, match="it draws at random"):
        sweep.family_checks.plain_forward(module)
    noise.remove()
    for block in module.gpt_neox.layers:
        block.attention.dense.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
    with pytest.raises(ValueError, match="no token depends on another one"):
        sweep.family_checks.plain_forward(module)
    monkeypatch.setitem(sweep.families.SIZES, "hidden_size", 30)
    found = sweep.attempt("llama", "LlamaForCausalLM")
    assert found["outcome"] in ("not built", "proven")


def _ends(kind, name):
    os._exit(3)


def _sleeps(kind, name):
    time.sleep(60)


def test_a_worker_that_dies_or_is_too_slow_is_said(sweep, monkeypatch):
    forked = sweep.multiprocessing.get_context("fork")
    monkeypatch.setattr(
        sweep.multiprocessing, "get_context", lambda kind: forked
    )  # a spawned one imports everything anew
    (dead,) = sweep.tried([("gone", "Gone")], 1, 60, _ends)
    assert dead[:2] == ("Gone", "gone")
    assert dead[2]["wrong"] == {"process": "ended with status 3"}
    ((_, _, slow),) = sweep.tried([("slow", "Slow")], 1, 0, _sleeps)
    assert slow["wrong"] == {"time": "took longer than 0 s"}


def test_the_same_command_continues_and_writes_the_table(sweep, monkeypatch, tmp_path, capsys):
    asked = []

    def some(todo, jobs, seconds):
        asked.append([name for _, name in todo])
        for kind, name in todo[: 2 if len(asked) == 1 else None]:
            bare = sweep._bare(
                "proven" if name != "GPTNeoForCausalLM" else "wrong", "", **({} if len(name) > 17 else {"z": "off"})
            )
            yield name, kind, bare
        if len(asked) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "tried", some)
    with pytest.raises(KeyboardInterrupt):
        sweep.main(tmp_path, only="^GPTNeo")
    sweep.main(tmp_path, only="^GPTNeo")
    assert len(asked[1]) == len(asked[0]) - 2
    told = json.loads((tmp_path / "families.json").read_text())
    assert sum(told["counts"].values()) == len(asked[0]) == len(told["classes"])
    assert "1 wrong" in capsys.readouterr().out
    with pytest.raises(EmotraceError, match="--only '\\(' is no regular expression"):
        sweep.main(tmp_path, only="(")
    with pytest.raises(EmotraceError, match="no causal or masked class"):
        sweep.main(tmp_path, only="Nowhere")
