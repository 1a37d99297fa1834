"""A circuit as components and payload: tables, overlap, edits, ablations, controls, files."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import emotrace as et
from emotrace import bundles
from emotrace import edits as edits_
from emotrace.attribution import files
from emotrace.circuits import Circuit, show
from emotrace.labels import EmotraceError
from tests.circuits.conftest import HEADS, LABELS, UNITS, components, payload
from tests.helpers import loaded

IDS = [{"key": e, "token_ids": [11, 12, 13, 14], "emotion": e} for e in LABELS]


def test_components_are_ordered_and_counted(make):
    circuit = make()
    shuffled = Circuit(components().sample(frac=1, random_state=1), payload())
    pd.testing.assert_frame_equal(shuffled.components, circuit.components)
    assert circuit.components["emotion"].drop_duplicates().tolist() == LABELS
    assert circuit.components["kind"][:2].tolist() == ["neuron", "neuron"]
    counts = circuit.counts()
    assert counts.loc[("fear", "neuron")].tolist() == [5, 0, 5]
    assert counts.loc[("fear", "head")].tolist() == [0, 0, 1]
    assert circuit.share() == {"neuron": 5 / UNITS, "head": 1 / HEADS}
    assert (circuit.labels, circuit.layers) == (LABELS, [0, 1, 2])


def test_mask_is_the_components(make):
    circuit = make()
    for kind, dim in (("neuron", "unit"), ("head", "head")):
        mask = circuit.mask(kind)
        assert mask.dims == ("emotion", "layer", dim)
        found = {(LABELS[e], layer, i) for e, layer, i in np.argwhere(mask.values).tolist()}
        table = circuit.components[circuit.components["kind"] == kind]
        assert found == set(zip(table["emotion"], table["layer"], table["index"], strict=True))


def test_overlap_equals_sets(make):
    circuit = make(neurons=20, heads=2)
    found = circuit.overlap()
    for kind in ("neuron", "head"):
        table = circuit.components[circuit.components["kind"] == kind]
        sets = {e: set(zip(part["layer"], part["index"], strict=True)) for e, part in table.groupby("emotion")}
        pairs = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in itertools.combinations(LABELS, 2)]
        assert found["mean"].sel(kind=kind).item() == pytest.approx(np.mean(pairs))
        assert found["sd"].sel(kind=kind).item() == pytest.approx(np.std(pairs, ddof=1))
        got = found["jaccard"].sel(kind=kind, emotion="anger", emotion_other="fear").item()
        assert got == pytest.approx(pairs[0])
    assert found.attrs["n_pairs"] == 3
    one = make(labels=["anger"]).overlap()
    assert np.isnan(one["mean"]).all()
    assert np.isnan(make(labels=LABELS[:2]).overlap()["sd"]).all()


def test_edits_are_the_masked_payload(make):
    circuit = make()
    neurons, heads = circuit.edits(0.8, head_positions="all")
    assert isinstance(neurons, et.Add)
    assert (neurons.site, neurons.layers, neurons.positions, neurons.strength) == ("neuron", (0, 2), "steer", 0.8)
    assert (heads.site, heads.layers, heads.positions, heads.scale) == ("z", (2,), "all", "raw")
    assert neurons.vector.dims == ("emotion", "layer", "unit")
    assert heads.vector.dims == ("emotion", "layer", "head", "head_dim")
    for e, label in enumerate(LABELS):
        for layer in (0, 2):
            expected = np.zeros(UNITS, dtype=np.float32)
            mine = circuit.members(label, "neuron", layer)
            expected[mine] = circuit.payload["neuron"].values[e, layer, mine]
            np.testing.assert_array_equal(neurons.vector.sel(emotion=label, layer=layer).values, expected)
        own = circuit.members(label, "head", 2)
        got = heads.vector.sel(emotion=label, layer=2).values
        np.testing.assert_array_equal(got[own], circuit.payload["z"].values[e, 2, own])
        assert np.count_nonzero(got.any(-1)) == 1
    assert all(edit.vector.dtype == np.float32 for edit in (neurons, heads))


def test_strengths_of_kinds_and_labels(make):
    circuit = make()
    (only,) = circuit.edits({"neuron": 0.5})
    assert (only.site, only.strength) == ("neuron", 0.5)
    base, scaled = circuit.edits()[0].vector, circuit.edits(by_label={"fear": 0.5})[0].vector
    np.testing.assert_array_equal(scaled.sel(emotion="fear").values, 0.5 * base.sel(emotion="fear").values)
    np.testing.assert_array_equal(scaled.sel(emotion="anger").values, base.sel(emotion="anger").values)
    assert circuit.edits(label="target")[1].vector.dims[0] == "target"


def test_edits_equal_edits_written_by_hand(make):
    """Each prompt gets the vector of its own label, at its components, and nothing else."""
    circuit, lm = make(), loaded("llama")
    edits = circuit.edits(2.0, "all", "all")
    edits_.check(edits, lm.sites, [{"emotion": e} for e in LABELS])
    got = et.capture(lm, IDS, ["logits"], positions="last", edits=edits, progress=False).sel("logits").values
    for e, label in enumerate(LABELS):
        by_hand = []
        for layer in (0, 2):
            units = circuit.members(label, "neuron", layer)
            vector = circuit.payload["neuron"].values[e, layer, units]
            by_hand.append(et.Add("neuron", layers=layer, units=units, vector=vector, strength=2.0, positions="all"))
        (head,) = circuit.members(label, "head", 2)
        vector = circuit.payload["z"].values[e, 2].copy()
        vector[np.arange(HEADS) != head] = 0
        by_hand.append(et.Add("z", layers=2, vector=vector.ravel(), strength=2.0, positions="all"))
        one = et.capture(lm, IDS[e : e + 1], ["logits"], positions="last", edits=by_hand, progress=False)
        np.testing.assert_allclose(got[e], one.sel("logits").values[0], atol=2e-5)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablations_take_the_components_away(make, how):
    circuit, lm = make(), loaded("llama")
    edits = circuit.ablations("fear", how, "last")
    assert [(e.site, e.layers) for e in edits] == [("neuron", (0,)), ("neuron", (2,)), ("z", (2,))]
    acts = et.capture(lm, IDS, ["neuron", "z"], positions="last", edits=edits, progress=False)
    base = et.capture(lm, IDS, ["neuron", "z"], positions="last", progress=False)
    for site, kind in (("neuron", "neuron"), ("z", "head")):
        mask = circuit.mask(kind).sel(emotion="fear").values
        got = np.moveaxis(acts.sel(site).values, 1, 0)
        means = circuit.payload[f"{site}_mean"].values[mask]
        np.testing.assert_allclose(
            got[:, mask], np.broadcast_to(means if how == "mean" else 0 * means, got[:, mask].shape), atol=1e-6
        )
        np.testing.assert_array_equal(
            got[:, 0][:, ~mask[0]], np.moveaxis(base.sel(site).values, 1, 0)[:, 0][:, ~mask[0]]
        )


@pytest.mark.parametrize("matched", [False, True])
def test_random_circuits_have_the_same_counts_and_other_components(make, matched):
    circuit = make(neurons=20, heads=2)
    control = circuit.random(3, matched)
    pd.testing.assert_frame_equal(control.counts(), circuit.counts())
    for kind in ("neuron", "head"):
        assert not (control.mask(kind) & circuit.mask(kind)).any()
    pd.testing.assert_frame_equal(control.components, circuit.random(3).components)
    assert not control.components.equals(circuit.random(4).components)
    assert (control.meta["method"], control.meta["seed"], control.meta["control_of"]) == ("random", 3, circuit.digest)
    assert control.components["score"].isna().all()
    assert [e.layers for e in control.edits()] == [e.layers for e in circuit.edits()]
    for mine, theirs in zip(control.edits(), circuit.edits(), strict=True):
        norms = [
            np.sqrt((e.vector**2).sum([d for d in e.vector.dims if d not in ("emotion", "layer")]))
            for e in (mine, theirs)
        ]
        assert np.allclose(*norms, rtol=1e-5) == matched


def test_random_circuits_draw_own_components_only_where_others_run_out(make):
    circuit = make(neurons=30, heads=3)
    control = circuit.random(0)
    pd.testing.assert_frame_equal(control.counts(), circuit.counts())
    for label in LABELS:
        own, drawn = set(circuit.members(label, "neuron", 0)), set(control.members(label, "neuron", 0))
        assert (len(drawn), drawn - own) == (30, set(range(UNITS)) - own)
        own, drawn = set(circuit.members(label, "head", 2)), set(control.members(label, "head", 2))
        assert (len(drawn), drawn - own) == (3, set(range(HEADS)) - own)


def test_files_give_it_back_bit_by_bit(make, tmp_path):
    for circuit in (make(), make().random(1)):
        path = circuit.save(tmp_path / str(circuit.meta.get("seed")))
        assert path.name == "circuit.json"
        back = Circuit.load(path.parent)
        pd.testing.assert_frame_equal(back.components, circuit.components, check_exact=True)
        xr.testing.assert_identical(back.payload, circuit.payload)
        assert (back.meta, back.label, back.digest) == (circuit.meta, "emotion", circuit.digest)


def test_digest_sees_every_part(make):
    circuit = make()
    digests = {circuit.digest, make(heads=2).digest, circuit.random(0).digest, circuit.random(0, True).digest}
    assert len(digests) == 4
    table = circuit.components.assign(score=circuit.components["score"] + 1e-9)
    assert Circuit(table, circuit.payload).digest not in digests
    assert make().digest == circuit.digest


def test_damaged_and_foreign_files(make, tmp_path):
    make().save(tmp_path / "a")
    described, numbers = tmp_path / "a/circuit.json", tmp_path / "a/circuit.safetensors"
    whole = described.read_text()
    with pytest.raises(EmotraceError, match="does not exist"):
        Circuit.load(tmp_path / "b")
    blob = numbers.read_bytes()
    numbers.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(EmotraceError, match="sha256"):
        Circuit.load(tmp_path / "a")
    numbers.write_bytes(blob)
    for change, word in (
        ({"content": "directions"}, "holds 'directions'"),
        ({"label": "valence"}, "damaged"),
        ({"meta": "{"}, "damaged"),
    ):
        manifest = json.loads(whole)
        manifest["attrs"] |= change
        described.write_text(json.dumps(manifest))
        with pytest.raises(EmotraceError, match="does not say what was written"):
            Circuit.load(tmp_path / "a")
        del manifest[bundles.CONTENT]  # as an earlier version wrote it
        described.write_text(json.dumps(manifest))
        with pytest.raises(EmotraceError, match=word):
            Circuit.load(tmp_path / "a")
    files.save_scores(payload(), tmp_path / "c", "circuit")
    with pytest.raises(EmotraceError, match="holds 'other data'"):
        Circuit.load(tmp_path / "c")


def test_check_against_a_model(make):
    circuit = make()
    circuit.check(loaded("llama"))
    with pytest.raises(EmotraceError, match=r"'neuron' of size .*48.*128"):
        circuit.check(loaded("gpt2"))
    with pytest.raises(EmotraceError, match="has no layer 2"):
        circuit.check(loaded("llama", num_hidden_layers=2))
    with pytest.raises(EmotraceError, match=r"'head': 4.*'head': 8"):
        circuit.check(loaded("llama", num_attention_heads=8))
    with pytest.raises(EmotraceError, match="neuron"):
        circuit.check(loaded("mixtral"))


def test_shown_as_a_table(make):
    circuit = make(heads=2)
    circuit.meta["warnings"] = ["too <large>"]
    text, html = str(circuit), circuit._repr_html_()
    first, second = circuit.members("fear", "head", 2)
    assert "Circuit of tiny: 30 neurons and 6 heads of 3 emotions in layers 0–2, ranked by contrast" in text
    assert f"5 n · h {first} {second}" in text
    assert "too <large>" in text
    assert "too &lt;large&gt;" in html
    assert "<table" in html
    assert "drawn at random" in repr(circuit.random(0))
    assert "0 neurons" in str(Circuit(components().iloc[:0], payload()))


def swapped(column, value, row=0):
    table = components()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda c: Circuit(components().drop(columns="score"), payload()), "columns"),
        (lambda c: Circuit(swapped("kind", "heads"), payload()), "Did you mean 'head'"),
        (lambda c: Circuit(swapped("emotion", "joy"), payload()), "unknown emotion 'joy'"),
        (lambda c: Circuit(swapped("layer", 7), payload()), "unknown layer 7"),
        (lambda c: Circuit(swapped("index", 48), payload()), "outside 0 to 47"),
        (lambda c: Circuit(swapped("index", components()["index"][1]), payload()), "twice"),
        (lambda c: Circuit(components(), payload().isel(layer=[0, 1, 2, 2])), "has the layer 2 twice"),
        (lambda c: Circuit(components(), payload().drop_vars("z")), "no payload 'z'"),
        (lambda c: Circuit(components(), payload().rename(emotion="feeling")), "unknown dim 'emotion'"),
        (lambda c: Circuit(components(), payload().transpose("layer", ...)), "dims"),
        (lambda c: Circuit(components(), payload() * np.nan), "finite"),
        (lambda c: c.edits({"heads": 1.0}), "Did you mean 'head'"),
        (lambda c: c.edits({}), "no kind to edit"),
        (lambda c: c.edits(by_label={"joy": 1.0}), "unknown emotion 'joy'"),
        (lambda c: c.edits(by_label={"fear": float("nan")}), "not a finite number"),
        (lambda c: c.edits(by_label=["fear"]), "a mapping of emotion to its factor"),
        (lambda c: c.edits("strong"), "strong"),
        (lambda c: c.edits(head_positions="everywhere"), "everywhere"),
        (lambda c: Circuit(components(heads=0), payload()).edits({"head": 1.0}), "no head to edit"),
        (lambda c: c.ablations("joy"), "unknown emotion 'joy'"),
        (lambda c: c.ablations("fear", "median"), "median"),
        (lambda c: Circuit(components(), payload().drop_vars("z_mean")).ablations("fear", "mean"), "how='zero'"),
        (lambda c: Circuit(components(labels=["anger"]), payload()).ablations("fear"), "no components"),
        (lambda c: c.mask("heads"), "Did you mean 'head'"),
        (lambda c: Circuit(components(heads=0), payload().drop_vars("z")).mask("head"), "has no heads"),
        (lambda c: c.members("joy", "head", 0), "unknown emotion 'joy'"),
    ],
)
def test_bad_input(make, call, word):
    circuit = make()
    with pytest.raises(EmotraceError, match=word):
        call(circuit)


@pytest.mark.parametrize(("n", "down"), [(12, True), (6, False)])
def test_many_layers_go_down_and_few_across(n, down):
    rows = pd.DataFrame({"layer": range(n)})
    circuit = SimpleNamespace(components=rows, labels=("fear",), label="emotion", members=lambda *_: [7])
    table = show.upright(circuit)
    assert (table.index.name, table.shape) == (("layer", (n, 1)) if down else ("emotion", (1, n)))
