"""Discovery: planted circuits are found, flip the output and carry it; the shipped model end to end; presets, plans."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import emotrace as et
from emotrace import attribution, disk
from emotrace.attribution.sublayers import sublayer_influence
from emotrace.circuits import Circuit, assemble, discover, even_allocation, published_allocation
from emotrace.circuits.allocation import no_allocation
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.testing import planted
from tests.circuits.test_allocation import PUBLISHED_HEADS
from tests.circuits.test_differences import prompts
from tests.helpers import loaded

DATA = Path(__file__).parents[2] / "data"


def directions_of(model, given):
    sites = [s for s in ("resid_mid", "resid_post") if model.sites.has(s)]
    return et.directions.centered_mean(et.capture(model, given, sites, progress=False))


@pytest.fixture(scope="module", params=planted.FAMILIES)
def case(request):
    """A planted model, its directions, and as many components per label and layer as there were planted."""
    found = planted.planted(request.param)
    plan = no_allocation("emotion", list(EMOTIONS), range(planted.LAYERS))
    plan.loc[{"kind": "head"}] = found.heads.sum("head").values
    plan.loc[{"kind": "neuron"}] = found.neurons.sum("unit").values
    return found, directions_of(found.model, found.prompts), plan


@pytest.fixture(scope="module")
def circuit(case):
    found, directions, allocation = case
    return discover(found.model, found.prompts, directions, allocation=allocation, progress=False)


def answered(found, given, edits, answer):
    """Share of prompts whose greedy reply begins with an answer."""
    rows = et.generate(found.model, given, edits, max_new_tokens=2, progress=False)
    return np.mean([row["token_ids"][0] == found.answers[answer or row["emotion"]] for row in rows])


def test_stored_activations_give_the_circuit_of_a_pass(case, circuit, tmp_path):
    found, directions, allocation = case
    sites = ["z", "neuron", *(["resid_mid"] if found.model.sites.has("resid_mid") else [])]
    acts = et.capture(found.model, found.prompts, sites, components=True, out=tmp_path / "a.zarr", progress=False)
    vectors = attribution.covectors(found.model, directions, out=tmp_path / "covectors")
    asked = discover(acts, vectors, allocation=allocation, out=tmp_path / "circuit")
    columns = ["emotion", "kind", "layer", "index", "rank"]
    pd.testing.assert_frame_equal(asked.components[columns], circuit.components[columns])
    np.testing.assert_allclose(asked.components["score"], circuit.components["score"], rtol=1e-5)
    for name in circuit.payload:
        assert np.abs(asked.payload[name] - circuit.payload[name]).max() <= 1e-6 * np.abs(circuit.payload[name]).max()
    assert asked.meta["source"] == str(tmp_path / "a.zarr")
    assert asked.meta["selection"] == "[]"
    assert asked.meta["n"] == circuit.meta["n"]
    assert asked.meta["directions_digest"] == circuit.meta["directions_digest"]
    pd.testing.assert_frame_equal(Circuit.load(tmp_path / "circuit").components, asked.components)
    asked.check(found.model)
    for kind in ("neuron", "head"):
        assert attribution.load_scores(tmp_path / "circuit" / kind, f"{kind}s").attrs["source"] == str(
            tmp_path / "a.zarr"
        )


def test_asking_a_store_runs_no_forward(monkeypatch):
    model, given = loaded("llama"), prompts()
    directions = directions_of(model, given)
    acts = et.capture(model, given, ["z", "neuron", "resid_mid"], components=True, progress=False)
    influence = sublayer_influence(model, given, directions, progress=False)
    vectors = attribution.covectors(model, directions, head_readout="normed")
    want = discover(model, given, directions, preset="emotion_circuits", influence=influence, progress=False)
    monkeypatch.setattr(type(model._module), "forward", None)
    got = discover(acts, vectors, preset="emotion_circuits", influence=influence)
    columns = ["emotion", "kind", "layer", "index", "rank"]
    pd.testing.assert_frame_equal(got.components[columns], want.components[columns])
    assert got.meta["readout"] == "normed"
    assert got.meta["preset"] == "emotion_circuits"
    less = discover(acts.where(layer=[0, 1]), vectors, neurons_per_layer=3, heads_per_layer=1)
    assert sorted(set(less.components["layer"])) == [0, 1]
    plain = attribution.covectors(model, directions)
    for message, wrong in [
        ("in the space 'normed'", lambda: discover(acts, plain, preset="emotion_circuits", influence=influence)),
        ("give influence=", lambda: discover(acts, vectors, preset="emotion_circuits")),
        ("narrowed to some of its heads", lambda: discover(acts.where(head=[0, 1]), vectors)),
        ("no layer of neurons or heads", lambda: discover(acts.where(layer=0), vectors.sel(layer=[1]), layers=[2])),
        ("these are no covectors", lambda: discover(acts, vectors[["z"]].drop_attrs())),
    ]:
        with pytest.raises(EmotraceError, match=message):
            wrong()


def test_planted_components_are_found_exactly(case, circuit):
    found, directions, allocation = case
    xr.testing.assert_equal(circuit.mask("head"), found.heads)
    xr.testing.assert_equal(circuit.mask("neuron"), found.neurons)
    assert set(circuit.components["kind"]) == {"neuron", "head"}
    published = discover(found.model, found.prompts, directions, allocation=allocation, by="mean", progress=False)
    assert not published.mask("neuron").equals(found.neurons), "the un-contrasted mean should take the decoy"


def test_modulating_a_planted_circuit_flips_the_output(case, circuit):
    found, *_ = case
    asked = found.plain.for_each(emotion=EMOTIONS)
    assert answered(found, asked, [], "neutral") == 1.0
    assert answered(found, asked, circuit.edits(1.0), None) == 1.0
    assert answered(found, asked, circuit.edits(1.0, "all", "all"), None) == 1.0
    for seed in range(3):
        assert answered(found, asked, circuit.random(seed).edits(1.0), "neutral") == 1.0
        assert answered(found, asked, circuit.random(seed, matched=True).edits(1.0), None) == 0.0


def test_ablating_a_planted_circuit_destroys_the_output(case, circuit):
    found, *_ = case
    assert answered(found, found.prompts, [], None) == 1.0
    for emotion in EMOTIONS:
        mine, other = found.prompts.where(emotion=emotion), EMOTIONS[EMOTIONS.index(emotion) - 1]
        assert answered(found, mine, circuit.ablations(emotion), "neutral") == 1.0
        assert answered(found, mine, circuit.random(0).ablations(emotion), None) == 1.0
        neurons = [edit for edit in circuit.ablations(other) if edit.site == "neuron"]
        assert answered(found, mine, neurons, None) == 1.0, f"neurons of {other} serve {other} alone"


@pytest.fixture(scope="module")
def model():
    return et.load(DATA / "tiny_model")


def sev(limit):
    return tuple(et.datasets.sev(DATA / "sev.jsonl", limit=limit, instruction=asked) for asked in (True, False))


@pytest.fixture(scope="module")
def shipped(model):
    given, plain = sev(1)
    return model, given, plain, directions_of(model, given)


def test_shipped_model_end_to_end(model, tmp_path):
    given, plain = sev(2)
    directions = directions_of(model, given)
    circuit = discover(model, given, directions, out=tmp_path, progress=False)
    assert circuit.counts().to_numpy().tolist() == [[20] * 6, [2] * 6] * 6
    assert (circuit.labels, circuit.layers) == (list(EMOTIONS), list(range(6)))
    about = circuit.meta
    assert about["weights_hash"] == model.sites.identity["weights_hash"]
    assert about["directions_digest"] == disk.digest(directions)
    assert (about["prompts_digest"], about["by"], about["readout"]) == (given.digest, "contrast", "residual")
    assert about["n"] == dict.fromkeys(EMOTIONS, 6)
    assert about["plan"] == {"method": "even", "neurons_per_layer": 20, "heads_per_layer": 2}
    assert about["warnings"] == []
    back = Circuit.load(tmp_path)
    assert (back.digest, back.meta) == (circuit.digest, circuit.meta)
    again = discover(model, given, directions, out=tmp_path, progress=False)
    assert again.digest == circuit.digest
    with pytest.raises(EmotraceError, match="prompts_digest"):
        discover(model, given[:18], directions, out=tmp_path, progress=False)
    asked = plain[:2].for_each(emotion=EMOTIONS)
    rows = {
        name: et.generate(model, asked, edits, max_new_tokens=12, progress=False)
        for name, edits in {
            "none": [],
            "circuit": back.edits(1.0),
            "published": back.edits(1.0, head_positions="all"),
            "random": back.random(0).edits(1.0),
        }.items()
    }
    texts = {name: [row["gen_text"] for row in found] for name, found in rows.items()}
    assert len(set(texts["none"])) == 2, "the plain prompt does not know the emotion"
    assert len(set(texts["circuit"])) > 6
    assert len({tuple(found) for found in texts.values()}) == 4


def test_random_circuits_of_the_shipped_model(shipped):
    model, given, _, directions = shipped
    circuit = discover(model, given, directions, heads_per_layer=4, neurons_per_layer=0.5, progress=False)
    assert circuit.meta["share"] == {"neuron": 0.5, "head": 0.5}
    assert circuit.meta["warnings"] == []
    control = circuit.random(5)
    pd.testing.assert_frame_equal(control.counts(), circuit.counts())
    assert not any((control.mask(kind) & circuit.mask(kind)).any() for kind in ("neuron", "head"))
    crowded = discover(model, given, directions, heads_per_layer=5, progress=False)
    (warning,) = crowded.meta["warnings"]
    assert "5 of the 8 heads" in warning
    assert "62%" in warning
    assert warning in str(crowded)


def test_preset_follows_the_influence_of_sublayers(shipped):
    model, given, plain, directions = shipped
    influence = sublayer_influence(model, plain, directions, progress=False)
    options = {"preset": "emotion_circuits", "progress": False}
    circuit = discover(model, given, directions, influence=influence, **options)
    about = circuit.meta
    assert (about["by"], about["readout"], about["preset"]) == ("mean", "normed", "emotion_circuits")
    assert circuit.meta["plan"]["total"] == 120
    counts = circuit.counts().sum(axis=1)
    assert set(counts.xs("neuron", level="kind")) == {84}
    assert set(counts.xs("head", level="kind")) == {36}
    plan = published_allocation(influence, available={"neuron": 704, "head": 8})
    for emotion in EMOTIONS:
        for kind in ("neuron", "head"):
            expected = plan.sel(emotion=emotion, kind=kind).values.tolist()
            assert circuit.counts().loc[(emotion, kind)].tolist() == expected
    heads = attribution.head_contributions(model, given, directions, head_readout="normed", progress=False)
    best = heads["mean"].sel(emotion="fear", layer=3).argmax("head").item()
    assert circuit.members("fear", "head", 3)[0] == best
    with pytest.raises(EmotraceError, match="influence of sublayers"):
        discover(model, given, directions, **options)


def table(dim, size, seed=0, labels=("anger", "fear"), layers=3):
    """Scores with ties, as `neuron_contributions` and `head_contributions` return them."""
    scores = np.random.default_rng(seed).integers(-4, 5, (len(labels), layers, size)).astype(float)
    coords = {"emotion": list(labels), "layer": range(layers), dim: range(size)}
    found = xr.Dataset({"contrast": (("emotion", "layer", dim), scores)}, coords)
    return found.assign(mean=-found["contrast"], n=("emotion", [4, 5]))


def vectors(labels=("anger", "fear")):
    rng = np.random.default_rng(1)
    shapes = {"neuron": ("unit",), "z": ("head", "head_dim")}
    sizes = {"emotion": 2, "layer": 3, "unit": 48, "head": 4, "head_dim": 8}
    data = {}
    for site, dims in shapes.items():
        whole = ("emotion", "layer", *dims)
        data[site] = whole, rng.normal(size=[sizes[d] for d in whole])
    return xr.Dataset(data, {"emotion": list(labels), "layer": range(3)}).astype(np.float32)


def test_assemble_equals_sorting_by_hand():
    """Highest signed scores first, ties to the lower index, as many as the plan says."""
    scores = {"neuron": table("unit", 48), "head": table("head", 4, 1)}
    plan = no_allocation("emotion", ["anger", "fear"], range(3))
    plan.values[:] = np.random.default_rng(2).integers(0, 5, plan.shape)
    for by in ("contrast", "mean"):
        circuit = assemble(scores, vectors(), plan, by=by)
        for kind, dim in (("neuron", "unit"), ("head", "head")):
            for label in ("anger", "fear"):
                for layer in range(3):
                    one = scores[kind][by].sel(emotion=label, layer=layer)
                    order = sorted(range(one.sizes[dim]), key=lambda i, x=one.values: (-x[i], i))
                    k = int(plan.sel(emotion=label, kind=kind, layer=layer))
                    assert circuit.members(label, kind, layer) == order[:k]
        for kind, dim in (("neuron", "unit"), ("head", "head")):
            for row in circuit.components[circuit.components["kind"] == kind].to_dict("records"):
                cell = scores[kind][by].sel({"emotion": row["emotion"], "layer": row["layer"], dim: row["index"]})
                assert row["score"] == cell.item()
        assert circuit.meta["n"] == {"anger": 4, "fear": 5}


def test_models_with_heads_or_neurons_alone():
    model, given = loaded("mixtral"), prompts()
    circuit = discover(model, given, directions_of(model, given), heads_per_layer=1, progress=False)
    assert set(circuit.components["kind"]) == {"head"}
    assert "no neurons" in circuit.meta["warnings"][0]
    assert [edit.site for edit in circuit.edits()] == ["z"]
    model = loaded("deepseek-v3")
    some = list(model.sites.layers("neuron"))
    circuit = discover(
        model, given, directions_of(model, given), neurons_per_layer=3, heads_per_layer=1, progress=False
    )
    neurons = circuit.components[circuit.components["kind"] == "neuron"]
    assert sorted(set(neurons["layer"])) == some
    assert circuit.edits()[0].layers == tuple(some)
    et.generate(model, given[:3], circuit.edits(), max_new_tokens=2, progress=False)


@pytest.mark.parametrize("name", ["falcon", "gemma2", "bert"])
def test_other_families(name):
    model, given = loaded(name), prompts()
    circuit = discover(
        model, given, directions_of(model, given), neurons_per_layer=4, heads_per_layer=1, progress=False
    )
    assert circuit.counts().to_numpy().tolist() == [[4] * 3, [1] * 3] * 3
    edits = circuit.edits(1.0, "last", "last")
    et.capture(model, given, ["resid_post"], edits=edits, progress=False)  # refuses edits that do not fire


def test_layers_share_and_dry_run(shipped):
    model, given, _, directions = shipped
    options = {"layers": [1, 4], "neurons_per_layer": 0.01, "progress": False}
    circuit = discover(model, given, directions, **options)
    assert circuit.counts().to_numpy().tolist() == [[7, 7], [2, 2]] * 6
    assert circuit.layers == [1, 4]
    dry = discover.plan(model, given, directions, **options)
    assert (dry.prompts, dry.rows, dry.row_groups) == (18, 18, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"preset": "emotion_circuit"}, "Did you mean 'emotion_circuits'"),
        ({"by": "beta"}, "contrast, mean"),
        ({"head_readout": "norm"}, "normed"),
        ({"layers": [9]}, "unknown layer 9"),
        ({"heads_per_layer": 9}, "layer 0 has 8 heads"),
        ({"neurons_per_layer": 2.5}, "neither a whole number nor a share"),
        ({"accepted": ["nobody"]}, "none of the keys"),
        ({"accepted": "work_00"}, "a list of names"),
        ({"label": "feeling"}, "feeling"),
        ({"allocation": even_allocation(list(EMOTIONS), [7], {"head": 8}, 0, 1)}, "unknown layer of the allocation 7"),
        ({"allocation": even_allocation(["joy"], [1], {"head": 8}, 0, 1)}, "unknown emotion of the allocation 'joy'"),
        ({"allocation": even_allocation(["anger"], [1], {"head": 8}, 0, 1).isel(kind=0)}, "an allocation has the dims"),
    ],
)
def test_bad_input(shipped, options, word):
    model, given, _, directions = shipped
    with pytest.raises(EmotraceError, match=word):
        discover(model, given, directions, progress=False, **options)


def test_published_heads_of_anger(oracles):
    """Specification §9, rows 11 and 12: the published plan and head importances give the published circuit of anger."""
    found = oracles.csv("emotion_circuits/head_importance_anger.csv")
    mean = found["mean_importance"].to_numpy().reshape(1, 28, 24)
    coords = {"emotion": ["anger"], "layer": range(28), "head": range(24)}
    scores = xr.Dataset({"mean": (("emotion", "layer", "head"), mean), "n": ("emotion", [478])}, coords)
    plan = no_allocation("emotion", ["anger"], range(28))
    plan.loc[{"kind": "head"}] = [PUBLISHED_HEADS]
    z = oracles.npy("emotion_circuits/attention_difference_vectors.npy")[:1].reshape(1, 28, 24, 128)
    payload = xr.Dataset(
        {"z": (("emotion", "layer", "head", "head_dim"), z)}, {"emotion": ["anger"], "layer": range(28)}
    )
    circuit = assemble({"head": scores}, payload, plan, by="mean")
    assert len(circuit.components) == 168
    assert circuit.members("anger", "head", 13) == [19, 11, 21, 12, 7]
    top = circuit.components.nlargest(5, "score")[["layer", "index"]].to_numpy().tolist()
    assert top == [[13, 19], [16, 9], [4, 23], [9, 23], [12, 17]]
    (edit,) = circuit.edits(0.8, head_positions="all")
    kept = np.count_nonzero(edit.vector.values.any(-1), axis=-1)
    assert kept.tolist() == [PUBLISHED_HEADS]
    json.dumps(circuit.meta)
