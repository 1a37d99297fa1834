"""Edits as data: checks before anything runs, arithmetic against plain torch, files."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import edits as edits_
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.helpers import hooked, loaded

V = torch.randn(32, generator=torch.Generator().manual_seed(2))
IDS = [[11, 12, 13, 14, 15], [21, 22, 23]]


def logits_with(lm, edits, site="logits", **options):
    acts = et.capture(lm, IDS, [site], positions="all", edits=edits, progress=False, **options)
    return torch.tensor(acts.sel(site).values)


def logits_hooked(lm, path, side, change):
    with hooked(lm._module.get_submodule(path), side, change), torch.no_grad():
        return torch.cat([lm._module(torch.tensor([ids])).logits[0] for ids in IDS])


CASES = {
    "scale": (et.Scale("mlp_out", layers=[1], strength=0.3, positions="all"), "model.layers.1.mlp", "output", lambda h: 0.3 * h),
    "ablate": (
        et.Ablate("neuron", layers=[0], units=[3, 5], positions="all"), "model.layers.0.mlp.down_proj", "input",
        lambda h: h * torch.tensor([0.0 if i in (3, 5) else 1.0 for i in range(h.shape[-1])]),
    ),
    "scale by units": (
        et.Scale("neuron", layers=[1], units=[7, 2], strength=2.0, vector=[0.25, 0.5], positions="all"),
        "model.layers.1.mlp.down_proj", "input",
        lambda h: h * torch.tensor([{7: 0.5, 2: 1.0}.get(i, 1.0) for i in range(h.shape[-1])]),
    ),
    "head": (
        et.Ablate("z", layers=[2], heads=[1], positions="all"), "model.layers.2.self_attn.o_proj", "input",
        lambda h: h * torch.tensor([0.0 if 8 <= i < 16 else 1.0 for i in range(32)]),
    ),
    "constant": (
        et.Ablate("resid_post", layers=[0], vector=V, positions="all"), "model.layers.0", "output",
        lambda h: V.expand_as(h),
    ),
    "project": (
        et.Project("attn_out", layers=[1], vector=V, positions="all"), "model.layers.1.self_attn", "output",
        lambda h: h - (h @ V)[..., None] / (V @ V) * V,
    ),
    "add": (
        et.Add("o_proj_out", layers=[1], vector=V, positions="all"), "model.layers.1.self_attn.o_proj", "output",
        lambda h: h + V,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_arithmetic_equals_a_hook(case):
    lm = loaded()
    edit, path, side, change = CASES[case]
    expected = logits_hooked(lm, path, side, change)
    torch.testing.assert_close(logits_with(lm, [edit]), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, logits_with(lm, []), atol=1e-3)


@pytest.mark.parametrize(("site", "path"), [("o_proj_out", "self_attn.o_proj"), ("resid_mid", "self_attn")])
def test_an_addition_to_bfloat16_is_one_in_float32_rounded_once(site, path):
    """Two edits and a vector whose last bits bfloat16 does not hold: what a hook makes of their sum, to the bit."""
    lm = et.load(tiny.build("llama").to(torch.bfloat16), tokenizer=tiny.tiny_tokenizer())
    other = torch.randn(32, generator=torch.Generator().manual_seed(3))
    edits = [et.Add(site, layers=[1], vector=v, strength=s, positions="all") for v, s in ((V, 0.3), (other, 1.7))]
    total = 0.3 * V + 1.7 * other

    def once(h):
        return (h.float() + total).to(h.dtype)

    def rounded_before(h):
        return h + total.to(h.dtype)

    found = logits_with(lm, edits, batch_size=1, share_prefixes=False)
    path = f"model.layers.1.{path}"
    assert (found == logits_hooked(lm, path, "output", once).float()).all()
    assert (found != logits_hooked(lm, path, "output", rounded_before).float()).any()


def test_edits_at_one_site_apply_in_order_and_rms_uses_the_value_before_them():
    lm = loaded()
    edits = [
        et.Scale("resid_post", layers=[1], strength=2.0, positions="all"),
        et.Add("resid_post", layers=[1], vector=V, strength=3.0, scale="rms", positions="all"),
    ]

    def change(h):
        return 2 * h + 3 * h.pow(2).mean(-1, keepdim=True).sqrt() * V / V.norm()

    torch.testing.assert_close(
        logits_with(lm, edits), logits_hooked(lm, "model.layers.1", "output", change), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "minicpm3", "granite"])
def test_resid_mid_is_edited_at_the_attention_output(name):
    lm = loaded(name)
    edits = [et.Add("resid_mid", layers=[1], vector=V, strength=0.7, positions="all")]
    got = et.capture(lm, IDS, ["resid_mid"], positions="all", edits=edits, progress=False).sel(
        layer=1, sublayer="resid_mid"
    )
    base = et.capture(lm, IDS, ["resid_mid"], positions="all", progress=False).sel(layer=1, sublayer="resid_mid")
    np.testing.assert_allclose(got.values - base.values, np.broadcast_to(0.7 * V.numpy(), base.shape), atol=3e-5)


def test_a_place_of_the_users_own_is_edited():
    lm = loaded()
    place = et.Site("model.layers.1.mlp.gate_proj")
    edit = et.Add(place, vector=torch.ones(48), positions="all")
    expected = logits_hooked(lm, "model.layers.1.mlp.gate_proj", "output", lambda h: h + 1)
    torch.testing.assert_close(logits_with(lm, [edit]), expected, atol=2e-5, rtol=1e-4)


def test_a_payload_may_hold_the_edited_heads_or_units_only_in_their_order():
    lm = loaded()
    part = torch.arange(1.0, 17.0)
    whole = torch.zeros(32)
    whole[16:24], whole[0:8] = part[:8], part[8:]
    expected = logits_with(lm, [et.Add("z", layers=[1], vector=whole, positions="all")])
    for edit in (
        et.Add("z", layers=[1], heads=[2, 0], vector=part, positions="all"),
        et.Add("z", layers=[1], heads=[2, 0], vector=whole, positions="all"),
        et.Add("z", layers=[1], heads=[2, 0], vector=part.reshape(2, 8).numpy().ravel(), positions="all"),
    ):
        torch.testing.assert_close(logits_with(lm, [edit]), expected, atol=2e-5, rtol=1e-4)
    plain = logits_with(
        lm, [et.Ablate("neuron", layers=[0], units=[5, 3], vector=torch.tensor([1.0, -2.0]), positions="all")]
    )
    constant = torch.zeros(48)
    constant[5], constant[3] = 1.0, -2.0
    other = logits_with(lm, [et.Ablate("neuron", layers=[0], units=[3, 5], vector=constant, positions="all")])
    torch.testing.assert_close(plain, other)
    with pytest.raises(EmotraceError, match=r"shape \(8,\).*width 32, 16 of it edited"):
        edits_.check([et.Add("z", layers=[1], heads=[2, 0], vector=part[:8])], lm.sites)


def test_a_payload_whose_coordinates_number_heads_or_units_is_taken_by_name():
    lm = loaded()
    z = xr.DataArray(np.arange(1.0, 33.0).reshape(4, 8), dims=("head", "head_dim"), coords={"head": range(4)})
    expected = logits_with(lm, [et.Add("z", layers=[1], heads=[2, 0], vector=z.values.ravel(), positions="all")])
    for vector in (z.isel(head=[3, 2, 1, 0]), z.sel(head=[0, 2]), z.sel(head=[3, 0, 2])):
        edit = et.Add("z", layers=[1], heads=[2, 0], vector=vector, positions="all")
        assert torch.equal(logits_with(lm, [edit]), expected)
    with pytest.raises(EmotraceError, match=r"unknown head 2 in edits\[0\]: the payload"):
        edits_.check([et.Add("z", layers=[1], heads=[2, 0], vector=z.sel(head=[0, 3]))], lm.sites)
    unit = xr.DataArray([1.0, -2.0], {"unit": [5, 3]}, ["unit"])
    edit = et.Ablate("neuron", layers=[0], units=[3, 5], vector=unit, positions="all")
    own = et.Ablate("neuron", layers=[0], units=[5, 3], vector=[1.0, -2.0], positions="all")
    assert torch.equal(logits_with(lm, [edit]), logits_with(lm, [own]))


def test_a_scale_takes_each_prompt_s_own_factors_at_its_positions_only():
    lm = loaded()
    factors = xr.DataArray([[0.0, 2.0], [0.5, 1.0]], dims=("mask", "unit"), coords={"mask": [3, 8]})
    edit = et.Scale("neuron", layers=[1], units=[4, 2], vector=factors, positions="last")
    prompts = [{"key": str(i), "token_ids": ids, "mask": m} for i, (ids, m) in enumerate(zip(IDS, (8, 3), strict=True))]
    plain = et.capture(lm, prompts, "neuron", positions="all", progress=False).sel("neuron", layer=1)
    got = et.capture(lm, prompts, "neuron", positions="all", edits=[edit], progress=False).sel("neuron", layer=1)
    expected = plain.values.copy()
    expected[np.ix_([4, 7], [4, 2])] *= [[0.5, 1.0], [0.0, 2.0]]
    np.testing.assert_allclose(got.values, expected, atol=1e-6)
    assert edits_.edits_digest([edit]) != edits_.edits_digest(
        [et.Scale("neuron", layers=[1], units=[4, 2], positions="last")]
    )


@pytest.mark.parametrize("label", ["emotion", "row"])
def test_an_ablation_takes_each_prompt_s_own_values(label):
    lm = loaded()
    values = xr.DataArray(
        [[0.5, -1.0], [2.0, 3.0], [9.0, 9.0]], dims=(label, "unit"), coords={label: ["fear", "anger", "joy"]}
    )
    edit = et.Ablate("neuron", layers=[1], units=[4, 2], vector=values, positions="last")
    prompts = [
        {"key": str(i), "token_ids": ids, label: e}
        for i, (ids, e) in enumerate(zip(IDS, ("anger", "fear"), strict=True))
    ]
    got = et.capture(lm, prompts, "neuron", edits=[edit], progress=False).sel("neuron", layer=1).values
    np.testing.assert_allclose(got[:, [4, 2]], [[2.0, 3.0], [0.5, -1.0]])
    base = et.capture(lm, prompts, "neuron", progress=False).sel("neuron", layer=1).values
    np.testing.assert_allclose(np.delete(got, [2, 4], axis=1), np.delete(base, [2, 4], axis=1), atol=1e-6)


ERRORS = {
    "slice": (lambda: et.Add("resid_post", layers=slice(1, 3), vector=V), r"range\(1, 4\)"),
    "no vector": (lambda: et.Add("resid_post", layers=[1]), "needs a vector"),
    "scale": (lambda: et.Add("resid_post", layers=[1], vector=V, scale="rsm"), "Did you mean 'rms'"),
    "strength": (lambda: et.Add("resid_post", layers=[1], vector=V, strength=float("nan")), "finite"),
    "policy": (lambda: et.Add("resid_post", layers=[1], vector=V, positions="lst"), "Did you mean 'last'"),
    "span": (lambda: et.Add("resid_post", layers=[1], vector=V, positions=(4, 2)), "half-open"),
    "empty layers": (lambda: et.Add("resid_post", layers=[], vector=V), "empty"),
    "origin": (lambda: et.Scale("resid_post", layers=[0], origin="mine"), "origin='mine'"),
    "bool layer": (lambda: et.Scale("resid_post", layers=[True]), "whole number"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_description_is_refused_when_it_is_written(case):
    make, message = ERRORS[case]
    with pytest.raises(EmotraceError, match=message):
        make()


MISFITS = {
    "layer": (et.Scale("resid_post", layers=[3]), "layers are 0 to 2"),
    "site": (et.Scale("resid_pst", layers=[0]), "Did you mean 'resid_post'"),
    "no layers": (et.Scale("resid_post"), "needs layers"),
    "head": (et.Ablate("z", layers=[0], heads=[4]), "heads 0 to 3"),
    "heads elsewhere": (et.Ablate("neuron", layers=[0], heads=[0]), "heads belong to site 'z'"),
    "heads and units": (et.Ablate("z", layers=[0], heads=[0], units=[9]), "one or the other"),
    "unit": (et.Ablate("neuron", layers=[0], units=[48]), "units 0 to 47"),
    "width": (et.Add("resid_post", layers=[0], vector=V[:5]), r"shape \(5,\)"),
    "nan": (et.Add("resid_post", layers=[0], vector=V * float("nan")), "NaN"),
    "zero": (et.Add("resid_post", layers=[0], vector=V * 0, scale="unit"), "zero vector"),
    "sublayer": (
        et.Add("resid_mid", layers=[0], vector=xr.DataArray(V.numpy(), dims="dim", coords={"sublayer": "resid_post"})),
        "belongs to 'resid_post'",
    ),
    "payload layer": (
        et.Add(
            "resid_post",
            layers=[2],
            vector=xr.DataArray(np.ones((2, 32)), dims=("layer", "dim"), coords={"layer": [0, 1]}),
        ),
        "unknown layer in the payload 2",
    ),
    "label": (
        et.Add(
            "resid_post",
            layers=[0],
            vector=xr.DataArray(np.ones((1, 32)), dims=("emotion", "dim"), coords={"emotion": ["fear"]}),
        ),
        "unknown emotion of a prompt",
    ),
    "own place": (et.Scale(et.Site("model.layers.9.mlp")), "no module 'model.layers.9.mlp'"),
    "read-only": (et.Scale("attn_pattern", layers=[0]), "read-only"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_refused_before_anything_runs(case):
    edit, message = MISFITS[case]
    with pytest.raises(EmotraceError, match=message):
        edits_.check([edit], loaded(attn_implementation="eager").sites, [{"emotion": "anger"}])


def test_an_edit_outside_a_list_is_refused():
    with pytest.raises(EmotraceError, match="list of edits"):
        edits_.check(et.Scale("resid_post", layers=[0]), loaded().sites)


@dataclass(frozen=True)
class Rotate(edits_.Scale):
    """A kind that nothing computes."""

    kind = "rotate"


def test_a_kind_without_arithmetic_or_a_place_in_files_is_refused(tmp_path):
    edit = Rotate("resid_post", layers=[0])
    with pytest.raises(EmotraceError, match=r"unknown kind 'rotate' in edits\[0\] \(Rotate\).*project"):
        edits_.check([edit], loaded().sites)
    with pytest.raises(EmotraceError, match=r"unknown edit 'Rotate' in save_edits\(edits\[0\]\)"):
        edits_.save_edits([edit], tmp_path / "edits")
    assert not (tmp_path / "edits").exists()


def test_edits_survive_their_files(tmp_path):
    table = xr.DataArray(
        np.random.default_rng(0).normal(size=(2, 32)), dims=("emotion", "dim"), coords={"emotion": ["anger", "fear"]}
    )
    edits = [
        et.Add("resid_post", layers=range(2), vector=table, strength=1.5, scale="rms", positions=(0, 4)),
        et.Ablate(et.Site("model.layers.0.mlp", "input"), units=[1, 2]),
    ]
    edits_.save_edits(edits, tmp_path)
    again = edits_.load_edits(tmp_path)
    assert edits_.edits_digest(again) == edits_.edits_digest(edits)
    xr.testing.assert_identical(again[0].vector, table)
    assert again[1].site == edits[1].site
    assert again[0].positions == (0, 4)
