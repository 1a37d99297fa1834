"""Mixtures as edits: a hook on the output projection does the same, on every form, with padding, cache and teacher forcing."""

import contextlib

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import edits as edits_
from emotrace import labels
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.helpers import families, hooked, loaded

CAUSAL = [n for n in tiny.NAMES if tiny.FAMILIES.get(n, tiny.VARIANTS.get(n))[0].endswith(("CausalLM", "LMHeadModel"))]
EXPERTS = {"mixtral", "qwen3-moe", "deepseek-v3"}
IDS = [[11, 12, 13, 14, 15, 16], [21, 22, 23]]
MIX = {"anger": 0.5, "joy": -1.5}


def vectors(lm, site="o_proj_out", seed=0):
    layers = list(lm.sites.layers(site))
    width = lm.sites.address(site, layers[0]).width
    values = np.random.default_rng(seed).normal(size=(3, len(layers), width)).astype(np.float32)
    return xr.DataArray(
        values,
        dims=("emotion", "layer", "dim"),
        coords={"emotion": ["anger", "fear", "joy"], "layer": layers},
        attrs={"site": site},
    )


@contextlib.contextmanager
def hooks(lm, add, at, strength=1.0):
    """Every layer's output projection plus Σ w v at the positions ``at`` of each forward, by plain torch hooks."""
    with contextlib.ExitStack() as stack:
        for layer in lm.sites.layers("o_proj_out"):
            address = lm.sites.address("o_proj_out", layer)
            delta = torch.tensor(strength * add.sel(layer=layer).values)

            def change(h, delta=delta):
                h = h.clone()
                if h.ndim == 2:  # a family that flattens batch and token
                    h[at] += delta
                else:
                    h[:, at] += delta
                return h

            stack.enter_context(hooked(lm._module.get_submodule(address.path), address.side, change))
        yield


def mixed(v):
    return sum(w * v.sel(emotion=e, drop=True) for e, w in MIX.items()).astype(np.float32)


@pytest.mark.parametrize("name", families(CAUSAL, "mixtral", "opt"))
def test_a_mixture_at_the_output_projection_is_a_hook_there(name):
    """Last position only: earlier ones keep every bit, and each layer is visited once."""
    lm = loaded(name)
    if not lm.sites.has("o_proj_out"):
        pytest.skip(f"{name} has no o_proj_out")
    v = vectors(lm)
    edits = edits_.mixture(v, MIX, strength=0.7, positions="last")
    ids = torch.tensor([IDS[0]])
    with torch.no_grad():
        base = lm._module(ids).logits
        with hooks(lm, mixed(v), -1, 0.7):
            wanted = lm._module(ids).logits
    with counted() as fired:
        acts = et.capture(lm, [IDS[0]], ["logits"], positions="all", edits=edits, progress=False)
    plain = et.capture(lm, [IDS[0]], ["logits"], positions="all", progress=False).sel("logits").values
    got = acts.sel("logits").values
    if name in EXPERTS:  # tokens of one expert are multiplied together, so another's routing may change the rounding
        np.testing.assert_allclose(got[:-1], plain[:-1], atol=1e-5)
    else:
        assert (got[:-1] == plain[:-1]).all(), "positions before the edited one are bit-identical"
    scale = float((wanted - base).abs().max())
    assert scale > 1e-2
    gap = got[-1] - plain[-1]
    head = float(np.abs(plain - base[0].numpy()).max())  # families that scale or cap after the site `logits`
    if head < 1e-4:
        np.testing.assert_allclose(gap, (wanted - base)[0, -1].numpy(), atol=2e-4 * max(scale, 1))
    assert fired == [[lm.sites.n_layers]]


