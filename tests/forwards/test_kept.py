"""First tokens that are kept: replies, likelihoods and KL are those of prompts that are computed whole, whatever was kept before.

The twin computes everything whole (``kept_bytes = 0``), one prompt at a time.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import emotrace as et
from emotrace import scoring
from emotrace.forwards import kept
from emotrace.forwards.finite import Item
from emotrace.forwards.kept import Shared
from emotrace.testing import tiny
from emotrace.traced import runs
from emotrace.traced.kept import LATE, Kept, Part
from tests.helpers import families, loaded

STEM = list(range(20, 56))
IDS = [[*STEM, 80, 81, 82], [*STEM, 60], [*STEM, 80, 90, 91, 92, 93], [*STEM, 70, 71], [*range(80, 92)], [100, 101]]
NEW = 5
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(1)).numpy()
PLACES = ["steer", "generated", "last", "prompt", "all", (0, 3), (2, 39)]


def fresh(name="llama", **options):
    """A model of which nothing is kept."""
    model = loaded(name, **options)
    kept._KEPT.pop(model._module, None)
    return model


@contextmanager
def whole(model):
    """Everything computed whole; what was kept before is there again afterwards."""
    most, model.sites.kept_bytes = model.sites.kept_bytes, 0
    held = kept._KEPT.pop(model._module, None)
    try:
        yield model
    finally:
        model.sites.kept_bytes = most
        if held is not None:
            kept._KEPT[model._module] = held


def made(model) -> int:
    """How many passes over first tokens were computed."""
    return kept._KEPT[model._module].made if model._module in kept._KEPT else 0


def replies(model, ids=IDS, edits=(), **options):
    options = {"max_new_tokens": NEW, "progress": False} | options
    return [row["token_ids"] for row in et.generate(model, ids, list(edits), **options)]


def alone(model, ids=IDS, edits=(), **options):
    with whole(model):
        return [replies(model, [one], edits, **options)[0] for one in ids]


def add(positions, strength=3.0, vector: Any = VECTOR):
    return et.Add("resid_post", layers=[0, 1], vector=vector, strength=strength, scale="rms", positions=positions)


@pytest.mark.parametrize("positions", ["steer", "last", "generated"])
def test_edits_and_doses_begin_with_what_the_first_call_computed(positions):
    model = fresh()
    for dose in (0.5, 2.0, 4.0):
        got = replies(model, IDS, [add(positions, dose)], batch_size=4)
        assert got == alone(model, IDS, [add(positions, dose)])
        assert made(model) == 3, "one stem, what follows it in four prompts, and the others"
    assert got != replies(model, batch_size=2), "the edit changes nothing, so the test shows nothing"
    assert made(model) == 5, "other rows in a forward are another block: the four in two"


@pytest.mark.parametrize("positions", PLACES)
def test_wherever_an_edit_acts(positions):
    model = fresh()
    edits = [add(positions), et.Scale("z", layers=[0], heads=[1], strength=0.5, positions=positions)]
    assert replies(model, IDS, edits, batch_size=3) == alone(model, IDS, edits)
    assert made(model) > 0
    assert replies(model, IDS, edits, batch_size=3) != replies(model, IDS, batch_size=3)


def test_an_edit_that_acts_in_first_tokens_alone_has_fired():
    model = fresh()
    for site in ("resid_post", "final_norm", "logits"):
        layers = [2] if site == "resid_post" else None
        edits = [et.Scale(site, layers=layers, strength=0.1, positions=(0, 3))]
        for _ in range(2):  # computed, and kept
            assert replies(model, IDS, edits) == alone(model, IDS[:-1], edits) + alone(model, IDS[-1:], edits)


def test_a_payload_is_gathered_in_first_tokens_too():
    model = fresh()
    table = xr.DataArray(np.stack([VECTOR, -VECTOR]), dims=("emotion", "dim"), coords={"emotion": ["anger", "fear"]})
    prompts = [
        {"key": f"{i}{e}", "token_ids": one, "emotion": e} for i, one in enumerate(IDS[:4]) for e in ("anger", "fear")
    ]
    edits = [add("all", vector=table)]
    got = replies(model, prompts, edits, batch_size=3)
    assert got == alone(model, prompts, edits)
    assert got[0] != got[1]
    assert made(model) == 2 * 3, "for each emotion one stem, and two blocks of at most three prompts"


def test_each_block_is_computed_once_though_few_can_be_kept():
    """A batch of prompts that share nothing, in any order, would otherwise draw on all blocks, each computed for every batch."""
    model = fresh()
    ids = [[(17 * i + 31 * j) % 120 + 20 for j in range(24)] for i in range(12)]
    size = 2 * 3 * 2 * 23 * model.sites.d_model * 4  # keys and values of a block of three prompts are no more than this
    before, model.sites.kept_bytes = model.sites.kept_bytes, size
    try:
        assert replies(model, ids, batch_size=3) == alone(model, ids)
    finally:
        model.sites.kept_bytes = before
    assert made(model) == 12 // 3


@settings(max_examples=15)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 36), st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=7),
    size=st.integers(1, 5),
    places=st.lists(st.sampled_from([p for p in PLACES if p != (2, 39)]), max_size=2),
    limit=st.sampled_from([1, 9_000, 1 << 30]),
)
def test_any_prompts_batches_edits_and_limits(lengths, size, places, limit):
    model = loaded()
    draw = np.random.default_rng(len(lengths))
    prompts = [
        {"key": str(i), "token_ids": [*STEM[:a], *draw.integers(40, 150, b).tolist()]}
        | {"reply_ids": draw.integers(40, 150, n).tolist()}
        for i, (a, b, n) in enumerate(lengths)
    ]
    edits, before = [add(p, 1.0 + i) for i, p in enumerate(places)], model.sites.kept_bytes
    bare = [{"key": p["key"], "token_ids": p["token_ids"]} for p in prompts]
    try:
        model.sites.kept_bytes = limit
        got = replies(model, bare, edits, batch_size=size)
        assert model._module not in kept._KEPT or kept._KEPT[model._module].size <= limit
        scores = scoring.perplexity(model, prompts, size)
        moved = scoring.kl(model, prompts, edits, size) if any(n for *_, n in lengths) else []
    finally:
        model.sites.kept_bytes = before
    with whole(model):
        together = replies(model, bare, edits, batch_size=size)
        wanted = [scoring.perplexity(model, [p])[0] for p in prompts]
        np.testing.assert_allclose(moved, scoring.kl(model, prompts, edits, size) if len(moved) else [], atol=1e-5)
    assert got == together
    np.testing.assert_allclose([x or 0.0 for x in scores], [x or 0.0 for x in wanted], rtol=1e-4, err_msg="perplexity")


CAUSAL = [n for n in tiny.NAMES if not any(c in n for c in ("bert", "electra"))]


@pytest.mark.parametrize("name", families(CAUSAL, "mixtral", "deepseek-v3", "gpt-neo"))
def test_families_reply_token_by_token_as_they_do_whole(name):
    model = fresh(name)
    vector = np.linspace(-1, 1, model.sites.d_model)
    for positions in ("steer", "all"):
        edits = [et.Add("resid_post", layers=[1], vector=vector, strength=2.0, scale="rms", positions=positions)]
        got = replies(model, IDS, edits)
        with whole(model):
            assert got == replies(model, IDS, edits)
    assert made(model) > 0
    forced = [{"key": str(i), "token_ids": one, "reply_ids": [41, 42 + i]} for i, one in enumerate(IDS)]
    scores = scoring.reply_logprobs(model, forced)
    with whole(model):
        for one, wanted in zip(scores, scoring.reply_logprobs(model, forced), strict=True):
            np.testing.assert_allclose(one, wanted, atol=2e-4)


@pytest.mark.parametrize(("name", "window"), [("mistral", {"sliding_window": 60}), ("gpt-neo", {"window_size": 6})])
def test_a_window_is_never_reached(name, window):
    model = fresh(name, **window)
    short = [IDS[1][:20], IDS[1][1:21]]
    assert replies(model, short) == alone(model, short)
    before = made(model)
    assert (before > 0) == (name == "mistral")
    assert replies(model) == alone(model)
    assert made(model) == before, "42 tokens and more are not within half a window"


def test_what_was_kept_before_changes_no_bit():
    """So a run that was killed and repeated yields the same rows."""
    model, forced = fresh(), [{"key": str(i), "token_ids": one, "reply_ids": [41, 42]} for i, one in enumerate(IDS)]
    cold = scoring.reply_logprobs(model, forced)
    model = fresh()
    replies(model, IDS[:2])
    replies(model, IDS[::-1], [add("all")], batch_size=2)
    scoring.reply_logprobs(model, forced[:3], batch_size=2)
    for a, b in zip(cold, scoring.reply_logprobs(model, forced), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_weights_hooks_and_switches_are_another_model():
    model = fresh()
    module = model._module
    replies(model)
    before = made(model)
    layer = module.model.layers[0]
    weight = layer.mlp.down_proj.weight.detach().clone()
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(1.5)
    try:
        assert replies(model) == alone(model)
        assert made(model) == 2 * before
    finally:
        with torch.no_grad():
            layer.mlp.down_proj.weight.copy_(weight)
    handle = layer.register_forward_hook(lambda m, a, out: out * 1.5)
    try:
        assert replies(model) == alone(model)
        assert made(model) == 3 * before
    finally:
        handle.remove()


def through_data(module):
    """As PEFT merges an adapter: no counter of torch's moves."""
    module.model.layers[0].mlp.down_proj.weight.data += 0.5


