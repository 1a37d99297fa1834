"""What is not finite is refused where it arises, with site, layer and prompt; a token that a model rules out is allowed."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import attribution, scoring
from emotrace import model as model_
from emotrace.forwards.likelihood import reply_scores
from emotrace.identity import weights_hash
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from emotrace.traced.finite import Watch, finite
from tests.helpers import loaded

PROMPTS = [{"key": f"k{i}", "token_ids": [11 + i, 12, 13], "emotion": e} for i, e in enumerate(("fear", "joy"))]
REPLIES = [{**p, "reply_ids": [20, 21]} for p in PROMPTS]
QUIET: dict[str, Any] = {"progress": False}
TWICE = [et.Scale("resid_post", layers=[1], strength=1e30, positions="steer")] * 2
TOO_MUCH = r"resid_post of layer 1 is not finite at position 2 of prompt 'k0'. Without the edits it is finite"
LOST = r"mlp_out of layer 1 is not finite at position 0 of prompt 'k0'"


@pytest.fixture(scope="module")
def broken():
    """A neuron of the second layer writes NaN, since the model was loaded."""
    lm = model_.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    with torch.no_grad():
        lm._module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    lm.sites.identity["weights_hash"] = weights_hash(lm._module)  # as of a checkpoint that holds it
    return lm


def directions(lm):
    values = np.random.default_rng(0).normal(size=(2, 3, 2, 32)).astype(np.float32)
    coords = {"emotion": ["fear", "joy"], "layer": [0, 1, 2], "sublayer": ["resid_mid", "resid_post"]}
    return xr.DataArray(values, dims=("emotion", "layer", "sublayer", "dim"), coords=coords)


RUNS = {
    "capture": lambda lm: et.capture(lm, PROMPTS, "resid_post", **QUIET),
    "generate": lambda lm: et.generate(lm, PROMPTS, max_new_tokens=2, **QUIET),
    "sampling": lambda lm: et.generate(lm, PROMPTS, max_new_tokens=2, do_sample=True, **QUIET),
    "perplexity": lambda lm: scoring.perplexity(lm, REPLIES),
    "likelihood": lambda lm: reply_scores(lm, REPLIES),
    "heads": lambda lm: attribution.head_contributions(lm, PROMPTS, directions(lm), **QUIET),
    "influence": lambda lm: attribution.sublayer_influence(lm, PROMPTS, directions(lm), **QUIET),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_model_that_makes_nan_is_named_with_site_layer_and_prompt(broken, name):
    with pytest.raises(EmotraceError, match=LOST):
        RUNS[name](broken)


def test_nothing_is_written_where_a_number_is_lost(broken, tmp_path):
    with pytest.raises(EmotraceError, match=LOST):
        et.generate(broken, PROMPTS, max_new_tokens=2, out=tmp_path / "rows.jsonl", **QUIET)
    assert not (tmp_path / "rows.jsonl").exists()
    with pytest.raises(EmotraceError, match=LOST):
        et.capture(broken, PROMPTS, "resid_post", out=tmp_path / "lost.zarr", **QUIET)
    et.capture(loaded(), PROMPTS, "resid_post", out=tmp_path / "sound.zarr", **QUIET)
    chunks = [len(list((tmp_path / f"{n}.zarr").glob("residual/residual/c.*"))) for n in ("lost", "sound")]
    assert chunks == [0, 3]


@pytest.mark.parametrize(
    "run",
    [
        lambda lm: et.capture(lm, PROMPTS, "resid_post", edits=TWICE, **QUIET),
        lambda lm: et.generate(lm, PROMPTS, TWICE, max_new_tokens=2, **QUIET),
        lambda lm: scoring.kl(lm, REPLIES, TWICE),
    ],
)
def test_edits_that_overflow_are_said_to(run):
    with pytest.raises(EmotraceError, match=TOO_MUCH):
        run(loaded())


def test_tokens_that_a_model_rules_out_are_no_fault():
    lm = model_.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer())
    head = lm._module.lm_head
    head.bias = torch.nn.Parameter(torch.where(torch.arange(tiny.VOCAB) < 60, 0.0, -torch.inf))
    rows = et.generate(lm, PROMPTS, max_new_tokens=3, **QUIET)
    assert all(len(row["token_ids"]) > 0 and max(row["token_ids"]) < 60 for row in rows)
    logits = et.capture(lm, PROMPTS, "logits", **QUIET).sel("logits").values
    assert np.isneginf(logits[:, 60:]).all()
    assert np.isfinite(logits[:, :60]).all()
    assert all(scoring.perplexity(lm, REPLIES))
    with pytest.raises(EmotraceError, match="reply to 'k0' no finite"):
        scoring.perplexity(lm, [{**PROMPTS[0], "reply_ids": [70]}])


def test_half_precision_that_is_too_small_says_so():
    lm = model_.load(tiny.build("llama").half(), tokenizer=tiny.tiny_tokenizer())
    with torch.no_grad():
        lm._module.model.layers[1].mlp.down_proj.weight.mul_(6e4)
    with pytest.raises(EmotraceError, match=r"of layer 1 is not finite.*float16 may be too small .*dtype='float32'"):
        et.capture(lm, PROMPTS[:1], "resid_post", **QUIET)


def test_what_a_reply_is_after_its_end_does_not_matter():
    ids = torch.tensor([[5, 6, 7], [5, 2, 0]])
    scores = torch.tensor([[1.0, -torch.inf], [torch.nan, 0.0]])
    assert finite(Watch(1, [2])(ids, scores), rules_out=True)
    with pytest.raises(ArithmeticError, match=r"row 1 after \[2, 0\]"):
        Watch(1, [3])(ids, scores)


V = np.random.default_rng(0).normal(size=32)
LABELLED = xr.DataArray(np.stack([V, 0 * V]), dims=("emotion", "dim"), coords={"emotion": ["fear", "joy"]})
LAYERED = xr.DataArray(np.stack([V, 0 * V]), dims=("layer", "dim"), coords={"layer": [0, 1]})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (et.Project("resid_post", layers=[0], vector=0 * V), r"edits\[0\] at layer 0: a zero vector has no direction"),
        (
            et.Project("resid_post", layers=[0], vector=LABELLED),
            "vector of 'joy' is zero: a zero vector has no direction",
        ),
        (et.Project("resid_post", layers=[0, 1], vector=LAYERED), "at layer 1: a zero vector"),
        (et.Add("resid_post", layers=[0], vector=V * (np.arange(32) > 3), units=[1, 2], scale="unit"), "zero vector"),
        (et.Add("resid_post", layers=[0], vector=V, strength=1e39), "strength 1e\\+39 .*more than float32 holds"),
        (et.Scale("resid_post", layers=[0], strength=-1e300), "more than float32 holds"),
    ],
)
def test_payloads_without_a_direction_and_strengths_beyond_the_dtype_are_refused(edit, message):
    with pytest.raises(EmotraceError, match=message):
        et.edits.check([edit], loaded().sites, PROMPTS)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_direction_is_the_same_at_every_length(size):
    want, got = (
        et.capture(
            loaded(), PROMPTS, "resid_post", layers=[1], **QUIET,
            edits=[et.Project("resid_post", layers=[1], vector=s * V, positions="all")],
        ).sel().values
        for s in (1, size)
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
