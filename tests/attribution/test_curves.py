"""Curves equal a slow literal twin: one prompt at a time, whole forwards, plain torch hooks."""

import contextlib
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from emotrace import edits, stats
from emotrace.attribution import ablations, curves, files, sets
from emotrace.attribution.curves import ablation_curve, enhancement_curve
from emotrace.attribution.heads import head_contributions
from emotrace.attribution.neurons import neuron_contributions
from emotrace.attribution.ranks import feature
from emotrace.attribution.sets import Set, choose
from emotrace.circuits.differences import difference_vectors
from emotrace.datasets import Prompts
from emotrace.directions import centered_mean
from emotrace.forwards import last, reruns
from emotrace.forwards.capturing import capture
from emotrace.labels import COUNTED, EmotraceError
from emotrace.labels import EMOTIONS as EMOTIONS6
from emotrace.planned import DryReruns
from emotrace.testing import hooks
from emotrace.testing.planted import planted
from emotrace.traced import requests
from tests.helpers import hooked, loaded

EMOTIONS = ("anger", "fear", "sadness")
RNG = np.random.default_rng(0)
QUIET = {"progress": False, "draws": 2, "batch_size": 4}


def prompts(instruction=True, n=3, seed=0):
    """Random ids of several lengths behind a shared beginning; ``n`` skeletons of two valences."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n):
        for v in ("positive", "negative"):
            for e in EMOTIONS if instruction else (None,):
                ids = [1, *range(20, 29), *rng.integers(30, 150, rng.integers(2, 8)).tolist()]
                about = {"skeleton_id": f"s{s}", "valence": v} | ({"emotion": e} if e else {})
                rows.append({"key": f"s{s}__{v}__{e}", "token_ids": ids, **about})
    return Prompts.of(rows)


def made(lm, kind, seed=0):
    """Random directions and difference vectors of a model's shapes; scores of every layer but the last, which is read."""
    rng = np.random.default_rng(seed)
    layers, d = list(lm.sites.layers("resid_post")), lm.sites.d_model
    v = rng.normal(size=(len(EMOTIONS), len(layers), 2, d))
    coords = {"emotion": list(EMOTIONS), "layer": layers}
    directions = xr.DataArray(
        v / np.linalg.norm(v, axis=-1, keepdims=True),
        dims=("emotion", "layer", "sublayer", "dim"),
        coords=coords | {"sublayer": ["resid_mid", "resid_post"]},
    )
    width = lm.sites.n_heads if kind == "head" else lm.sites.d_ff
    early = coords | {"layer": layers[:-1]}
    scores = xr.DataArray(rng.normal(size=(3, len(layers) - 1, width)), dims=("emotion", "layer", kind), coords=early)
    z = rng.normal(size=(3, len(layers), lm.sites.n_heads, lm.sites.head_dim))
    differences = xr.Dataset(
        {
            "neuron": (("emotion", "layer", "unit"), rng.normal(size=(3, len(layers), lm.sites.d_ff))),
            "z": (("emotion", "layer", "head", "head_dim"), z),
        },
        coords,
    )
    return directions, xr.Dataset({"contrast": scores}), differences


def literal(lm, ids, directions, emotion, edit=None):
    """s of one prompt: a whole forward of its own; ``edit``: (site, layer) → change of the last token's vector."""
    with contextlib.ExitStack() as stack:
        for (site, layer), change in (edit or {}).items():
            address = lm.sites.address(site, layer)

            def at_last(h, change=change):
                h = h.clone()
                (h if h.ndim == 2 else h[0])[-1] = change((h if h.ndim == 2 else h[0])[-1].clone())
                return h

            stack.enter_context(hooked(lm._module.get_submodule(address.path), address.side, at_last))
        last = max(lm.sites.layers("resid_post"))
        h = hooks.recorded(lm, {"input_ids": torch.tensor([ids])})["resid_post", last][0, -1]
    return float(h.double() @ torch.tensor(directions.sel(emotion=emotion, layer=last, sublayer="resid_post").values))


def columns(lm, site, chosen):
    size = 1 if site == "neuron" else lm.sites.head_dim
    return [c * size + i for c in chosen for i in range(size)]