def of_an_adapter(module):
    module.model.layers[0].mlp.scaling["default"] = 2.0


@pytest.mark.parametrize("change", [through_data, of_an_adapter])
def test_weights_changed_through_data_and_settings_in_containers_are_another_model(change):
    model = fresh()
    mlp = model._module.model.layers[0].mlp
    weight, mlp.scaling = mlp.down_proj.weight.detach().clone(), {"default": 1.0}
    try:
        replies(model)
        before = made(model)
        change(model._module)
        assert replies(model) == alone(model)
        assert made(model) == 2 * before
    finally:
        mlp.down_proj.weight.data.copy_(weight)
        del mlp.scaling


def test_of_what_a_users_own_code_changes_nothing_is_kept():
    """What a hook or a forward closes over may be another thing in the next call."""
    model, factor = fresh(), [1.0]
    mlp = model._module.model.layers[0].mlp
    plain = mlp.forward

    def forward(x):
        return plain(x) * factor[0]

    def scaled(module, given, out):
        return out * factor[0]

    for enter, leave in (
        (lambda: mlp.register_forward_hook(scaled), lambda handle: handle.remove()),
        (lambda: setattr(mlp, "forward", forward), lambda _: setattr(mlp, "forward", plain)),
    ):
        factor[0] = 1.0
        handle = enter()
        try:
            without = replies(model)
            factor[0] = 6.0
            assert replies(model) == alone(model) != without
        finally:
            leave(handle)