@contextlib.contextmanager
def counted():
    """How often each edit fired, run by run: what a run reports at its end."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits_, "refuse_silent", lambda edits, fired: seen.append(list(fired)))
        yield seen


def greedy(lm, ids, add, strength, steps):
    """Greedy tokens of one prompt under the published hook: the last position of every call, without a cache."""
    tokens = list(ids)
    with torch.no_grad():
        for _ in range(steps):
            # without a cache the hook must reach every position from the last prompt token on
            with hooks(lm, add, slice(len(ids) - 1, None), strength):
                tokens.append(int(lm._module(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(ids) :]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_generation_under_padding_with_and_without_cache(name, use_cache):
    lm = loaded(name)
    v = vectors(lm)
    edits = edits_.mixture(v, MIX, strength=0.7)
    with counted() as fired:
        rows = et.generate(lm, IDS, edits, max_new_tokens=5, min_new_tokens=5, use_cache=use_cache, progress=False)
    for row, ids in zip(rows, IDS, strict=True):
        wanted = greedy(lm, ids, mixed(v), 0.7, 5)
        assert row["token_ids"][:2] == wanted[:2], "the end token is suppressed, so later ones may differ"
    assert fired == [[lm.sites.n_layers * 5]]


@pytest.mark.parametrize("positions", ["last", "generated", "steer", "prompt", "all", (1, 4)])
def test_teacher_forcing_hits_exactly_the_positions(positions):
    lm = loaded()
    v = vectors(lm)
    prompts = [{"key": str(i), "token_ids": ids, "reply_ids": [31, 32, 33]} for i, ids in enumerate(IDS)]
    edits = edits_.mixture(v, MIX, layers=[0], positions=positions)
    base = et.capture(lm, prompts, ["o_proj_out"], positions="all", progress=False)
    moved = et.capture(lm, prompts, ["o_proj_out"], positions="all", edits=edits, progress=False)
    gap = (moved.sel("o_proj_out", layer=0).values - base.sel("o_proj_out", layer=0).values).astype(float)
    chosen = labels.positions_in
    at = 0
    for ids in IDS:
        n = len(ids) + 3
        inside = set(chosen(positions, len(ids), n))
        for i in range(n):
            wanted = mixed(v).sel(layer=0).values if i in inside else 0
            np.testing.assert_allclose(gap[at + i], wanted + np.zeros(32), atol=2e-6)
        at += n


def test_one_addition_a_layer_and_the_strength_once():
    lm = loaded()
    v = vectors(lm)
    (edit,) = edits_.mixture(v, "anger=0.5,joy=-1.5", strength=2.0)
    assert edit.strength == 2.0
    assert edit.vector.dims == ("layer", "dim")
    assert edit.vector.dtype == np.float32
    np.testing.assert_allclose(edit.vector.values, mixed(v).values, rtol=1e-6, atol=1e-7)
    lowered = edits_.lower([edit], lm.sites, [{}], [3], [5], 5, True)
    assert [len(group.operations) for group in lowered.groups] == [1, 1, 1]
    acts = [
        et.capture(lm, IDS, ["o_proj_out"], layers=[0], edits=e, progress=False).sel("o_proj_out").values
        for e in ([], [edit])
    ]
    np.testing.assert_allclose(acts[1] - acts[0], 2 * mixed(v).values[:1, None] + 0 * acts[0], atol=5e-6)


def test_sizes():
    lm = loaded()
    v = vectors(lm)
    m = mixed(v).sel(layer=1).values
    base = et.capture(lm, IDS, ["o_proj_out"], layers=[1], progress=False).sel("o_proj_out").values[0]
    length = np.linalg.norm(base, axis=-1, keepdims=True)
    for scale, wanted in (
        ("raw", 0.3 * m + 0 * base),
        ("unit", 0.3 * m / np.linalg.norm(m) + 0 * base),
        ("rms", 0.3 * length / np.sqrt(32) * m / np.linalg.norm(m)),
        ("share", 0.3 * length * m / np.linalg.norm(m)),
    ):
        edits = edits_.mixture(v, MIX, strength=0.3, scale=scale, layers=[1])
        got = et.capture(lm, IDS, ["o_proj_out"], layers=[1], edits=edits, progress=False).sel("o_proj_out").values[0]
        np.testing.assert_allclose(got - base, wanted, atol=5e-6)


def test_each_prompt_its_own_emotion_in_one_batch():
    lm = loaded()
    v = vectors(lm)
    prompts = et.datasets.Prompts.of([{"key": "a", "token_ids": IDS[0]}]).for_each(emotion=["anger", "fear", "joy"])
    rows = et.generate(lm, prompts, edits_.mixture(v, None), max_new_tokens=4, progress=False)
    for row, e in zip(rows, ("anger", "fear", "joy"), strict=True):
        (alone,) = et.generate(lm, [IDS[0]], edits_.mixture(v, {e: 1}), max_new_tokens=4, progress=False)
        assert row["token_ids"] == alone["token_ids"]


def test_what_adds_nothing_is_no_edit():
    v = vectors(loaded())
    assert edits_.mixture(v, "") == []
    assert edits_.mixture(v, "anger=1", strength=0) == []
    empty = v.copy(data=np.where(np.arange(3)[None, :, None] == 1, 0, v.values))
    (edit,) = edits_.mixture(empty, "anger=1", scale="rms")
    assert edit.layers == (0, 2)


def test_mixtures_refuse():
    v = vectors(loaded())
    for call, message in (
        (lambda: edits_.mixture(v, "angre=1"), "Did you mean 'anger'"),
        (lambda: edits_.mixture(v, "anger=1", scale="norm"), "unknown scale 'norm'"),
        (lambda: edits_.mixture(v, "anger=1", layers=[7]), "unknown layer 7"),
        (lambda: edits_.mixture(v.assign_attrs(site=""), "anger=1"), "name a site"),
        (lambda: edits_.mixture(v.isel(emotion=0), None), "no dim 'emotion'"),
    ):
        with pytest.raises(EmotraceError, match=message):
            call()