def literal_curve(lm, table, directions, chosen, change, labels_of):
    """{(label, set): mean s' − s}; ``change``: (prompt, label, layer, columns) → (h → h)."""
    site, found = chosen["site"], {}
    base = cache(lambda i, e: literal(lm, list(table[i].token_ids), directions, e))
    for e, of_label in chosen["sets"].items():
        mine = [(i, p) for i, p in enumerate(table) if e in labels_of(p)]
        for name, components in of_label.items():
            deltas = []
            for i, p in mine:
                edit = {
                    (site, layer): change(p, e, layer, columns(lm, site, picked))
                    for layer, picked in components.items()
                }
                deltas.append(literal(lm, list(p.token_ids), directions, e, edit) - base(i, e))
            found[e, name] = np.mean(deltas)
    return found


def compare(curve, expected):
    for (e, name), delta in expected.items():
        at = curve.sel(emotion=e, k=name.k)
        got = at["random"].sel(draw=name.draw) if name.which == "random" else at["delta"].sel(which=name.which)
        assert float(got) == pytest.approx(delta, rel=1e-3, abs=2e-5), (e, name)
    draws = curve["random"].mean("draw")
    np.testing.assert_allclose(curve["delta"].sel(which="random"), draws, rtol=1e-6)
    assert (curve["ci_low"] <= curve["delta"] + 1e-12).all()
    assert (curve["ci_high"] >= curve["delta"] - 1e-12).all()
    assert np.abs(curve["delta"]).max() > 1e-3


def setting(value):
    def to(columns, values):
        def apply(h):
            h[columns] = values
            return h

        return apply

    return lambda p, e, layer, c: to(c, value(p, e, layer, c))


