"""Gradients beside captured values: those of plain autograd on one prompt at a time, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import discovery
from emotrace.datasets import Prompts
from emotrace.forwards.metrics import digest
from emotrace.labels import SUBLAYERS, EmotraceError
from emotrace.testing import tiny
from emotrace.traced import derivatives, runs
from tests.helpers import loaded

LABELS = ("anger", "fear")
TEXTS = (
    "the bus was late again",
    "we won",
    "my son passed the exam today and we sang",
    "they broke my window twice",
    "rain",
)
FAMILIES = {
    "llama": "GQA",
    "gpt-neox": "parallel",
    "gemma2": "norms after its sublayers",
    "minicpm3": "scaled",
    "gpt2": "fused",
}
SITES = (
    "z",
    "neuron",
    "attn_out",
    "mlp_out",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "o_proj_out",
    "neuron_pre",
    "embed",
)


def prompts_of(n=5):
    return Prompts.of([{"key": f"p{i}", "text": t, "emotion": LABELS[i % 2]} for i, t in enumerate(TEXTS[:n])])


def projection(lm, layer=None, site="resid_post", **options):
    layer = lm.sites.n_layers - 1 if layer is None else layer
    values = np.random.default_rng(0).normal(size=(2, lm.sites.d_model)).astype(np.float32)
    directions = xr.DataArray(values, dims=("emotion", "dim"), coords={"emotion": list(LABELS)})
    return discovery.Projection(directions, layer=layer, site=site, **options)


def by_autograd(lm, prompt, wanted, metric):
    """d metric / d site of one prompt alone, ``[token, width]`` by ``(site, layer)``: what autograd says of the very tensors."""
    held, handles = {}, []

    def keep(name, address):
        def note(value):
            value = value[address.index or 0] if isinstance(value, tuple) else value
            held[name] = value

        module = lm._module.get_submodule(address.path)
        if address.side == "output":
            return module.register_forward_hook(lambda m, args, out: note(out))
        return module.register_forward_pre_hook(
            lambda m, a, k: note(a[0] if a else next(iter(k.values()))), with_kwargs=True
        )

    reads = metric.reads(lm)
    for site, layer in {*wanted, *reads}:
        handles.append(keep((site, layer), lm.sites.address(site, layer).seen))
    ids = torch.tensor(lm.sites.encoder.ids(Prompts([prompt])))
    try:
        with torch.enable_grad():
            lm._module(ids)
            n = ids.shape[1]
            values = [held[read].reshape(n, -1)[-1:] for read in reads]
            function, args = metric.lower(
                lm, [discovery.Pair(prompt.key, (), (), prompt.labels)], [v.detach() for v in values]
            )
            found = torch.autograd.grad(
                function(values, *args).sum(), [held[name] for name in wanted], allow_unused=True
            )
    finally:
        for handle in handles:
            handle.remove()
    zero = torch.zeros(1)
    return {
        k: (zero if g is None else g).reshape(-1, held[k].shape[-1])[-n:].numpy()
        for k, g in zip(wanted, found, strict=True)
    }


def of(acts, site, layer, key):
    name = "residual" if site in SUBLAYERS else site
    chosen = (
        {"key": key} | ({} if layer is None else {"layer": layer}) | ({"sublayer": site} if name == "residual" else {})
    )
    x = acts.sel(f"{name}_gradient", **chosen)
    return x.values.reshape(x.sizes["token"], -1)


@pytest.mark.parametrize("family", [*FAMILIES, "roberta"])
def test_gradients_are_those_of_autograd_on_one_prompt(family):
    lm, prompts = loaded(family), prompts_of()
    metric = projection(lm)
    sites = [s for s in SITES if s in lm.sites.names]
    acts = et.capture(lm, prompts, sites, positions="prompt", gradients=metric, batch_size=3, progress=False)
    wanted = [(s, k) for s in sites for k in (lm.sites.layers(s) or [None])]
    for prompt in prompts:
        known = by_autograd(lm, prompt, wanted, metric)
        for (site, layer), want in known.items():
            got = of(acts, site, layer, prompt.key)
            np.testing.assert_allclose(
                got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max() + 1e-7, err_msg=f"{site} {layer}"
            )
    plain = et.capture(lm, prompts, sites, positions="prompt", batch_size=3, progress=False)
    for name in plain.variables:
        np.testing.assert_allclose(acts.sel(name).values, plain.sel(name).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "falcon", "olmo2", "minicpm3"])
@pytest.mark.parametrize("positions", ["prompt", "last", (2, 5)])
def test_a_row_depends_on_its_own_prompt_only(family, positions):
    lm, prompts = loaded(family), prompts_of(4)
    how = {"positions": positions, "gradients": projection(lm), "progress": False}
    alone = et.capture(
        lm, prompts, ["z", "resid_mid" if lm.sites.has("resid_mid", 0) else "attn_out"], batch_size=1, **how
    )
    rng = np.random.default_rng(1)
    for size in (2, 3, 4):
        order = rng.permutation(len(prompts))
        mixed = Prompts([prompts[int(i)] for i in order])
        acts = et.capture(lm, mixed, alone.attrs["sites"], batch_size=size, **how)
        for name in alone.variables:
            for p in prompts:
                want = alone.sel(name, key=p.key).values
                np.testing.assert_allclose(
                    acts.sel(name, key=p.key).values,
                    want,
                    rtol=1e-4,
                    atol=1e-5 * np.abs(want).max() + 1e-7,
                    err_msg=name,
                )


def test_places_of_the_users_own_have_gradients_where_their_modules_run():
    lm, prompts = loaded("llama"), prompts_of(3)
    own = [et.Site(f"model.layers.{i}.mlp.down_proj", "input") for i in range(3)]
    acts = et.capture(lm, prompts, ["neuron", *own[::-1]], gradients=projection(lm, layer=1), progress=False)
    assert f"{own[2].name}_gradient" not in acts.variables  # it runs after what the metric reads
    for layer in (0, 1):
        for suffix in ("", "_gradient"):
            got = acts.sel(f"{own[layer].name}{suffix}").values
            np.testing.assert_allclose(got, acts.sel(f"neuron{suffix}", layer=layer).values, rtol=1e-5, atol=1e-7)
            assert got.any()


def test_shared_beginnings_change_no_gradient():
    lm = loaded("llama")
    begin = "a long beginning that every one of the prompts has in common, word by word by word: "
    prompts = Prompts.of(
        [{"key": f"p{i}", "text": begin * 2 + t, "emotion": LABELS[i % 2]} for i, t in enumerate(TEXTS)]
    )
    how = {"gradients": projection(lm), "progress": False}
    shared = et.capture(lm, prompts, ["z", "resid_post"], **how)
    whole = et.capture(lm, prompts, ["z", "resid_post"], share_prefixes=False, **how)
    for name in whole.variables:
        want = whole.sel(name).values
        np.testing.assert_allclose(
            shared.sel(name).values, want, rtol=1e-4, atol=1e-5 * np.abs(want).max(), err_msg=name
        )


def test_the_metric_is_stored_and_only_layers_before_it_have_gradients():
    lm, prompts = loaded("llama"), prompts_of()
    metric = projection(lm, layer=1, site="resid_mid")
    acts = et.capture(
        lm, prompts, ["resid_mid", "resid_post", "z", "logits"], positions="prompt", gradients=metric, progress=False
    )
    assert acts.variables == ("residual", "z", "logits", "residual_gradient", "z_gradient", "metric")
    assert acts.residual_gradient["layer"].values.tolist() == [0]  # resid_post of layer 1 comes after the metric
    assert acts.z_gradient["layer"].values.tolist() == [0, 1]
    rows = acts.sel("residual", layer=1, sublayer="resid_mid", position="last")
    units = metric.directions / np.linalg.norm(metric.directions, axis=-1, keepdims=True)
    want = (rows * units.sel(emotion=xr.DataArray(rows["emotion"].values, dims="token")).values).sum("dim")
    got = acts.sel("metric")
    np.testing.assert_allclose(acts.sel("metric", position="last").values, want.values, rtol=1e-5)
    assert all(len(np.unique(got.values[got["key"].values == p.key])) == 1 for p in prompts)
    assert acts.attrs["gradients"] == metric.name


def test_a_function_of_ones_own_and_a_counterfactual_label():
    lm, prompts = loaded("llama"), prompts_of(4)
    last = lm.sites.n_layers - 1
    own = discovery.SiteFunction([("resid_post", last)], lambda values: (values[0] ** 2).sum(-1), "energy")
    acts = et.capture(lm, prompts, "mlp_out", positions="prompt", gradients=own, batch_size=3, progress=False)
    known = by_autograd(lm, prompts[2], [("mlp_out", 1)], own)
    want = known["mlp_out", 1]
    np.testing.assert_allclose(of(acts, "mlp_out", 1, "p2"), want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
    other = {"anger": "fear", "fear": "anger"}
    pairs = Prompts.of(
        [
            {"key": p.key, "text": p.text, **p.labels, "against_emotion": other[str(p.labels["emotion"])]}
            for p in prompts
        ]
    )
    both = et.capture(lm, pairs, "mlp_out", gradients=projection(lm, against="counterfactual"), progress=False)
    each = [
        et.capture(lm, pairs, "mlp_out", gradients=projection(lm, emotion=e), progress=False).residual_gradient
        for e in LABELS
    ]
    mine = xr.where(each[0]["emotion"] == LABELS[0], each[0] - each[1], each[1] - each[0])
    np.testing.assert_allclose(
        both.residual_gradient.values, mine.transpose(*both.residual_gradient.dims).values, atol=1e-5
    )


def test_edits_are_differentiated_through():
    lm, prompts = loaded("llama"), prompts_of(2)
    metric, rng = projection(lm), np.random.default_rng(3)
    v = rng.normal(size=lm.sites.d_model)
    edit = et.Add("resid_post", layers=1, vector=v, strength=0.5, scale="rms", positions="all")
    acts = et.capture(
        lm, prompts, "mlp_out", layers=[0, 1], positions="last", edits=[edit], gradients=metric, progress=False
    )
    for layer in (0, 1):
        shift = rng.normal(size=lm.sites.d_model)
        ends = []
        for sign in (1, -1):
            small = et.Add("mlp_out", layers=layer, vector=sign * shift, strength=1e-2, scale="raw", positions="last")
            near = et.capture(lm, prompts, "mlp_out", edits=[small, edit], gradients=metric, progress=False)
            ends.append(near.sel("metric").values.astype(np.float64))
        slope = (ends[0] - ends[1]) / 2e-2
        got = acts.sel("residual_gradient", layer=layer, sublayer="mlp_out").values @ shift
        np.testing.assert_allclose(got, slope, rtol=2e-2, atol=2e-3 * np.abs(slope).max())


def test_a_store_of_gradients_is_continued_under_its_metric_only(tmp_path):
    lm, prompts = loaded("llama"), prompts_of()
    how = {"positions": "prompt", "row_group_bytes": 1 << 14, "progress": False}
    whole = et.capture(lm, prompts, "z", gradients=projection(lm), out=tmp_path / "a.zarr", **how)
    record = sorted((tmp_path / "a.zarr/row_groups/commit").glob("0*.json"))
    assert len(record) > 2
    before = whole.sel("z_gradient").values
    record[1].unlink()
    again = et.capture(lm, prompts, "z", gradients=projection(lm), out=tmp_path / "a.zarr", **how)
    assert again.complete
    np.testing.assert_array_equal(again.sel("z_gradient").values, before)
    for other in (projection(lm, emotion="fear"), None):
        with pytest.raises(EmotraceError, match=r"metric_digest: .* there"):
            et.capture(lm, prompts, "z", gradients=other, out=tmp_path / "a.zarr", **how)


def test_metrics_are_told_apart():
    lm = loaded("llama")

    def energy(power):
        return discovery.SiteFunction([("resid_post", 2)], lambda values: (values[0] ** power).sum(-1))

    assert digest(energy(2)) == digest(energy(2)) != digest(energy(3))
    assert digest(projection(lm)) == digest(projection(lm)) != digest(projection(lm, layer=1))
    held = discovery.SiteFunction([("resid_post", 2)], torch.nn.Linear(2, 1))
    with pytest.raises(EmotraceError, match="Give it an attribute `digest`"):
        digest(held)


def test_half_precision_gradients_are_kept_as_they_are():
    lm = et.load(tiny.build("llama").to(torch.bfloat16), tokenizer=tiny.tiny_tokenizer())
    acts = et.capture(lm, prompts_of(3), ["z"], positions="prompt", gradients=projection(lm), progress=False)
    got = acts.sel("z_gradient")
    assert got.attrs["source_dtype"] == "bfloat16"
    assert np.array_equal(got.values, torch.from_numpy(got.values).bfloat16().float().numpy())
    exact = et.capture(
        loaded("llama"), prompts_of(3), ["z"], positions="prompt", gradients=projection(lm), progress=False
    )
    want = exact.sel("z_gradient").values
    assert np.abs(got.values - want).max() < 0.1 * np.abs(want).max()


REFUSED = {
    "rows after its token": ({"positions": "all"}, "no later token changes it: the gradient at position 4 is 0"),
    "a reply": ({"positions": "steer"}, "capture the reply without gradients"),
    "no site before it": ({"sites": "logits"}, "read before every captured site"),
    "no metric": ({"gradients": object()}, "is no metric|gradients"),
    "a flat one": ({"gradients": discovery.KL()}, "slope of .* is zero"),
    "another width": ({"gradients": discovery.Projection(xr.DataArray(np.ones(3), dims="dim"), layer=1)}, "3 wide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "capture", None)
    monkeypatch.setattr(derivatives, "capture", None)
    lm = loaded("llama")
    prompt = et.datasets.Prompt("p", token_ids=(11, 12, 13), reply_ids=(14, 15), labels={"emotion": "fear"})
    given, words = REFUSED[case]
    options = {"sites": "z", "gradients": projection(lm, layer=1), "out": tmp_path / "x.zarr", **given}
    with pytest.raises(EmotraceError, match=words):
        et.capture(lm, Prompts([prompt]), progress=False, **options)
    assert not (tmp_path / "x.zarr").exists()