def test_likelihood_begins_with_what_generation_computed():
    model = fresh()
    rows = et.generate(model, IDS, max_new_tokens=NEW, min_new_tokens=NEW, progress=False)
    before = made(model)
    forced = [
        {"key": r["key"], "token_ids": one, "reply_ids": r["token_ids"]} for r, one in zip(rows, IDS, strict=True)
    ]
    scoring.perplexity(model, forced)
    scoring.kl(model, forced, [add("steer")])
    assert made(model) == before


def test_equal_prompts_and_replies_are_compared_with_one_forward(monkeypatch):
    model = fresh()
    real, rows = runs.capture, []

    def capture(model, inputs, *args, **options):
        rows.append(len(inputs["input_ids"]))
        return real(model, inputs, *args, **options)

    monkeypatch.setattr(runs, "capture", capture)
    table = xr.DataArray(np.stack([VECTOR, 0 * VECTOR]), dims=("emotion", "dim"), coords={"emotion": ["anger", "fear"]})
    forced = [
        {"key": f"{i}{e}", "token_ids": one, "reply_ids": [41, 42, 43], "emotion": e}
        for i, one in enumerate(IDS)
        for e in ("anger", "fear")
    ]
    edits = [et.Add("resid_post", layers=[0], vector=table, positions="steer", scale="raw", strength=3.0)]
    got = scoring.kl(model, forced, edits)
    assert rows[-2:] == [len(IDS), 2 * len(IDS)]
    with whole(model):
        want = [float(scoring.kl(model, [one], edits)[0]) for one in forced]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert (got[0::2] > 1e-3).all()


