"""Metrics: what they read, their sign, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import discovery
from emotrace.testing.planted import planted


@pytest.fixture(scope="module")
def known():
    p = planted("llama", skeletons=2)
    pairs = discovery.other_emotion(p.model, p.prompts.where(emotion=["anger", "fear"], valence="neutral"))
    acts = et.capture(p.model, p.prompts, "resid_post", positions="last", progress=False)
    return p, pairs, et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence")), acts


def scores(p, pairs, metric, **options):
    return discovery.scores(p.model, pairs, metric, batch_size=16, steps=4, progress=False, **options)


def test_projection_is_that_of_the_captured_state(known):
    p, pairs, dirs, acts = known
    metric = discovery.Projection(dirs, layer=1)
    found = scores(p, pairs, metric)
    for i, pair in enumerate(pairs):
        h = acts.sel(layer=1, sublayer="resid_post", key=pair.key.split("|")[0]).values.ravel()
        v = dirs.sel(emotion=pair.labels["emotion"], layer=1, sublayer="resid_post").values
        assert found["clean"][i].item() == pytest.approx(float(h @ v / np.linalg.norm(v)), rel=1e-4)
    assert found["layer"].max() == 1  # nothing after the metric is scored
    assert {"a0.h1", "a1.h3"} <= set(discovery.nodes_of(discovery.select(found, 3)))
    against = discovery.Projection(dirs, layer=1, against="counterfactual")
    assert scores(p, pairs, against)["counterfactual"].mean() < 0 < scores(p, pairs, against)["clean"].mean()


@pytest.mark.parametrize("site", ["resid_mid", "final_norm", "resid_post"])
def test_edges_end_where_the_metric_reads(known, site):
    p, pairs, _, _ = known
    v = torch.randn(64, generator=torch.Generator().manual_seed(0))
    layer = None if site == "final_norm" else 1
    metric = discovery.SiteFunction([(site, layer)], lambda x: x[0] @ v)
    fast, exact = (scores(p, pairs, metric, level="edge", method=m) for m in ("eap_ig_inputs", "path_patching"))
    assert ("m1" in fast["source"].values) == (site != "resid_mid")
    a, b = (f["score"].values.ravel() for f in (fast, exact))  # each pair: a swap and its reverse cancel in the mean
    assert np.corrcoef(a, b)[0, 1] > 0.9


def test_kl_is_zero_at_the_clean_run_and_its_components_matter(known):
    p, pairs, _, _ = known
    found = scores(p, pairs, discovery.KL(), method="patching")
    np.testing.assert_allclose(found["clean"], 0, atol=1e-5)
    assert (found["counterfactual"] < -0.5).all()
    assert {"a0.h1", "a1.h3"} <= set(discovery.nodes_of(discovery.select(found, 4)))


def test_tokens_may_be_texts_and_sets(known):
    p, pairs, _, _ = known
    ids = {e: i for e, i in p.answers.items() if e != "neutral"}
    texts = {e: p.model.sites.encoder.token_texts([i])[0] for e, i in ids.items()}
    a, b = (scores(p, pairs, discovery.LogitDifference(t), method="eap")["score"] for t in (ids, texts))
    np.testing.assert_array_equal(a, b)
    both = scores(p, pairs, discovery.LogitDifference({e: [i, i] for e, i in ids.items()}), method="eap")["score"]
    np.testing.assert_allclose(a, both, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(known):
    p, pairs, dirs, _ = known
    refused = [
        (discovery.Projection(dirs, layer=9), "no layer 9"),
        (discovery.Projection(dirs, layer=1, emotion="joyful"), "unknown emotion"),
        (discovery.Projection(dirs.isel(dim=slice(4)), layer=1), "4 wide"),
        (discovery.Projection(dirs * 0, layer=1), "norm 0"),
        (discovery.LogitDifference({"anger": 5}), "unknown emotion"),
        (discovery.LogitDifference({"anger": "two tokens", "fear": 5}), "not one"),
        (discovery.LogitDifference({"anger": 10**6, "fear": 5}), "knows 0 to"),
        (discovery.LogitDifference({"anger": True, "fear": 5}), "an id of 'anger'.*True"),
        (discovery.LogitDifference({"anger": 1.5, "fear": 5}), "an id of 'anger'.*1.5"),
        (discovery.Projection(dirs, layer="last"), r"Projection\(layer=.last.\): a whole number"),
        (discovery.SiteFunction([("logits", None)], lambda v: v[0][:, 0] * 0), "0 for every prompt"),
        (discovery.SiteFunction([("logits", None)], lambda v: v[0].sum()), "returned"),
        (discovery.SiteFunction([("logits", None)], lambda v: v[0][:, 0] / 0), "not a finite number"),
        (discovery.SiteFunction([("logits", None), ("resid_post", 0)], lambda v: v[0][:, 0]), "order of execution"),
    ]
    for metric, words in refused:
        with pytest.raises(et.EmotraceError, match=words):
            scores(p, pairs, metric)
    several = discovery.SiteFunction([("resid_post", 0), ("resid_post", 1)], lambda v: v[0][:, 0] + v[1][:, 0])
    assert np.isfinite(scores(p, pairs, several)["score"]).all()
    with pytest.raises(et.EmotraceError, match="end in one residual stream"):
        scores(p, pairs, several, level="edge")
    assert isinstance(xr.DataArray(dirs), xr.DataArray)
