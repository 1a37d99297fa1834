from __future__ import annotations

import functools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import emotrace as et
from emotrace.attribution import head_contributions, neuron_contributions, planted_auroc, top
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.testing.planted import FAMILIES, planted


def scores(values, dim="head"):
    values = np.asarray(values, dtype=float)
    n, layers, size = values.shape
    coords = {"emotion": ["anger", "fear"][:n], "layer": np.arange(layers), dim: np.arange(size)}
    return xr.DataArray(values, dims=("emotion", "layer", dim), coords=coords)


# -- top -----------------------------------------------------------------------------------------------------------


def test_the_highest_signed_score_comes_first_and_ties_by_index():
    got = top(scores([[[1, 3, -5, 3, 0]], [[0, 0, 0, 0, 0]]]), 4)
    assert got.dims == ("emotion", "layer", "rank")
    assert got.sel(emotion="anger", layer=0).values.tolist() == [1, 3, 0, 4]
    assert got.sel(emotion="fear", layer=0).values.tolist() == [0, 1, 2, 3]
    assert got.name == "head"
    assert got.dtype == np.int64


def test_a_dataset_is_ranked_by_the_variable_asked_and_labels_are_returned():
    data = xr.Dataset({"contrast": scores([[[1, 2, 3]]], "unit"), "mean": scores([[[3, 2, 1]]], "unit")})
    data = data.assign_coords(unit=[7, 8, 9])
    assert top(data, 2).values.tolist() == [[[9, 8]]]
    assert top(data, 1, by="mean").values.tolist() == [[[7]]]
    turned = data.transpose("unit", "layer", "emotion")
    xr.testing.assert_identical(top(turned, 3).transpose("emotion", "layer", "rank"), top(data, 3))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_top_is_pythons_sort(values, data):
    k = data.draw(st.integers(1, len(values)))
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top(scores([[values]]), k).values[0, 0].tolist() == want


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x: top(x, 0), "1 to 3"),
        (lambda x: top(x, 4), "1 to 3"),
        (lambda x: top(x, 1.0), "k=1.0"),
        (lambda x: top(x, True), "k=True"),
        (lambda x: top(xr.Dataset({"mean": x}), 1), "unknown score 'contrast'"),
        (lambda x: top(x.rename(head="dim"), 1), "dims"),
        (lambda x: top(x.where(x > 1), 1), "NaN"),
        (lambda x: planted_auroc(x, x > 99), "0 of 3"),
        (lambda x: planted_auroc(x, x > -99), "3 of 3"),
        (lambda x: planted_auroc(x, x), "boolean"),
        (lambda x: planted_auroc(x.values, [True]), "shape"),
        (lambda x: planted_auroc(x.where(x > 1), x > 1), "NaN"),
        (lambda x: planted_auroc(x, (x > 1).assign_coords(layer=[4])), "other labels"),
        (lambda x: planted_auroc(x, (x > 1).isel(layer=0)), "dims"),
    ],
)
def test_refusals(call, word):
    with pytest.raises(EmotraceError, match=word):
        call(scores([[[1, 2, 3]]]))


# -- auroc ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows):
    values, mask = np.array([v for v, _ in rows], dtype=float), np.array([m for _, m in rows])
    if mask.all() or not mask.any():
        return
    pairs = [(a > b) + (a == b) / 2 for a in values[mask] for b in values[~mask]]
    assert planted_auroc(values, mask) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert planted_auroc(values, mask) == pytest.approx(roc_auc_score(mask, values), abs=1e-12)


def test_labelled_arrays_are_matched_by_name():
    x = scores([[[1, 2, 3]], [[4, 5, 6]]])
    assert planted_auroc(x, (x > 3).transpose("head", "emotion", "layer")) == 1.0
    assert planted_auroc(-x, x > 3) == 0.0


# -- planted models ------------------------------------------------------------------------------------------------


@functools.cache
def found(family, seed):
    plant = planted(family, seed=seed)
    acts = et.capture(plant.model, plant.prompts, ("resid_mid", "resid_post", "z", "neuron"), progress=False)
    directions = et.directions.centered_mean(acts)
    heads = head_contributions(plant.model, plant.prompts, directions, progress=False)
    neurons = neuron_contributions(plant.model, plant.prompts, directions, progress=False)
    return plant, acts, directions, heads, neurons


def answers(plant, prompts, edits=None):
    """Share of prompts answered with the token of their emotion, and share answered neutrally."""
    rows = et.generate(plant.model, prompts, edits=edits, max_new_tokens=1, progress=False)
    ids = np.array([row["token_ids"][0] for row in rows])
    wanted = np.array([plant.answers[row["emotion"]] for row in rows])
    return (ids == wanted).mean(), (ids == plant.answers["neutral"]).mean()


@pytest.fixture(params=[(family, seed) for family in FAMILIES for seed in (0, 1)], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request):
    return found(*request.param)


def test_contrasts_find_exactly_the_planted_components(case):
    plant, _, _, heads, neurons = case
    for got, truth in ((heads, plant.heads), (neurons, plant.neurons)):
        assert planted_auroc(got["contrast"], truth) == 1.0
        dim = truth.dims[-1]
        for emotion in EMOTIONS:
            for layer in truth["layer"].values:
                mine = np.flatnonzero(truth.sel(emotion=emotion, layer=layer).values)
                if len(mine):
                    ranked = top(got.sel(emotion=[emotion], layer=[layer]), len(mine)).values.ravel()
                    assert sorted(ranked) == mine.tolist(), (dim, emotion, layer)