CASES = [("llama", "unit"), ("llama", "head"), ("gpt2", "unit"), ("gemma2", "head"), ("opt", "head"), ("bert", "unit")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_zero_ablation_equals_hooks(name, kind):
    lm, table = loaded(name), prompts(n=2)
    directions, scores, _ = made(lm, kind)
    curve = ablation_curve(lm, table, directions, scores, ks=[1, 3], **QUIET)
    chosen = {"site": COUNTED[kind].site, "sets": choose(scores["contrast"], [1, 3], draws=2)}
    zero = setting(lambda p, e, layer, c: 0.0)
    compare(curve, literal_curve(lm, table, directions, chosen, zero, lambda p: [p.labels["emotion"]]))
    own = [literal(lm, list(p.token_ids), directions, "fear") for p in table.where(emotion="fear")]
    assert float(curve["base"].sel(emotion="fear")) == pytest.approx(np.mean(own), rel=1e-4, abs=1e-5)
    assert float(curve["base_std"].sel(emotion="fear")) == pytest.approx(np.std(own), rel=1e-3, abs=1e-5)
    assert curve["n"].values.tolist() == [4, 4, 4]
    assert curve["size"].sel(emotion="fear").values.tolist() == [len(scores.layer), 3 * len(scores.layer)]


def test_the_last_token_alone_is_computed_where_that_is_exact(monkeypatch):
    lm, table = loaded(), prompts()
    directions, scores, _ = made(lm, "unit")
    short = ablation_curve(lm, table, directions, scores, ks=[2], **QUIET)
    assert short.attrs["forward"] == "last token"
    monkeypatch.setattr(last.LastTokens, "alone", False)
    whole = ablation_curve(lm, table, directions, scores, ks=[2], **QUIET)
    assert whole.attrs["forward"] == "whole prompt"
    np.testing.assert_allclose(short["delta"], whole["delta"], rtol=1e-4, atol=1e-6)
    assert (
        ablation_curve(loaded("bert"), table, *made(loaded("bert"), "unit")[:2], ks=[2], **QUIET).forward
        == "whole prompt"
    )


@pytest.mark.parametrize("kind", ["unit", "head"])
@pytest.mark.parametrize("how", ["mean", "resample"])
def test_mean_and_resample_put_in_what_they_say(how, kind):
    lm, site = loaded(), COUNTED[kind].site
    table = Prompts([*prompts(n=2), *prompts(n=1, seed=5).where(emotion="fear")[:0:-1]][:12])
    directions, scores, _ = made(lm, kind)
    curve = ablation_curve(lm, table, directions, scores, ks=[2], how=how, **QUIET)
    seen = {p.key: hooks.recorded(lm, {"input_ids": torch.tensor([p.token_ids])}) for p in table}
    if how == "mean":

        def value(p, e, layer, c):
            each = [[seen[q.key][site, layer][0, -1][c] for q in table.where(emotion=f)] for f in EMOTIONS]
            return torch.stack([torch.stack(own).mean(0) for own in each]).mean(0)

    else:
        donor = dict(zip(curve["prompt"].values, curve["donor"].values, strict=True))
        assert curve["same_group"].values.all()

        def value(p, e, layer, c):
            assert donor[p.key].split("__")[:2] == p.key.split("__")[:2], "the same scenario and event"
            assert donor[p.key].split("__")[2] != p.labels["emotion"], "another emotion"
            return seen[donor[p.key]][site, layer][0, -1][c]

    chosen = {"site": site, "sets": choose(scores["contrast"], [2], draws=2)}
    expected = literal_curve(lm, table, directions, chosen, setting(value), lambda p: [p.labels["emotion"]])
    compare(curve, expected)


@pytest.mark.parametrize("kind", ["unit", "head"])
@pytest.mark.parametrize("how", ["mean", "resample"])
def test_a_reference_of_stored_activations_gives_the_same_curve_and_runs_no_reference(how, kind, tmp_path, monkeypatch):
    lm, site = loaded(), COUNTED[kind].site
    table, extra = prompts(n=2), prompts(n=1, seed=5)
    renamed = [{"key": f"other {p.key}", "token_ids": p.token_ids, **p.labels} for p in extra]
    directions, scores, _ = made(lm, kind)
    options = {"ks": [1, 2], "how": how, **QUIET}
    want = ablation_curve(lm, table, directions, scores, **options)
    acts = capture(lm, Prompts.of([*renamed, *reversed(table)]), site, out=tmp_path / "a.zarr", progress=False)
    monkeypatch.setattr(curves, "reference_values", None)  # nothing is run for a reference
    got = ablation_curve(
        lm, table, directions, scores, reference=acts.where(key=table.keys), out=tmp_path / "c", **options
    )
    np.testing.assert_allclose(got["delta"], want["delta"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["random"], want["random"], rtol=1e-4, atol=1e-6)
    with pytest.raises(EmotraceError, match="reference"):  # a run of another reference is not continued
        ablation_curve(lm, table, directions, scores, reference=acts, out=tmp_path / "c", **options)
    if how == "mean":
        wider = ablation_curve(lm, table, directions, scores, reference=acts, **options)
        assert not np.allclose(wider["delta"], want["delta"], rtol=1e-4)


def test_references_that_lack_something_are_refused():
    lm, table = loaded(), prompts(n=2)
    directions, scores, _ = made(lm, "unit")
    acts = capture(lm, table, ["neuron", "z"], progress=False)

    def refused(message, acts, **options):
        with pytest.raises(EmotraceError, match=message):
            ablation_curve.plan(lm, table, directions, scores, **({"how": "mean"} | QUIET | options), reference=acts)

    refused("how='zero' takes nothing", acts, how="zero")
    refused("layer of 'neuron'", acts.where(layer=[0]))
    refused("not 47", acts.where(unit=list(range(47))), ks=[48])
    refused("not 'neuron'", capture(lm, table, "z", progress=False))
    refused("no prompt .*are missing", acts.where(key=table.keys[:1]), how="resample")
    plain = Prompts.of([{"key": p.key, "token_ids": p.token_ids} for p in table])
    refused("unknown label 'emotion'", capture(lm, plain, "neuron", progress=False))
    edited = capture(lm, table, ["neuron", "z"], edits=ablations.zero_ablation("neuron", {0: [1]}), progress=False)
    refused("captured with edits", edited)
    for part, said in ((edited, "captured with edits"), (acts.where(head_dim=[0]), "narrowed along 'head_dim'")):
        with pytest.raises(EmotraceError, match=said):
            ablations.mean_ablation("z", {1: [0]}, part)
    refused("made with the model", capture(loaded(seed=3), table, "neuron", progress=False))


@pytest.mark.parametrize(("name", "kind"), [("llama", "unit"), ("llama", "head"), ("gpt2", "head")])
def test_enhancement_equals_hooks(name, kind):
    lm, plain, site = loaded(name), prompts(instruction=False, n=2), COUNTED[kind].site
    directions, scores, differences = made(lm, kind)
    curve = enhancement_curve(lm, plain, directions, scores, differences, ks=[1, 2], strength=0.5, **QUIET)

    def change(p, e, layer, c):
        vector = differences[site].sel(emotion=e, layer=layer).values.ravel()[c]

        def add(h):
            h[c] += 0.5 * torch.tensor(vector, dtype=h.dtype)
            return h

        return add

    chosen = {"site": site, "sets": choose(scores["contrast"], [1, 2], draws=2)}
    compare(curve, literal_curve(lm, plain, directions, chosen, change, lambda p: EMOTIONS))
    assert curve["n"].values.tolist() == [4, 4, 4]


def test_components_of_the_layer_that_is_read_and_of_later_ones_are_left_alone():
    """A component of that layer writes its score into what is read: its delta would be the score again."""
    lm, table = loaded(), prompts()
    directions, scores, _ = made(lm, "unit")
    whole = ablation_curve(lm, table, directions, scores, ks=[2], readout_layer=1, **QUIET)
    early = scores.sel(layer=[0])
    xr.testing.assert_equal(whole, ablation_curve(lm, table, directions.sel(layer=[0, 1]), early, ks=[2], **QUIET))
    assert whole["size"].values.max() == 2
    with pytest.raises(EmotraceError, match="before the read-out layer 0"):
        ablation_curve(lm, table, directions, scores, readout_layer=0, **QUIET)


def test_a_stopped_run_continues_and_ends_the_same(tmp_path, monkeypatch):
    lm, table = loaded(), prompts()
    directions, scores, _ = made(lm, "unit")
    options = {"ks": [1, 2], "how": "resample"} | QUIET
    whole = ablation_curve(lm, table, directions, scores, **options)
    real, calls = reruns.enter, []

    def entered(*args):
        calls.append(args)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(reruns, "enter", entered)
    stop = 30
    with pytest.raises(KeyboardInterrupt):
        ablation_curve(lm, table, directions, scores, out=tmp_path, **options)
    first, stop = len(calls), -1
    assert ablation_curve(lm, table, directions, scores, out=tmp_path, **options).identical(whole)
    assert first < len(calls) < first + 50, "what was done is not done again"
    calls.clear()
    assert ablation_curve(lm, table, directions, scores, out=tmp_path, **options).identical(whole)
    assert calls == [], "a finished run computes nothing"
    assert files.load_scores(tmp_path, "curve").identical(whole)
    for other, word in (({"ks": [1]}, "ks"), ({"seed": 1}, "seed"), ({"how": "zero"}, "how")):
        with pytest.raises(EmotraceError, match=rf"other settings \(.*{word}\b"):
            ablation_curve(lm, table, directions, scores, out=tmp_path, **(options | other))
    (tmp_path / "settings.json").unlink()  # the scores themselves say what made them
    for other, changed in ((scores, {"how": "zero"}), (-scores, {})):
        with pytest.raises(EmotraceError, match=r"scores\.jsonl: batch 0 was made with other settings \(settings: "):
            ablation_curve(lm, table, directions, other, out=tmp_path, **(options | changed))
    assert ablation_curve(lm, table, directions, scores, out=tmp_path, **options).identical(whole)
    assert calls == [], "nor does it without its settings"


def test_components_are_found_by_their_numbers():
    lm = loaded("llama")
    directions, scores, differences = made(lm, "unit")
    at = {"unit": np.arange(lm.sites.d_ff)}
    scores, differences = scores.assign_coords(at), differences.assign_coords(at)
    turned = scores.isel(unit=slice(None, None, -1)), differences.isel(unit=slice(None, None, -1))
    some = prompts(instruction=False, n=1)
    options = QUIET | {"ks": (1,), "draws": 1}
    expected = enhancement_curve(lm, some, directions, scores, differences, **options)
    found = enhancement_curve(lm, some, directions, *turned, **options)
    np.testing.assert_array_equal(found["delta"], expected["delta"])


def test_intervals_draw_whole_skeletons():
    lm, table = loaded(), prompts(n=6)
    directions, scores, _ = made(lm, "unit")
    curve = ablation_curve(lm, table, directions, scores, ks=[4], draws=0, progress=False)
    alone = Prompts.of(
        [{**p.labels, "key": p.key, "token_ids": list(p.token_ids), "skeleton_id": p.key} for p in table]
    )
    rows = ablation_curve(lm, alone, directions, scores, ks=[4], draws=0, progress=False)
    np.testing.assert_allclose(curve["delta"], rows["delta"], rtol=1e-6)
    assert not np.allclose(curve["ci_low"], rows["ci_low"])
    assert "random" not in curve
    assert curve["which"].values.tolist() == ["top", "low"]
    values = np.repeat(np.random.default_rng(0).normal(size=6), 5)[:, None] + np.zeros((1, 2))
    values[:, 1] = 0
    lo, hi = stats.bootstrap_ci(values, np.repeat(np.arange(6), 5))
    weights = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=2000) / 6
    np.testing.assert_allclose((lo[0], hi[0]), np.quantile(weights @ values[::5, 0], [0.025, 0.975]))
    assert (lo[1], hi[1]) == (0, 0), "no effect at all is not a rate"


def test_order_and_batches_do_not_matter():
    lm, table = loaded(), prompts()
    directions, scores, _ = made(lm, "head")
    one = ablation_curve(lm, table, directions, scores, ks=[1], **(QUIET | {"batch_size": 1}))
    other = ablation_curve(lm, table[::-1], directions, scores, ks=[1], **(QUIET | {"batch_size": 64}))
    np.testing.assert_allclose(one["delta"], other["delta"], rtol=1e-4, atol=1e-6)


def test_dry_run_counts():
    lm, table = loaded(), prompts()
    directions, scores, differences = made(lm, "unit")
    dry = ablation_curve.plan(lm, table, directions, scores, draws=3)
    assert dry == DryReruns(prompts=18, sets=5 * (1 + 1 + 3), reruns=18 * 25)
    plain = prompts(instruction=False)
    dry = enhancement_curve.plan(lm, plain, directions, scores, differences, ks=[1], draws=0, low=False)
    assert dry == DryReruns(prompts=6, sets=1, reruns=18)


def test_only_accepted_prompts_count():
    lm, table = loaded(), prompts()
    directions, scores, _ = made(lm, "unit")
    keys = [p.key for p in table if p.labels["valence"] == "positive"]
    curve = ablation_curve(lm, table, directions, scores, ks=[1], accepted=keys, **QUIET)
    alone = ablation_curve(lm, table.where(valence="positive"), directions, scores, ks=[1], **QUIET)
    xr.testing.assert_equal(curve, alone)


def test_refusals():
    lm, table, plain = loaded(), prompts(), prompts(instruction=False)
    directions, scores, differences = made(lm, "unit")

    def refused(message, call=ablation_curve, args=(), **change):
        args = args or (lm, table, directions, scores)
        with pytest.raises(EmotraceError, match=message):
            call(*args, **(QUIET | change))

    refused("Did you mean 'mean'", how="meen")
    refused("rising integers from 1 to 48", ks=[4, 60])
    refused("rising integers", ks=[3, 1])
    refused("rising integers from 1 to 96", ks=[200], per="model")
    refused("draws=-1", draws=-1)
    refused("unknown per 'all'", per="all")
    refused("unknown score 'contrst'.*contrast", by="contrst")
    refused("unknown layer of the directions 7", readout_layer=7)
    refused("unknown label 'theme'", cluster="theme")
    refused("no .* emotion 'fear'", args=(lm, table.where(emotion=["anger", "sadness"]), directions, scores))
    refused("unknown emotion of the directions 'fear'", args=(lm, table, directions.sel(emotion=["anger"]), scores))
    refused("40 units in a layer", args=(lm, table, directions, scores.isel(unit=slice(40))))
    refused("32 wide", args=(lm, table, directions.isel(dim=slice(9)), scores))
    refused("not finite", args=(lm, table, directions, scores * np.nan))
    refused("need the dims 'emotion'", args=(lm, table, directions, scores.rename(emotion="mood")))
    refused("has no site 'neuron'", args=(loaded("mixtral"), table, directions, scores))
    refused("unknown label 'emotion'", args=(lm, plain, directions, scores))
    refused("without the label 'emotion'", enhancement_curve, (lm, table, directions, scores, differences))
    args = (lm, plain, directions, scores, differences)
    refused("finite number", enhancement_curve, args, strength=float("nan"))
    refused("unknown variable of the differences", enhancement_curve, (*args[:4], differences[["z"]]))
    refused("unknown layer of the differences 1", enhancement_curve, (*args[:4], differences.sel(layer=[0])))
    refused("48 wide", enhancement_curve, (*args[:4], differences.isel(unit=slice(7))))
    refused("not finite", enhancement_curve, (*args[:4], differences * np.nan))


# -- planted circuits


@cache
def plant(family):
    known = planted(family)
    directions = centered_mean(capture(known.model, known.prompts, progress=False))
    found = {
        "neurons": neuron_contributions(known.model, known.prompts, directions, progress=False),
        "heads": head_contributions(known.model, known.prompts, directions, progress=False),
    }
    return known, directions, found, difference_vectors(known.model, known.prompts, progress=False)


@pytest.mark.parametrize("how", ["zero", "mean", "resample", "enhance"])
@pytest.mark.parametrize("kind", ["neurons", "heads"])
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.soak)])
def test_planted_components_move_the_projection_and_others_do_not(family, kind, how):
    known, directions, found, differences = plant(family)
    truth = getattr(known, kind)
    truth = truth.isel(layer=slice(-1))  # those of the layer that is read are left alone: one of three neurons is left
    (k,) = {int(n) for n in truth.sum(["layer", feature(truth)])}
    options = {"ks": [k], "per": "model", "draws": 12, "progress": False}
    if how == "enhance":
        curve = enhancement_curve(known.model, known.plain, directions, found[kind], differences, **options)
    else:
        curve = -ablation_curve(known.model, known.prompts, directions, found[kind], how=how, **options)
    least = {"neurons": 1.6 / 3, "heads": 4.3 if how != "enhance" else 3.2}[kind]
    top = curve["delta"].sel(which="top", drop=True)
    assert (top > least).all(), "of about 5 that the emotion has"
    assert (abs(curve["delta"].sel(which="low")) < 0.06 * top).all(), "which are the lowest hangs on rounding"
    scores = found[kind]["contrast"].isel(layer=slice(-1))
    chosen, clean = choose(scores, [k], draws=12, per="model"), 0
    for e in EMOTIONS6[2:]:  # decoys write the first two whatever is asked, so that a zero in their place tells
        own = truth.sel(emotion=e)
        for draw in range(12):
            picked = chosen[e][Set("random", draw, k)]
            if not any(own.sel(layer=layer).values[list(c)].any() for layer, c in picked.items()):
                clean += 1
                assert abs(float(curve["random"].sel(emotion=e, draw=draw, k=k))) < 0.25 * least, (e, draw)
    assert clean > 20


