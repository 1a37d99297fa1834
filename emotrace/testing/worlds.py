"""Worlds: what a model gives here, and what the same model gives on a server, function by function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

import emotrace as et
from emotrace import attribution, scoring
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.sites import LanguageModel

EMOTIONS = ("anger", "fear")
IDS = [list(range(20, 20 + n)) for n in (6, 3, 9)]
SHORT = [[21], [34], [57]]
"""Prompts of one token, whose forwards at all steps have one shape."""
BASED = ("resid_pre", "resid_mid")
"""Sites whose edits need a value of the same forward: prompts of one token run apart there."""
TOLERANCES = {
    "capture": 0.0, "generation": 0.0, "edits": 0.0, "heads": 1e-5, "neurons": 1e-5, "influence": 1e-2, "perplexity": 1e-5,
    "KL": 1e-5, "curves": 1e-5,
}  # fmt: skip
"""Largest deviation, relative to the largest value, where a block runs without weights; of what is sampled or generated the share
of replies that differ."""


def prompts(n: int = 2) -> Prompts:
    """Prompts of unequal length in groups of one of each emotion."""
    rng = np.random.default_rng(0)
    return Prompts.of(
        [
            {"key": f"s{i}__{e}", "token_ids": rng.integers(20, 150, 5 + i % 3).tolist(), "emotion": e}
            | {"skeleton_id": f"s{i}", "valence": "neutral"}
            for i in range(n)
            for e in EMOTIONS
        ]
    )


def edits_of(model: LanguageModel) -> Iterator[tuple[str, list[Edit]]]:
    """Edits of every kind at every site that can be written, with a name: those that set a value apart from the others."""
    sites = model.sites
    for site in sites.names:
        address = next(iter(sites.addresses[site].values()))
        if not address.writable:
            continue
        layers = None if address.layer is None else [sites.layers(site)[0], sites.layers(site)[-1]]
        v = torch.linspace(-1, 1, address.width)
        added = [
            et.Add(site, layers, "all", vector=v, strength=2.0),
            et.Add(site, layers, vector=v, strength=3.0, scale="unit"),
            et.Add(site, layers, "all", vector=v, strength=0.5, scale="rms"),
            et.Scale(site, layers, "all", strength=0.5),
            et.Project(site, layers, "all", vector=v.flip(0)),
        ]
        yield f"changed at {site}", added
        yield f"zero at {site}", [et.Ablate(site, layers, "all", units=[0, 2])]
        yield f"set at {site}", [et.Ablate(site, layers, vector=v)]


def measured(
    here: LanguageModel, there: LanguageModel, edited: Callable[[str], bool] = lambda name: True
) -> dict[str, float]:
    """By how much each result of a server deviates: relative to its largest value, of replies the share that differ.

    Args:
        here: a model.
        there: the same on a server.
        edited: which of `edits_of` are tried, by their names.
    """
    found = {"capture": _captures(here, there)}
    if here.sites.encoder.causal:
        found["generation"] = _replies(here, there, [])
        tried = [edits for name, edits in edits_of(here) if edited(name)]
        found["edits"] = max((_replies(here, there, edits) for edits in tried), default=0.0)
    acts = et.capture(here, prompts(), ("resid_mid", "resid_post") if here.sites.has("resid_mid") else "resid_post",
                      progress=False)  # fmt: skip
    dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",))
    pairs = [_attributed(lm, dirs) for lm in (here, there)]
    for name in pairs[0]:
        found[name] = _far(pairs[0][name], pairs[1][name])
    return found


def _captures(here: LanguageModel, there: LanguageModel) -> float:
    sites = [s for s in here.sites.names if s != "attn_pattern"]
    layer = here.sites.layers("resid_post")[1]
    vector = torch.linspace(-1, 1, here.sites.d_model)
    edits = [et.Add("resid_post", [layer], "all", vector=vector, strength=2.0)]
    worst = 0.0
    for some in ([], edits):
        pair = [
            et.capture(lm, IDS, sites, positions="all", edits=some, batch_size=2, progress=False)
            for lm in (here, there)
        ]
        for variable in pair[0].variables:
            worst = max(worst, _far(*(acts.sel(variable=variable).values for acts in pair)))
    return worst


def _replies(here: LanguageModel, there: LanguageModel, edits: list[Edit]) -> float:
    rows = len(SHORT) if not edits or any(edit.site in BASED for edit in edits) else len(IDS) + len(SHORT)
    how: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "batch_size": rows, "progress": False}
    pair = [[row["token_ids"] for row in et.generate(lm, [*IDS, *SHORT], edits, **how)] for lm in (here, there)]
    return sum(a != b for a, b in zip(*pair, strict=True)) / len(pair[0])


def _attributed(lm: LanguageModel, dirs: xr.DataArray) -> dict[str, Any]:
    sites = lm.sites
    found: dict[str, Any] = {}
    if sites.has("z"):
        found["heads"] = attribution.head_contributions(lm, prompts(), dirs, progress=False)
    if sites.has("neuron"):
        found["neurons"] = attribution.neuron_contributions(lm, prompts(), dirs, progress=False)
    plain = [{"key": f"p{i}", "token_ids": p.token_ids} for i, p in enumerate(prompts())]
    if sites.has("mlp_out") and sites.has("attn_out"):
        found["influence"] = attribution.sublayer_influence(lm, plain, dirs, progress=False)[["influence", "sigma"]]
    if sites.encoder.causal:
        forced = [{"key": str(i), "token_ids": ids, "reply_ids": [40, 41, 42 + i]} for i, ids in enumerate(IDS)]
        found["perplexity"] = np.array(scoring.perplexity(lm, forced))
        found["KL"] = np.array(scoring.kl(lm, forced, [et.Scale("resid_post", [1], strength=0.5)]))
    kind = next((kind for kind in ("heads", "neurons") if kind in found), None)
    if kind is not None:
        curve = attribution.ablation_curve(lm, prompts(), dirs, found[kind], ks=[1], draws=1, progress=False)
        found["curves"] = curve[["delta", "base"]]
    return found


def _far(want: Any, got: Any) -> float:
    """Largest deviation, relative to the largest value; of a Dataset that of its worst variable."""
    if isinstance(want, Mapping):
        return max(_far(want[name].values, got[name].values) for name in want if want[name].dtype.kind == "f")
    size = float(np.nanmax(np.abs(want), initial=0.0)) or 1.0
    return float(np.nanmax(np.abs(np.asarray(got) - want), initial=0.0)) / size
