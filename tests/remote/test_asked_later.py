"""A store that was captured through a server is analysed with the server gone and no weights here."""

import socket
from dataclasses import replace

import numpy as np
import pytest

import emotrace as et
from emotrace import attribution, circuits, discovery, rsa
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from emotrace.remote import Server

EMOTIONS = ("anger", "fear", "joy")
SCORES = {"heads": attribution.head_contributions, "neurons": attribution.neuron_contributions}


def prompts():
    rng = np.random.default_rng(0)
    found = []
    for i in range(4):
        ids = rng.integers(20, 150, 5 + i % 2).tolist()
        for k, e in enumerate(EMOTIONS):
            about = {"skeleton_id": f"s{i}", "valence": "neutral", "emotion": e}
            found.append({"key": f"s{i}__{e}", "token_ids": [*ids[:2], 60 + k, *ids[2:]], **about})
    return Prompts.of(found)


def captured(lm, folder, slopes):
    """All that needs weights: activations, with gradients where there are any, and covectors of directions."""
    sites = [s for s in ("z", "neuron", "resid_mid", "resid_post") if lm.sites.has(s)]
    plain = et.capture(lm, prompts(), sites, components=True, out=folder / "last.zarr", progress=False)
    directions = et.directions.centered_mean(plain, within=("skeleton_id",))
    et.directions.save(directions, folder / "directions")
    attribution.covectors(lm, directions, out=folder / "covectors")
    for kind, score in SCORES.items():
        score(lm, prompts(), directions, out=folder / kind, progress=False)
    attribution.token_covectors(lm, {"joy": 40, "fear": 7}, out=folder / "words")
    pairs = discovery.other_emotion(lm, prompts())
    metric = discovery.Projection(directions, layer=lm.sites.n_layers - 1, against="counterfactual")
    how = {"positions": "prompt", "progress": False} | ({"gradients": metric} if slopes else {})
    et.capture(lm, pairs.prompts(), ["z", "mlp_out"], out=folder / "whole.zarr", **how)
    spoken = Prompts(replace(p, reply_ids=(30 + i, 31, 32 + i % 4)[: 1 + i % 3]) for i, p in enumerate(prompts()))
    et.capture(
        lm, spoken, "neuron", positions="generated", components=True, out=folder / "replies.zarr", progress=False
    )


def asked(folder, slopes):
    """Questions to what lies in a folder; nothing else is known."""
    acts, directions = et.open_activations(folder / "last.zarr"), et.directions.load(folder / "directions")
    covectors = attribution.load_scores(folder / "covectors", "covectors")
    whole = et.open_activations(folder / "whole.zarr")
    replies = et.open_activations(folder / "replies.zarr").where(emotion=["fear", "joy"])
    circuit = circuits.discover(acts, covectors, neurons_per_layer=3, heads_per_layer=1, within=("skeleton_id",))
    patched = discovery.attribution_patching(whole, discovery.other_emotion(whole))["score"].values if slopes else []
    return {
        "projection": et.directions.project(acts.where(emotion="fear"), directions).values,
        "words": attribution.logit_lens(acts, attribution.load_scores(folder / "words", "token_covectors")).values,
        "heads": attribution.head_contributions(acts, covectors)["contrast"].values,
        "neurons": attribution.neuron_contributions(acts, covectors)["contrast"].values,
        "circuit": circuit.components.drop(columns="emotion").to_numpy(dtype=object).tolist(),
        "patching": patched,
        "reply tokens": attribution.top_prompts(replies, 1, [3, 5], k=4).to_numpy(dtype=object).tolist(),
        "replies": attribution.neuron_contributions(replies, covectors.sel(emotion=["fear", "joy"]))["mean"].values,
        "geometry": rsa.rdm(rsa.patterns(acts, over=None, average=True), features="unit").values,
    }


@pytest.fixture
def gone(monkeypatch):
    """Nobody answers any more."""

    def connect(self, address):
        raise ConnectionRefusedError(address)

    monkeypatch.setattr(socket.socket, "connect", connect)


SOAK = [pytest.param(name, marks=pytest.mark.soak) for name in ("gpt-neox", "granite")]


@pytest.mark.parametrize("name", ["llama", "gemma2", *SOAK])
def test_analysed_with_the_server_gone(pair, server, world, exact, name, tmp_path, request):
    here, there = pair(name)
    slopes = world == "trusted"
    captured(there, tmp_path / "there", slopes)
    captured(here, tmp_path / "here", slopes)
    request.getfixturevalue("gone")
    with pytest.raises(EmotraceError, match="does not answer"):
        Server(server.url, server.key).check()
    got, want = asked(tmp_path / "there", slopes), asked(tmp_path / "here", slopes)
    for question, value in want.items():
        if isinstance(value, np.ndarray):
            exact(got[question], value, question, 1e-5)
        else:
            about = pytest.approx if world == "ordinary" else float
            rows = [[about(v) if isinstance(v, float) else v for v in row] for row in value]
            assert got[question] == rows, question
    acts = et.open_activations(tmp_path / "there" / "last.zarr")
    covectors = attribution.load_scores(tmp_path / "there" / "covectors", "covectors")
    for kind, score in SCORES.items():
        streamed, stored = attribution.load_scores(tmp_path / "there" / kind, kind), score(acts, covectors)
        largest = max(float(np.abs(streamed[name]).max()) for name in ("mean", "contrast"))
        for name in streamed.data_vars:
            assert float(np.abs(stored[name] - streamed[name]).max()) <= 1e-6 * largest, (kind, name)