def test_means_without_a_contrast_are_taken_in_by_decoys(case):
    plant, _, _, heads, neurons = case
    for got, truth in ((heads, plant.heads), (neurons, plant.neurons)):
        assert planted_auroc(got["mean"], truth) < 1.0


def test_the_normed_read_out_finds_the_planted_heads_too(case):
    plant, _, directions, _, _ = case
    got = head_contributions(plant.model, plant.prompts, directions, head_readout="normed", progress=False)
    assert planted_auroc(got["contrast"], plant.heads) == 1.0


def test_planted_components_are_what_makes_the_answer(case):
    plant, acts, _, _, _ = case
    aimed = plant.plain.for_each(emotion=EMOTIONS)
    assert answers(plant, plant.prompts) == (1.0, 0.0)
    assert answers(plant, aimed) == (0.0, 1.0)
    payload = {s: et.directions.centered_mean(acts, variable=s, unit=False) for s in ("z", "neuron")}

    def added(heads, neurons):
        masks = {"z": heads, "neuron": neurons}
        return [et.Add(s, layers=range(3), vector=payload[s].where(masks[s], 0)) for s in masks]

    def ablated(heads, neurons):
        out = []
        for site, truth, name in (("z", heads, "heads"), ("neuron", neurons, "units")):
            for layer in range(3):
                mine = np.flatnonzero(truth.any("emotion").sel(layer=layer).values)
                if len(mine):
                    out.append(et.Ablate(site, layers=[layer], positions="all", **{name: mine.tolist()}))
        return out

    assert answers(plant, aimed, added(plant.heads, plant.neurons)) == (1.0, 0.0)
    assert answers(plant, plant.prompts, ablated(plant.heads, plant.neurons)) == (0.0, 1.0)
    # all others together change nothing, added or removed
    others = [xr.zeros_like(truth) | ~truth.any("emotion") for truth in (plant.heads, plant.neurons)]
    assert answers(plant, aimed, added(*others)) == (0.0, 1.0)
    assert answers(plant, plant.prompts, ablated(*others))[1] == 0.0


def test_planted_models_are_what_they_say():
    for family in FAMILIES:
        plant = found(family, 0)[0]
        sites = plant.model.sites
        assert (sites.n_kv_heads < sites.n_heads) == (family == "llama")
        assert plant.heads.any("emotion").sum() == 3
        assert plant.neurons.sum("unit").sel(emotion="fear").values.tolist() == [0, 1, 2]
        assert plant.neurons.sum("emotion").max() == 1
        assert len({*plant.answers.values()}) == 7
        assert len(plant.prompts) == 6 * len(plant.plain)
    with pytest.raises(EmotraceError, match="Choices: llama, gpt2"):
        planted("mamba")


# -- published importances (specification §9, row 11) -----------------------------------------------------------------

TOP = {  # (layer, head, mean importance)
    "anger": ((13, 19, 2.379), (16, 9, 1.039), (4, 23, 0.926), (9, 23, 0.913), (12, 17, 0.828)),
    "sadness": ((14, 20, 1.097), (13, 11, 1.076), (9, 23, 1.019), (13, 19, 0.891), (5, 18, 0.795)),
    "happiness": ((13, 19, 1.149), (16, 9, 0.824), (12, 23, 0.585), (8, 11, 0.548), (12, 17, 0.399)),
    "fear": ((13, 19, 2.024), (4, 23, 1.094), (14, 20, 1.031), (13, 11, 0.935), (9, 23, 0.893)),
    "surprise": ((13, 11, 1.472), (5, 18, 1.410), (7, 12, 1.069), (15, 15, 1.030), (14, 9, 0.761)),
    "disgust": ((13, 19, 1.466), (4, 23, 1.097), (13, 11, 1.075), (9, 23, 0.978), (9, 22, 0.951)),
}


def test_published_head_importances(oracles):
    accepted = oracles.jsonl("emotion_circuits/labeled_sev/accepted.jsonl")
    tables = {e: oracles.csv(f"emotion_circuits/head_importance_{e}.csv") for e in EMOTIONS}
    for emotion, table in tables.items():
        assert len(table) == 672
        assert set(table["samples"]) == {sum(row["emotion"] == emotion for row in accepted)}
        assert (table.groupby("layer")["baseline_mean"].nunique() == 1).all()
    published = xr.concat(
        [t.set_index(["layer", "head"])["mean_importance"].to_xarray() for t in tables.values()],
        dim=xr.Variable("emotion", list(EMOTIONS)),
    )
    assert published.sizes == {"emotion": 6, "layer": 28, "head": 24}
    ranked = top(published, 24)
    assert ranked.sel(emotion="anger", layer=13).values[:5].tolist() == [
        19,
        11,
        21,
        12,
        7,
    ]  # the circuit published later
    for emotion, best in TOP.items():
        mine = published.sel(emotion=emotion)
        flat = np.argsort(-mine.values.ravel())[:5]
        assert [divmod(int(i), 24) for i in flat] == [(layer, head) for layer, head, _ in best]
        for layer, head, value in best:
            assert mine.sel(layer=layer, head=head).item() == pytest.approx(value, abs=5e-4)
            rank = ranked.sel(emotion=emotion, layer=layer).values.tolist().index(head)
            assert rank == sum(1 for a, h, _ in best if a == layer and mine.sel(layer=a, head=h) > value + 5e-4)
        values = np.take_along_axis(mine.values, ranked.sel(emotion=emotion).values, axis=-1)
        assert (np.diff(values, axis=-1) <= 0).all()
