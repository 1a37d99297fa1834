"""Edges of a model on a server: patched there, by calls of norms and projections where its weights are not beside the block."""

import numpy as np
import pytest

from emotrace import discovery
from emotrace.labels import EmotraceError

METRIC = discovery.SiteFunction([("resid_post", 0)], lambda values: values[0][:, 3] - values[0][:, 5])


def some_pairs(model):
    rng = np.random.default_rng(1)
    clean = [rng.integers(9, 150, n).tolist() for n in (5, 8)]
    return discovery.pairs(model, clean, [[*ids[:2], ids[2] + 5, *ids[3:]] for ids in clean])


def test_edges_are_patched_there(pair, exact, world):
    here, there = pair("llama")
    before, found = there.sites.remote.requests, []
    for lm in (here, there):
        some, how = some_pairs(lm), {"level": "edge", "batch_size": 32, "progress": False}
        scores = [discovery.scores(lm, some, METRIC, method=m, **how) for m in ("path_patching", "magnitude")]
        circuit = discovery.select(scores[0], 9)
        ran = discovery.run_circuits(lm, some, METRIC, [circuit, ~circuit], progress=False)
        found.append([*(s["score"].values for s in scores), ran["metric"].values, ran["empty"].values])
    for got, want in zip(found[1], found[0], strict=True):
        exact(got, want, tolerance=1e-4)
    asked = there.sites.remote.requests - before
    assert asked == 1 + 3 * 2 + 3, "the layer is shown once; of each call both prompts, and what it runs is one job"
    with pytest.raises(EmotraceError, match="takes slopes back through the weights"):
        discovery.scores(there, some_pairs(there), METRIC, method="eap", level="edge", progress=False)


def test_what_cannot_be_rewired_is_refused_there_too(pair):
    _, there = pair("gemma2")
    with pytest.raises(EmotraceError, match="norms its attention's output"):
        discovery.scores(there, some_pairs(there), METRIC, method="path_patching", level="edge", progress=False)