# -- sets


def test_sets_by_hand():
    scores = xr.DataArray(
        [[[0.1, 3.0, -4.0, 3.0], [5.0, 0.0, 1.0, -0.5]]], dims=("emotion", "layer", "unit"),
        coords={"emotion": ["fear"], "layer": [2, 5]},
    )  # fmt: skip
    found = choose(scores, [1, 2], draws=2)["fear"]
    assert found[Set("top", 0, 1)] == {2: (1,), 5: (0,)}
    assert found[Set("top", 0, 2)] == {2: (1, 3), 5: (0, 2)}
    assert found[Set("low", 0, 2)] == {2: (0, 1), 5: (1, 3)}
    for draw in range(2):
        for layer in (2, 5):
            assert set(found[Set("random", draw, 1)][layer]) < set(found[Set("random", draw, 2)][layer])
    model = choose(scores, [1, 3], draws=1, per="model")["fear"]
    assert model[Set("top", 0, 1)] == {5: (0,)}
    assert model[Set("top", 0, 3)] == {2: (1, 3), 5: (0,)}
    assert model[Set("low", 0, 3)] == {2: (0, 1), 5: (1,)}
    assert {layer: len(c) for layer, c in model[Set("random", 0, 3)].items()} == {2: 2, 5: 1}
    assert sorted({s.k for s in choose(scores)["fear"]}) == [1, 2, 4], "sizes that do not exist are left out"
    assert sets.union({"fear": {k: v for k, v in found.items() if k.which == "top"}}) == {2: [1, 3], 5: [0, 2]}


