"""Alike: what modules do of themselves is what a trace would do, token by token; the trace does the rest."""

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace.forwards import generated
from emotrace.traced import alike, runs
from tests.helpers import hooked, loaded

LM = loaded()
WIDTH, LAYERS = LM.sites.d_model, range(LM.sites.n_layers)
PROMPTS = [
    {"key": f"{n}-{mood}", "token_ids": list(range(20, 30 + n)), "mood": mood} for n in (1, 4) for mood in ("calm", "cross")
]  # fmt: skip


def drawn(width=WIDTH, seed=0):
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


MOODS = xr.DataArray(np.stack([drawn(), drawn(seed=1)]), dims=("mood", "dim"), coords={"mood": ["calm", "cross"]})
EDITS = {
    "every layer, a vector of each label": [et.Add("resid_post", layers=LAYERS, vector=MOODS, strength=2.0)],
    "rms": [et.Add("resid_pre", layers=LAYERS, vector=MOODS, strength=0.8, scale="rms")],
    "the attention's output": [et.Add("resid_mid", layers=[1], vector=MOODS, strength=3.0, scale="unit")],
    "inputs and units": [
        et.Add("z", layers=[0], heads=[1], vector=drawn(WIDTH), strength=3.0),
        et.Scale("neuron", layers=LAYERS, units=[0, 3], strength=-4.0),
        et.Ablate("mlp_out", layers=[1]),
    ],
    "one after the other": [
        et.Project("resid_post", layers=[0], vector=drawn(), strength=1.0),
        et.Add("resid_post", layers=[0], vector=drawn(seed=3), strength=1.0),
    ],
}


def replies(edits, monkeypatch, by_trace):
    """Token ids, how often edits fired, and in how many passes modules did it."""
    passes, fired = [], []
    with monkeypatch.context() as patch:
        real, ran = alike.whole, runs.generate
        patch.setattr(alike, "whole", lambda *a: not by_trace and real(*a) and not passes.append(1))

        def generate(*a):
            found = ran(*a)
            fired.append(found[1])
            return found

        patch.setattr(generated.kept.runs, "generate", generate)
        rows = et.generate(LM, PROMPTS, edits, max_new_tokens=6, min_new_tokens=4, batch_size=3, progress=False)
    return [r["token_ids"] for r in rows], np.sum(fired, 0).tolist(), len(passes)


@pytest.mark.parametrize("name", EDITS)
def test_modules_do_what_a_trace_does(name, monkeypatch):
    mine, counts, passes = replies(EDITS[name], monkeypatch, by_trace=False)
    theirs, wanted, none = replies(EDITS[name], monkeypatch, by_trace=True)
    assert (mine, counts, none) == (theirs, wanted, 0)
    assert passes > 0
    assert mine != replies([], monkeypatch, by_trace=True)[0], "the edits change the replies"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in LM._module.modules())


@pytest.mark.parametrize(
    "edits",
    [
        [et.Add("resid_post", layers=[0], vector=drawn(), positions=(0, 3))],
        [et.Add("resid_post", layers=[0], vector=drawn(), positions="generated")],
        [et.Add("resid_mid", layers=[0], vector=drawn(), scale="rms")],
        [et.Add(et.Site("model.layers.0"), vector=drawn())],
    ],
    ids=["prompt only", "not the first", "needs another place", "a place of one's own"],
)
def test_what_is_not_alike_is_left_to_the_trace(edits, monkeypatch):
    assert replies(edits, monkeypatch, by_trace=False)[2] == 0


def test_hooks_of_ones_own_see_what_the_trace_left(monkeypatch):
    with hooked(LM._module.model.layers[0], "output", lambda h: h):
        assert replies([et.Add("resid_post", layers=[0], vector=drawn())], monkeypatch, by_trace=False)[2] == 0
