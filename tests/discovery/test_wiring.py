"""Wiring: families whose readers are proven, and families that are refused with a reason."""

from __future__ import annotations

import pytest
import torch

import emotrace as et
from emotrace import discovery
from emotrace.discovery import batches, edges
from emotrace.testing import tiny

REWIRED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "phi3",
    "gpt2",
    "gpt-neo",
    "opt",
    "starcoder2",
    "stablelm",
    "bloom",
    "granite",
)
REFUSED = {
    "gemma2": "norms its attention's output",
    "phi": "is parallel",
    "bert": "is post-ln",
    "minicpm3": "no projections",
}


def loaded(name):
    return et.load(tiny.build(name), tokenizer=tiny.tiny_tokenizer())


def some_pairs(model):
    generator = torch.Generator().manual_seed(1)
    clean = [torch.randint(9, 150, (n,), generator=generator).tolist() for n in (5, 8)]
    return discovery.pairs(model, clean, [[*ids[:2], ids[2] + 5, *ids[3:]] for ids in clean])


METRIC = discovery.SiteFunction([("logits", None)], lambda v: v[0][:, 3] - v[0][:, 5])


@pytest.mark.parametrize("name", REWIRED)
def test_readers_are_what_the_model_reads(name):
    """Nothing cut is the model, everything cut the counterfactual, and slopes of cutting are the fast scores."""
    model = loaded(name)
    g = edges.graph(model, METRIC)
    batch = next(batches.ready(model, some_pairs(model), METRIC, g.seen, "counterfactual", 2))
    live = next(edges.rewired(model, g, batch, [torch.zeros(2, *g.allowed.shape)], live=True))
    none = next(edges.rewired(model, g, batch, [g.allowed.float().expand(2, -1, -1)])).metric
    torch.testing.assert_close(live.metric, batch.clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(none, batch.counterfactual, atol=1e-4, rtol=1e-4)
    fast, slow = edges.edge_scores(model, batch, g, "eap", 1), -live.gradient[:, g.allowed]
    assert float((fast - slow).abs().max()) < 1e-3 * float(slow.abs().max())


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_what_cannot_be_rewired_says_why_and_still_has_nodes(name, words):
    model = loaded(name)
    pairs, last = some_pairs(model), model.sites.n_layers - 1
    metric = discovery.SiteFunction([("resid_post", last)], lambda v: v[0][:, 0])
    with pytest.raises(et.EmotraceError, match=words):
        discovery.scores(model, pairs, metric, level="edge", progress=False)
    found = discovery.scores(model, pairs, metric, method="patching", nodes=("attn", "mlp"), progress=False)
    assert float(abs(found["score"]).max()) > 0


def test_slopes_of_edges_of_a_model_that_runs_elsewhere_are_refused():
    model = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer(), remote="local")
    with pytest.raises(et.EmotraceError, match=r"without remote=, or patch its edges \(path_patching, acdc\)"):
        discovery.scores(model, some_pairs(model), METRIC, level="edge", progress=False)