def test_random_sets_differ_by_draw_label_layer_and_seed_and_not_by_size():
    scores = xr.DataArray(
        RNG.normal(size=(2, 2, 40)), dims=("emotion", "layer", "unit"), coords={"emotion": ["a", "b"], "layer": [0, 1]}
    )
    found = choose(scores, [5, 10], draws=2, low=False)
    again = choose(scores, [10], draws=2, low=False)
    other = choose(scores, [10], draws=2, low=False, seed=1)
    picked = [of[Set("random", d, 10)][layer] for of in (found["a"], found["b"]) for d in (0, 1) for layer in (0, 1)]
    picked.append(other["a"][Set("random", 0, 10)][0])
    assert len(set(picked)) == 9
    assert again["a"][Set("random", 1, 10)] == found["a"][Set("random", 1, 10)]
    many = choose(scores, [10], draws=200)["a"]
    drawn = np.concatenate([many[Set("random", d, 10)][0] for d in range(200)])
    assert np.abs(np.bincount(drawn, minlength=40) - 50).max() < 30, "every component is drawn about as often"


# -- ablations


def test_edits_of_a_capture_replace_the_components():
    lm, table = loaded(), prompts()
    acts = capture(lm, table, ["z", "neuron"], progress=False)
    for site, dim in (("z", "head"), ("neuron", "unit")):
        held = acts.sel(site)
        mean = ablations.mean_ablation(site, {1: [2, 0]}, held)
        got = capture(lm, table, site, layers=[1], edits=mean, progress=False).sel(site, layer=1)
        want = held.sel(layer=1).groupby("emotion").mean().mean("emotion").sel({dim: [0, 2]})
        np.testing.assert_allclose(got.sel({dim: [0, 2]}), np.broadcast_to(want, (18, *want.shape)), atol=1e-5)
        np.testing.assert_allclose(got.sel({dim: [1, 3]}), held.sel(layer=1).sel({dim: [1, 3]}), atol=1e-5)
        ref = ablations.reference_values(lm, table, site, {0: [3], 1: [0, 2]}, progress=False)
        np.testing.assert_allclose(ref[1].values, held.sel(layer=1).sel({dim: [0, 2]}).values, atol=1e-5)
        assert ref[0].sizes[dim] == 1
        again = ablations.mean_ablation(site, {1: [0, 2]}, ref)
        np.testing.assert_allclose(again[0].vector, mean[0].vector, atol=1e-6)
        zero = ablations.zero_ablation(site, {0: [3], 1: []})
        assert [(e.layers, e.vector) for e in zero] == [((0,), None)]
        (stored,) = ablations.mean_ablation(site, {1: [2, 0]}, acts)
        np.testing.assert_array_equal(stored.vector, mean[0].vector)
    donor = {p.key: table[(i + 1) % len(table)].key for i, p in enumerate(table)}
    edit = ablations.resample_ablation("z", {1: [3]}, acts.sel("z"), donor)
    np.testing.assert_array_equal(ablations.resample_ablation("z", {1: [3]}, acts, donor)[0].vector, edit[0].vector)
    edits.check(edit, lm.sites, [{"key": p.key} for p in table])
    np.testing.assert_array_equal(edit[0].vector.sel(key=table[0].key), acts.sel("z", layer=1).values[1, 3])