def test_rows_of_a_finished_log_cost_no_forward(tmp_path, monkeypatch):
    model = fresh()
    prompts = [{"key": f"s{i}__neutral", "token_ids": one} for i, one in enumerate(IDS)]
    plain = {p.key: p for p in et.datasets.Prompts.of(prompts)}
    options = {"max_new_tokens": NEW, "progress": False, "out": tmp_path / "rows.jsonl"}
    rows = et.generate(model, prompts, [add("steer")], **options)
    for row in rows:
        row["prompt"] = row["key"]
    scoring.add_perplexity(model, rows, plain, progress=False)
    want = [row["meta"]["perplexity"] for row in rows]

    def refused(*_, **__):
        raise AssertionError("a forward")

    for name in ("capture", "generate"):
        monkeypatch.setattr(runs, name, refused)
    again = et.generate(model, prompts, [add("steer")], **options)
    assert [row["token_ids"] for row in again] == [row["token_ids"] for row in rows]
    scoring.add_perplexity(model, rows, plain, progress=False)
    assert [row["meta"]["perplexity"] for row in rows] == want
    with pytest.raises(AssertionError, match="a forward"):
        scoring.add_perplexity(model, [{**rows[0], "token_ids": [44]}], plain, progress=False)


def part(n: int) -> Part:
    return Part([(torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1)), None], [])


def test_those_that_no_call_used_of_late_go_and_bytes_are_counted():
    some = Kept(100)
    for name, n in (("a", 5), ("b", 5)):
        some.put(name, part(n))
    assert some.size == 80 == sum(p.size for p in some.parts.values())
    some.put("c", part(7))
    assert list(some.parts) == ["a", "b"], "what a call goes through in turn does not push out what it began with"
    for _ in range(LATE):
        some.call(100)
    assert some.get("a") is not None
    some.put("c", part(7))
    assert list(some.parts) == ["a", "c"]
    assert some.size == sum(p.size for p in some.parts.values()) == 96
    some.put("d", part(50))
    assert list(some.parts) == ["a", "c"], "what does not fit alone pushes nothing out"
    assert some.get("b") is None
    some.put("e", part(5), prefix=True)
    assert list(some.parts) == ["c", "e"], "for what whole blocks begin with others go"
    some.within(60)
    assert list(some.parts) == list(some.used) == ["e"]


def test_the_limit_holds_the_bytes_of_keys_and_values():
    model = fresh()
    replies(model)
    known = kept._KEPT[model._module]
    tokens = (len(STEM) - 1) + 4 * 5 + 2 * 11  # what all share; what follows it, padded; two others, padded
    config = model._module.config
    per = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert known.size == tokens * per
    before, model.sites.kept_bytes = model.sites.kept_bytes, known.size - 1
    try:
        assert replies(model, IDS, [add("steer")], batch_size=2) == alone(model, IDS, [add("steer")])
        assert kept._KEPT[model._module].size < tokens * per
    finally:
        model.sites.kept_bytes = before


