"""Captured values are those of one prompt at a time, whatever the batch, the order, the padding and the neighbours."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

import emotrace as et
from emotrace.forwards.capturing.prefixes import prefixes
from emotrace.labels import EmotraceError, positions_in
from tests.helpers import loaded

SITES = (
    "resid_pre",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
    "z",
    "neuron",
    "neuron_pre",
    "final_norm",
    "logits",
)


def alone(lm, ids, site, layer):
    """The value of one un-padded prompt, read in an ordinary nnsight trace."""
    with (
        torch.no_grad(),
        lm.trace({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}),
    ):
        value = lm.sites.read(site, layer).save()
    return value[0].numpy()


sequences = st.lists(st.lists(st.integers(10, 150), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ids=sequences, policy=st.sampled_from(["last", "all", (0, 2)]), batch=st.integers(1, 4), shared=st.integers(0, 9)
)
def test_values_equal_one_prompt_at_a_time(ids, policy, batch, shared):
    lm = loaded()
    ids = [[7] * shared + s for s in ids]
    acts = et.capture(lm, ids, ("resid_post", "z"), positions=policy, batch_size=batch, progress=False)
    for i, s in enumerate(ids):
        wanted = list(positions_in(policy, len(s), len(s)))
        x = acts.sel(key=str(i), layer=1, sublayer="resid_post")
        assert x.position.values.tolist() == wanted
        np.testing.assert_allclose(x.values, alone(lm, s, "resid_post", 1)[wanted], atol=2e-5)
        z = acts.sel("z", key=str(i), layer=2)
        np.testing.assert_allclose(z.values.reshape(len(wanted), -1), alone(lm, s, "z", 2)[wanted], atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "gemma2", "opt", "qwen3-moe", "bert", "modernbert"])
def test_every_site_of_a_family_in_one_capture(name):
    lm = loaded(name)
    sites = [s for s in SITES if lm.sites.has(s)]
    ids = [list(range(20, 20 + n)) for n in (6, 3, 9)]
    acts = et.capture(lm, ids, sites, positions="all", batch_size=2, progress=False)
    for site in sites:
        layer = lm.sites.layers(site)[-1] if lm.sites.layers(site) else None
        for i, s in enumerate(ids):
            if site in et.SUBLAYERS:
                got = acts.sel(key=str(i), layer=layer, sublayer=site)
            else:
                got = acts.sel(site, key=str(i), **({} if layer is None else {"layer": layer}))
            np.testing.assert_allclose(
                got.values.reshape(len(s), -1), alone(lm, s, site, layer), atol=3e-5, err_msg=f"{site} {i}"
            )


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma3", "phi", "bloom"])
def test_shared_prefixes_change_nothing(name):
    lm = loaded(name)
    start = list(range(30, 46))
    ids = [start + [50 + i, 60 + i] + [70] * (i % 3) for i in range(6)] + [[80, 81, 82]]
    shared = et.capture(lm, ids, ("resid_post",), batch_size=4, progress=False)
    plain = et.capture(lm, ids, ("resid_post",), batch_size=4, share_prefixes=False, progress=False)
    np.testing.assert_allclose(shared.residual.values, plain.residual.values, atol=2e-5)


def test_stems_cover_every_prompt_once_and_are_shared():
    a, b = list(range(20)), [0, 1, *range(50, 70)]
    ids = (
        [[*a, 100 + i] for i in range(5)] + [[*b, 200 + i] for i in range(5)] + [[7, 8]]
    )  # two prefixes behind a fork at 2
    found = prefixes(ids, [len(s) - 1 for s in ids])
    assert sorted(i for s in found for i in s.members) == list(range(11))
    assert {(s.length, len(s.members)) for s in found} == {(20, 5), (22, 5), (0, 1)}
    for prefix in found:
        assert len({tuple(ids[i][: prefix.length]) for i in prefix.members}) == 1


def test_nothing_after_the_last_wanted_site_is_computed():
    lm = loaded()
    ran = []
    handles = [m.register_forward_hook(lambda *_, p=p: ran.append(p)) for p, m in lm._module.named_modules() if p]
    try:
        et.capture(lm, [[11, 12, 13]], ("resid_post",), layers=[0], progress=False)
    finally:
        for handle in handles:
            handle.remove()
    assert "model.layers.0.mlp.down_proj" in ran
    assert not any(p.startswith("model.layers.1") or p == "lm_head" for p in ran)


def test_replies_are_teacher_forced_and_labelled():
    lm = loaded()
    prompts = [
        {"key": "a", "token_ids": [11, 12, 13], "reply_ids": [40, 41], "emotion": "fear"},
        {"key": "b", "token_ids": [15, 16], "emotion": "anger"},
    ]
    acts = et.capture(lm, prompts, ("resid_post",), positions="steer", progress=False)
    assert acts.tokens[["key", "position", "position_from_end", "token_id", "emotion"]].values.tolist() == [
        ["a", 2, -1, 13, "fear"], ["a", 3, 0, 40, "fear"], ["a", 4, 1, 41, "fear"], ["b", 1, -1, 16, "anger"],
    ]  # fmt: skip
    np.testing.assert_allclose(
        acts.sel(key="a", layer=2, sublayer="resid_post").values,
        alone(lm, [11, 12, 13, 40, 41], "resid_post", 2)[2:],
        atol=2e-5,
    )


def test_a_place_of_the_users_own_is_stored(tmp_path):
    lm = loaded()
    place = et.Site("model.layers.1.mlp.gate_proj")
    acts = et.capture(lm, [[11, 12, 13, 14]], [place], positions="all", out=tmp_path / "a.zarr", progress=False)
    assert acts.sel(place.name).shape == (4, 48)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gpt2", "gemma2"])
def test_places_of_the_users_own_are_read_where_their_modules_run(family):
    lm, ids = loaded(family), [11, 12, 13, 14]
    own = sorted(
        p for p, m in lm._module.named_modules()
        if isinstance(m, (torch.nn.Linear, Conv1D)) and p != lm.sites.address("logits").path
    )  # fmt: skip
    assert len(own) > 4
    places = [et.Site(p, side) for p in own[::-1] for side in ("output", "input")]
    want = {}
    handles = [
        lm._module.get_submodule(p).register_forward_hook(
            lambda _, args, out, p=p: want.update({f"{p}:input": args[0], f"{p}:output": out})
        )
        for p in own
    ]
    try:
        with torch.no_grad():
            lm._module(input_ids=torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    first, second = len(places) // 3, 2 * len(places) // 3
    wanted = ["resid_post", *places[:first], "logits", *places[first:second], "embed", *places[second:], "neuron"]
    wanted = [s for s in wanted if isinstance(s, et.Site) or lm.sites.has(s)]
    acts = et.capture(lm, [ids], wanted, positions="all", progress=False)
    for place in places:
        np.testing.assert_allclose(
            acts.sel(place.name).values, want[place.name][0].numpy(), atol=2e-5, err_msg=place.name
        )
    edit = et.Add(places[0], vector=torch.ones(acts.sel(places[0].name).shape[-1]), positions="all")
    edited = et.capture(lm, [ids], [*wanted[::-1]], positions="all", edits=[edit], progress=False)
    assert not np.array_equal(edited.sel("logits").values, acts.sel("logits").values)


def test_a_place_whose_module_the_probe_did_not_run_is_due_before_the_module_around_it_ends(monkeypatch):
    lm = loaded()
    before = lm.sites.moments
    monkeypatch.setattr(lm.sites, "moments", {p: m for p, m in before.items() if "mlp." not in p})
    place = et.Site("model.layers.1.mlp.gate_proj")
    start, end = before["model.layers.1.mlp"]
    assert start < lm.sites.resolve(place).order < end
    acts = et.capture(lm, [[11, 12, 13]], ["resid_post", place, "logits"], positions="all", progress=False)
    monkeypatch.undo()
    want = et.capture(lm, [[11, 12, 13]], [place], positions="all", progress=False).sel(place.name)
    np.testing.assert_array_equal(acts.sel(place.name).values, want.values)


def test_bfloat16_is_stored_without_loss(tmp_path):
    lm = et.load(loaded()._module.__class__(loaded()._module.config).to(torch.bfloat16).eval())
    acts = et.capture(lm, [[11, 12, 13]], ("resid_post",), positions="all", out=tmp_path / "a.zarr", progress=False)
    with (
        torch.no_grad(),
        lm.trace({"input_ids": torch.tensor([[11, 12, 13]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}),
    ):
        h = lm.sites.read("resid_post", 2).save()
    assert np.array_equal(acts.sel(layer=2, sublayer="resid_post").values, h[0].float().numpy())


def test_dry_run_says_rows_and_bytes_and_writes_nothing(tmp_path):
    dry = et.capture.plan(loaded(), [[11, 12, 13]] * 1, ("resid_post",), positions="all", out=tmp_path / "a.zarr")
    assert (dry.rows, dry.prompts, dry.tokens) == (3, 1, 3)
    assert dry.bytes == 3 * 3 * 32 * 4
    assert not (tmp_path / "a.zarr").exists()


def big_capture(path):
    ids = [[10 + (i * 7 + j) % 140 for j in range(3 + i % 9)] for i in range(60)]
    return et.capture(
        loaded(),
        ids,
        ("resid_mid", "resid_post", "z"),
        positions="all",
        out=path,
        row_group_bytes=40_000,
        batch_size=4,
        progress=False,
    )


def files(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and "lock" not in p.name
    }


def test_a_capture_killed_at_any_moment_and_repeated_is_bit_identical(tmp_path):
    loaded()
    began = time.monotonic()
    big_capture(tmp_path / "whole.zarr")
    took = time.monotonic() - began
    torn = tmp_path / "torn.zarr"
    kills, rng = 0, np.random.default_rng(0)
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                big_capture(torn)
            finally:
                os._exit(0)
        time.sleep(float(rng.uniform(0.1, 0.7)) * took / 3)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        if kills >= 4:
            break
    assert kills >= 3
    acts = big_capture(torn)
    assert acts.complete
    assert et.store.verify(torn) == []
    whole, again = files(tmp_path / "whole.zarr"), files(torn)
    assert whole.keys() == again.keys()
    assert [name for name in whole if whole[name] != again[name]] == []


ERRORS = {
    "no prompts": ({"prompts": []}, "no prompts"),
    "empty prompt": ({"prompts": [""]}, "empty"),
    "no sites": ({"sites": ()}, "at least one site"),
    "twice": ({"sites": ("z", "z")}, "twice"),
    "unknown site": ({"sites": ("resid_pots",)}, "Did you mean 'resid_post'"),
    "pattern": ({"sites": ("attn_pattern",)}, "shown, not stored"),
    "layer": ({"layers": [7]}, "layers are 0 to 2"),
    "generated": ({"positions": "generated"}, "carry replies"),
    "policy": ({"positions": "lat"}, "unknown position policy"),
    "nothing selected": ({"positions": (50, 60)}, "no position"),
    "too long": ({"prompts": [[11] * 4000]}, "at most"),
    "batch": ({"batch_size": 0}, "at least 1"),
    "own place": ({"sites": [et.Site("model.layers.0.nope")]}, "no module"),
    "edit": ({"edits": [et.Scale("resid_post", layers=[9])]}, "layers are 0 to 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_before_anything_is_written(case, tmp_path):
    options, message = ERRORS[case]
    given_ = {"prompts": [[11, 12]], "sites": ("resid_post",), **options}
    prompts = given_.pop("prompts")
    with pytest.raises(EmotraceError, match=message):
        et.capture(loaded(), prompts, out=tmp_path / "a.zarr", progress=False, **given_)
    assert not (tmp_path / "a.zarr").exists()


def test_a_store_of_other_settings_is_refused(tmp_path):
    et.capture(loaded(), [[11, 12]], ("resid_post",), out=tmp_path / "a.zarr", progress=False)
    with pytest.raises(EmotraceError, match="positions"):
        et.capture(loaded(), [[11, 12]], ("resid_post",), positions="all", out=tmp_path / "a.zarr", progress=False)