def test_mean_weighs_labels_alike():
    lm = loaded()
    table = Prompts([*prompts().where(emotion="fear"), *prompts(n=1).where(emotion="anger")])
    acts = capture(lm, table, "neuron", progress=False)
    (edit,) = ablations.mean_ablation("neuron", {0: [7]}, acts.sel("neuron"))
    own = [acts.sel("neuron", layer=0, unit=7, emotion=e).values.mean() for e in ("fear", "anger")]
    assert edit.vector[0] == pytest.approx(np.mean(own), rel=1e-5)
    assert np.mean(own) != pytest.approx(acts.sel("neuron", layer=0, unit=7).values.mean(), rel=1e-2)


def test_a_prompt_of_several_rows_counts_as_their_mean():
    lm = loaded()
    table = Prompts([*prompts().where(emotion="fear"), *prompts(n=1).where(emotion="anger")])
    acts = capture(lm, table, "neuron", positions="prompt", progress=False)
    (edit,) = ablations.mean_ablation("neuron", {0: [7]}, acts.where(layer=0))
    of = {p.key: acts.sel("neuron", layer=0, unit=7, key=p.key).values.mean(dtype=np.float64) for p in table}
    own = [np.mean([of[p.key] for p in table if p.labels["emotion"] == e]) for e in ("fear", "anger")]
    assert edit.vector[0] == pytest.approx(np.mean(own), rel=1e-5)
    assert edit.vector[0] != pytest.approx(acts.sel("neuron", layer=0, unit=7).values.mean(), rel=1e-2)
    donor = {p.key: table[0].key for p in table}
    (edit,) = ablations.resample_ablation("neuron", {0: [7]}, acts, donor)
    np.testing.assert_allclose(edit.vector.values, of[table[0].key], rtol=1e-5)