def test_short_prompts_masked_models_and_no_limit_share_nothing():
    model = fresh()
    for ids, limit in (([[11, 12, 13]], 1 << 30), (IDS, 0)):
        before, model.sites.kept_bytes = model.sites.kept_bytes, limit
        shared = Shared(model, [Item(str(i), one) for i, one in enumerate(ids)], [], 30, 4)
        model.sites.kept_bytes = before
        assert not shared.on
        assert shared.begun([0]) is None
    assert not kept.allowed(loaded("bert"), 10)


def ended_at(model, ids, edits=(), **options):
    """Tokens of which one ends four of the replies, each somewhere else, and none the last two."""
    rows = replies(model, ids, edits, **options | {"min_new_tokens": options["max_new_tokens"]})
    free = [set(row) - set().union(*rows[-2:]) for row in rows[:4]]
    ends = [next(t for t in rows[i][i:] if t in own) for i, own in enumerate(free)]
    return [next((n for n, t in enumerate(row) if t in ends), len(row)) for row in rows], ends


@pytest.mark.parametrize("least", [0, 3])
def test_rows_that_ended_leave(monkeypatch, least):
    model = fresh()
    table = xr.DataArray(np.stack([VECTOR, -VECTOR]), dims=("emotion", "dim"), coords={"emotion": ["anger", "fear"]})
    prompts = [
        {"key": f"{i}{e}", "token_ids": one, "emotion": e} for i, one in enumerate(IDS) for e in ("anger", "fear")
    ]
    edits = [
        add("steer", 0.5, table),
        et.Scale("resid_post", layers=[2], vector=0.05 * table + 1, positions="all"),
        add((3, 39)),
    ]
    options = {"max_new_tokens": 12, "min_new_tokens": least, "repetition_penalty": 1.1, "no_repeat_ngram_size": 4}
    real, sizes = runs.generate, []

    def counted(model, one):
        sizes.append(len(one.inputs["input_ids"]))
        return real(model, one)

    monkeypatch.setattr(runs, "generate", counted)
    for some, asked in ((edits, prompts), ([], IDS)):
        _, ends = ended_at(model, asked, some, **options)
        monkeypatch.setattr(model._module.generation_config, "eos_token_id", ends)
        sizes.clear()
        got = et.generate(model, asked, some, progress=False, **options)
        assert sizes[0] == len(asked)
        assert len(sizes) > 1
        assert all(2 * b <= a for a, b in pairwise(sizes)), "a pass ends with half of its rows"
        with whole(model):
            want = [et.generate(model, [one], some, progress=False, **options)[0] for one in asked]
        for a, b in zip(got, want, strict=True):
            assert (a["token_ids"], a["meta"]["stopped"]) == (b["token_ids"], b["meta"]["stopped"])


def test_a_row_without_a_next_token_is_named_after_others_left(monkeypatch):
    model = fresh()
    lengths, ends = ended_at(model, IDS, max_new_tokens=12)
    monkeypatch.setattr(model._module.generation_config, "eos_token_id", ends)
    last = len(IDS) - 1
    assert lengths[last] == 12 > 10 > sorted(lengths)[len(IDS) // 2 - 1]
    stop = len(IDS[last]) + 10
    huge = xr.DataArray(np.stack([0 * VECTOR, 0 * VECTOR + 3e38]), dims=("who", "dim"), coords={"who": ["a", "b"]})
    edits = [et.Add("resid_post", layers=[1], vector=huge, positions=(stop, stop + 1))] * 2
    asked = [{"key": str(i), "token_ids": one, "who": "ab"[i == last]} for i, one in enumerate(IDS)]
    with pytest.raises(et.EmotraceError, match=rf"token 11 of the reply to '{last}'"):
        replies(model, asked, edits, max_new_tokens=12)


def test_what_is_computed_faster_than_kept_is_not_kept(monkeypatch):
    found = []
    for worth in (0, 1e9):
        monkeypatch.setattr(kept, "WORTH", worth)
        model = fresh()
        found.append(et.generate(model, IDS, max_new_tokens=NEW, progress=False))
        assert bool(made(model)) == (worth == 0)
    assert [row["token_ids"] for row in found[0]] == [row["token_ids"] for row in found[1]]
