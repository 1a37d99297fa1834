"""Every result of stored activations names the store, the selection and the plan that it came from, and whose rows counted."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import emotrace as et
from emotrace import attribution, circuits, directions, discovery, prompt_tuning, provenance, rsa
from emotrace.attribution import ablations
from emotrace.circuits import assemble
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from tests.helpers import loaded

EMOTIONS = ("anger", "fear", "joy")
PART = ["s0", "s1", "s2"]
GROUPED: dict[str, Any] = {"within": "skeleton_id"}


class Given(NamedTuple):
    model: Any
    acts: et.Activations
    dirs: xr.DataArray
    covectors: xr.Dataset
    words: xr.Dataset


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    model, rng = loaded("llama"), np.random.default_rng(0)
    rows = []
    for i in range(4):
        ids = rng.integers(20, 150, 5).tolist()
        for k, emotion in enumerate(EMOTIONS):
            about = {"skeleton_id": f"s{i}", "valence": "neutral", "theme": "ab"[i % 2], "emotion": emotion}
            rows.append({"key": f"s{i}__{emotion}", "token_ids": [*ids[:2], 60 + k, *ids[2:]], **about})
    values = rng.normal(size=(3, model.sites.d_model))
    last = xr.DataArray(values, dims=("emotion", "dim"), coords={"emotion": list(EMOTIONS)})
    acts = et.capture(
        model, Prompts.of(rows), ("resid_mid", "resid_post", "z", "neuron", "mlp_out"), positions="prompt",
        gradients=discovery.Projection(last, layer=model.sites.n_layers - 1),
        out=tmp_path_factory.mktemp("rows") / "a.zarr", progress=False,
    )  # fmt: skip
    dirs = directions.centered_mean(acts.where(sublayer=["resid_mid", "resid_post"]), within="skeleton_id")
    words = attribution.token_covectors(model, {"joy": 40, "fear": 7})
    return Given(model, acts, dirs, attribution.covectors(model, dirs), words)


def residual(acts):
    return acts.where(sublayer=["resid_mid", "resid_post"])


def patched(acts):
    return discovery.attribution_patching(acts, discovery.other_emotion(acts, each="all"))


OF_ALL = {
    "project": lambda given, acts: directions.project(acts, given.dirs),
    "top_prompts": lambda given, acts: attribution.top_prompts(acts, 1, [2, 3], k=2),
    "logit_lens": lambda given, acts: attribution.logit_lens(acts, given.words),
    "top_tokens": lambda given, acts: attribution.top_tokens(
        given.model, acts.sel("residual", layer=1, sublayer="resid_post", position="last"), k=2
    ),
    "patterns": lambda given, acts: rsa.patterns(acts.where(position="last"), over="skeleton_id"),
    "concept_neurons": lambda given, acts: prompt_tuning.concept_neurons(acts, over="skeleton_id"),
    "mean_ablation": lambda given, acts: ablations.mean_ablation("neuron", {1: [2, 3]}, acts)[0],
    "resample_ablation": lambda given, acts: ablations.resample_ablation(
        "z", {1: [0]}, acts, {"s0__anger": "s1__fear"}
    )[0],
    "edits of a mean": lambda given, acts: discovery.edits(
        discovery.select(patched(given.acts), 2), "mean", prompts=acts
    )[0],
    "attribution_patching": lambda given, acts: patched(acts),
    "sel": lambda given, acts: acts.sel("neuron", layer=1),
    "dataset": lambda given, acts: acts.where(layer=1).dataset("z"),
}
"""Functions of activations that have no ``accepted``."""
OF_ACCEPTED = {
    "head_contributions": lambda given, acts, **k: attribution.head_contributions(acts, given.covectors, **k),
    "neuron_contributions": lambda given, acts, **k: attribution.neuron_contributions(acts, given.covectors, **k),
    "difference_vectors": lambda given, acts, **k: circuits.difference_vectors(acts, **GROUPED, **k),
    "discover": lambda given, acts, **k: circuits.discover(
        acts, given.covectors, neurons_per_layer=2, heads_per_layer=1, **GROUPED, **k
    ),
    "gradient_influence": lambda given, acts, **k: attribution.gradient_influence(acts, given.dirs, **k),
    "centered_mean": lambda given, acts, **k: directions.centered_mean(acts, **GROUPED, **k),
    "mean_difference": lambda given, acts, **k: directions.mean_difference(acts, "emotion", "anger", "fear", **k),
    "mean_rms": lambda given, acts, **k: directions.mean_rms(acts, **k),
    "mean_rms of groups": lambda given, acts, **k: directions.mean_rms(acts, "emotion", "skeleton_id", **k),
    "contrast": lambda given, acts, **k: directions.contrast(acts, against="anger", **k),
    "vectors": lambda given, acts, **k: directions.vectors(acts, against="anger", **k),
    "auroc": lambda given, acts, **k: directions.auroc(
        acts, given.dirs.sel(emotion=["fear", "joy"]), against="anger", **k
    ),
    "pca": lambda given, acts, **k: directions.pca(acts, **k),
    "paired_shift": lambda given, acts, **k: directions.paired_shift(
        acts,
        "valence",
        condition="emotion",
        pair="skeleton_id",
        over="last",
        positive="anger",
        negative="fear",
        variable="residual",
        **k,
    ),
    "context_agnosticism": lambda given, acts, **k: directions.context_agnosticism(
        acts, within="skeleton_id", leave_out=["theme"], n_null=2, n_bootstrap=2, **k
    ),
}
"""Functions of activations that count the accepted keys only."""
NEED_RESIDUAL = set(OF_ACCEPTED) - {"head_contributions", "neuron_contributions", "difference_vectors", "discover"}


def of(given, name, acts, **options):
    acts = residual(acts) if name in NEED_RESIDUAL | {"project"} else acts
    return (OF_ALL | OF_ACCEPTED)[name](given, acts, **options)


@pytest.mark.parametrize("name", [*OF_ALL, *OF_ACCEPTED])
def test_results_name_store_selection_plan_and_model(given, name):
    found = of(given, name, given.acts.where(skeleton_id=PART))
    rows = provenance.rows_of(found)
    assert rows["source"] == str(given.acts.path)
    assert rows["plan_digest"] == given.acts.attrs["plan_digest"]
    assert json.loads(rows["selection"])[0] == {"skeleton_id": PART}
    assert provenance.of(found)["weights_hash"] == given.model.sites.identity["weights_hash"]
    assert provenance.rows_of(of(given, name, given.acts)) != rows


@pytest.mark.parametrize("name", OF_ACCEPTED)
def test_results_of_other_accepted_keys_are_told_apart(given, name):
    keys = sorted(set(given.acts.tokens["key"]))
    some = {skeleton: [k for k in keys if not k.startswith(skeleton)] for skeleton in ("s2", "s3")}
    every, two, three = (
        provenance.rows_of(of(given, name, given.acts, accepted=accepted)) for accepted in (keys, *some.values())
    )
    assert "accepted_digest" not in every
    n = 6 if name == "paired_shift" else 9  # it takes the two emotions of its pairs alone
    assert two["n_accepted"] == three["n_accepted"] == n
    assert two["accepted_digest"] != three["accepted_digest"]
    again = provenance.rows_of(of(given, name, given.acts, accepted=reversed([*some["s2"], "elsewhere"])))
    assert again == two


def test_a_circuit_says_what_each_of_its_parts_was_measured_on(given):
    part, other = (given.acts.where(skeleton_id=s) for s in (PART, ["s2", "s3"]))
    scores = {"neuron": attribution.neuron_contributions(part, given.covectors)}
    differences = circuits.difference_vectors(other, **GROUPED)
    sizes = {"neuron": [given.covectors.sizes["unit"]] * given.model.sites.n_layers}
    plan = circuits.even_allocation(list(EMOTIONS), range(given.model.sites.n_layers), sizes, 2)
    circuit = assemble(scores, differences, plan)
    rows = circuit.meta["rows"]
    assert rows == {"neuron": provenance.rows_of(scores["neuron"]), "differences": provenance.rows_of(differences)}
    assert rows["neuron"] != rows["differences"]


def test_edits_keep_on_disk_whose_values_they_set(given, tmp_path):
    edits = ablations.mean_ablation("neuron", {1: [2]}, given.acts.where(skeleton_id=PART))
    et.edits.save_edits(edits, tmp_path)
    assert provenance.rows_of(et.edits.load_edits(tmp_path)[0]) == provenance.rows_of(edits[0])


def test_frames_of_top_prompts_show_the_tokens_beside(given):
    found = attribution.top_prompts(given.acts, 1, 2, k=50)
    tokens = given.acts.tokens
    assert isinstance(found, pd.DataFrame)
    for row in found.to_dict("records"):
        texts, at = tokens[tokens["key"] == row["key"]]["token_text"].tolist(), row["position"]
        assert row["before"] == "".join(texts[max(0, at - 6) : at])
        assert row["after"] == "".join(texts[at + 1 : at + 4])
    alone = attribution.top_prompts(given.acts.where(position="last"), 1, 2)
    assert set(alone["before"]) == set(alone["after"]) == {""}


@pytest.mark.filterwarnings("ignore:.*so this is of the edited model")
def test_results_of_activations_under_edits_say_so(given):
    """What asks components warns, what stands in the place of the un-edited model's values is refused, and all name the edits."""
    edits = ablations.zero_ablation("neuron", {1: [2]})
    prompts = Prompts.of(
        given.acts.tokens.groupby("key", sort=False).agg({"token_id": list, "emotion": "first", "skeleton_id": "first"})
        .reset_index().rename(columns={"token_id": "token_ids"})
    )  # fmt: skip
    acts = et.capture(given.model, prompts, ("resid_mid", "resid_post", "z", "neuron"), edits=edits, progress=False)
    assert acts.attrs["edits"] != "none"
    without = {
        "attribution_patching",
        "edits of a mean",
        "gradient_influence",
        "mean_ablation",
        "resample_ablation",
        "context_agnosticism",
    }
    for name in set(OF_ALL | OF_ACCEPTED) - without - {"sel", "dataset", "paired_shift"}:
        assert provenance.rows_of(of(given, name, acts)).get("edits") == acts.attrs["edits"], name
        assert "edits" not in provenance.rows_of(of(given, name, given.acts)), name
    with pytest.warns(UserWarning, match="head_contributions: .*edits=.*so this is of the edited model"):
        attribution.head_contributions(acts, given.covectors)
    with pytest.raises(EmotraceError, match="captured with edits"):
        ablations.mean_ablation("neuron", {1: [2]}, acts)