def test_donors_are_others_of_the_same_group():
    table = prompts(n=30)
    found = ablations.donors(table)
    keys, others = found["key"].str.split("__"), found["donor"].str.split("__")
    assert found["key"].tolist() == list(table.keys)
    assert found["same_group"].all()
    assert all(a[:2] == b[:2] and a[2] != b[2] for a, b in zip(keys, others, strict=True))
    counts = pd.crosstab(keys.str[2], others.str[2]).to_numpy()
    assert (counts[~np.eye(3, dtype=bool)] > 15).all(), "both other emotions are drawn"
    pd.testing.assert_frame_equal(found, ablations.donors(table))
    assert not found.equals(ablations.donors(table, seed=1))
    wide = ablations.donors(table, within="skeleton_id")  # here a group holds the emotion of a prompt twice
    assert (wide["key"].str.split("__").str[2] != wide["donor"].str.split("__").str[2]).all()
    lonely = Prompts([*table.where(emotion="fear")[:4], *table.where(emotion="anger")[6:8]])
    found = ablations.donors(lonely)
    assert not found["same_group"].any()
    assert set(found["donor"][:4]) <= {p.key for p in lonely[4:]}


def test_ablation_refusals():
    lm, table = loaded(), prompts(n=1)
    acts = capture(lm, table, "neuron", layers=[0], progress=False).sel("neuron")
    for message, call in (
        ("unknown site of components 'mlp_out'", lambda: ablations.zero_ablation("mlp_out", {0: [1]})),
        ("at least one component", lambda: ablations.zero_ablation("z", {0: []})),
        ("unknown layer of the reference 1", lambda: ablations.mean_ablation("neuron", {1: [1]}, acts)),
        ("48 components of neuron at layer 0, but not 50", lambda: ablations.mean_ablation("neuron", {0: [50]}, acts)),
        (
            "prompt '.*' has no 'emotion'",
            lambda: ablations.mean_ablation(
                "neuron", {0: [1]}, acts.assign_coords(emotion=("token", [np.nan] * acts.sizes["token"]))
            ),
        ),
        ("unknown label 'mood'", lambda: ablations.mean_ablation("neuron", {0: [1]}, acts, label="mood")),
        ("no prompt 'x'", lambda: ablations.resample_ablation("neuron", {0: [1]}, acts, {table[0].key: "x"})),
        ("at least two values", lambda: ablations.donors(table.where(emotion="fear"))),
        ("unknown label 'theme'", lambda: ablations.donors(table, within="theme")),
    ):
        with pytest.raises(EmotraceError, match=message):
            call()


def test_a_model_that_overflows_is_an_error(monkeypatch):
    lm, table = loaded(), prompts(n=1)
    directions, scores, _ = made(lm, "unit")
    lost = lambda model, values, v, sizes: [torch.full((n,), torch.inf, dtype=torch.float64) for n in sizes]  # noqa: E731
    monkeypatch.setattr(requests, "projected", lost)
    with pytest.raises(EmotraceError, match="the read-out: not finite in its batch"):
        ablation_curve(lm, table, directions, scores, **QUIET)


def test_reruns_take_edits_of_the_last_token_only():
    lm, table = loaded(), prompts(n=1)
    batch = reruns.Reruns(lm, table, "resid_post", 2).batch([0, 1])
    with pytest.raises(EmotraceError, match="positions 'steer'"):
        batch.run([edits.Scale("mlp_out", layers=[0])])
