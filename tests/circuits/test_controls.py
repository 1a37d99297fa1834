"""Controls of a circuit, each against what it is when it is written out, component by component."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace.labels import EmotraceError
from tests.circuits.conftest import HEAD_DIM, HEADS, LABELS, LAYERS, UNITS
from tests.helpers import loaded

PROMPTS = [
    {"key": f"{e}{i}", "token_ids": [11, 12, 13 + i, 14], "emotion": e} for e in LABELS for i in range(2)
]  # fmt: skip


def added(circuit, label):
    """(kind, layer, index) → what the edits of strength 1 add there for a label."""
    found = {}
    for edit in circuit.edits():
        values = edit.vector.sel(emotion=label)
        for layer in edit.layers:
            at = values.sel(layer=layer).values.reshape(values.sizes.get("head", UNITS), -1)
            found |= {("head" if edit.site == "z" else "neuron", layer, i): at[i] for i in np.flatnonzero(at.any(-1))}
    return found


def test_the_payload_of_another_label_stands_at_the_own_components(make):
    circuit = make(neurons=20, heads=2)
    of = et.replies.derangement(LABELS, 3)
    assert all(of[e] != e for e in LABELS)
    control = circuit.with_payload_of(of)
    assert control.components.equals(circuit.components)
    assert (control.meta["payload_of"], control.meta["control_of"]) == (of, circuit.digest)
    for e in LABELS:
        places = set(added(circuit, e))
        whole = {k: circuit.payload["z" if k[0] == "head" else "neuron"].sel(emotion=of[e], layer=k[1]) for k in places}
        by_hand = {k: np.atleast_1d(whole[k].values[k[2]]) for k in places}
        got = added(control, e)
        assert set(got) == places
        assert all(np.array_equal(got[k], by_hand[k]) for k in places)
    with pytest.raises(EmotraceError, match="'disgust' gets no payload"):
        circuit.with_payload_of({"anger": "fear", "fear": "anger"})
    with pytest.raises(EmotraceError, match="keep its own payload"):
        circuit.with_payload_of({e: e for e in LABELS})
    with pytest.raises(EmotraceError, match="unknown emotion 'joy'"):
        circuit.with_payload_of({**of, "joy": "fear"})


@pytest.mark.parametrize("matched", [False, True])
def test_the_shared_set_is_the_best_by_mean_score_for_every_label(make, matched):
    circuit, rng = make(), np.random.default_rng(1)
    sizes = {"neuron": ("unit", UNITS), "head": ("head", HEADS)}
    scores = {
        kind: xr.DataArray(
            rng.normal(size=(3, LAYERS, n)), {"emotion": LABELS, "layer": range(LAYERS), dim: range(n)}
        )
        for kind, (dim, n) in sizes.items()
    }  # fmt: skip
    control = circuit.shared(scores, matched)
    assert control.counts().equals(circuit.counts())
    for kind, layer in (("neuron", 0), ("neuron", 2), ("head", 2)):
        mean = scores[kind].sel(layer=layer).values.mean(0)
        k = len(circuit.members("fear", kind, layer))
        for e in LABELS:
            assert control.members(e, kind, layer) == np.argsort(-mean)[:k].tolist()
    same = []
    for e in LABELS:
        got, own = added(control, e), added(circuit, e)
        for place in {k[:2] for k in own}:
            norm = [np.linalg.norm([v for k, v in of.items() if k[:2] == place]) for of in (got, own)]
            same.append(np.isclose(*norm, rtol=1e-5))
    assert all(same) == matched
    with pytest.raises(EmotraceError, match="unknown kind 'neuron'"):
        circuit.shared({"head": scores["head"]})


def test_all_components_are_those_of_the_kinds_and_layers_of_the_circuit(make):
    circuit = make()
    control = circuit.whole()
    for e in LABELS:
        got = added(control, e)
        assert set(got) == {("neuron", la, i) for la in (0, 2) for i in range(UNITS)} | {
            ("head", 2, i) for i in range(HEADS)
        }
        assert np.array_equal(got["head", 2, 1], circuit.payload["z"].sel(emotion=e, layer=2).values[1])


def test_resampled_components_are_what_they_are_in_the_donor(make):
    circuit, lm = make(), loaded("llama")
    base = et.capture(lm, PROMPTS, ["neuron", "z"], positions="last", progress=False)
    donor = {"fear0": "anger1", "fear1": "disgust0"}
    edits = circuit.ablations("fear", "resample", reference=base, donor=donor)
    mine = [p for p in PROMPTS if p["emotion"] == "fear"]
    got = et.capture(lm, mine, ["neuron", "z"], positions="last", edits=edits, progress=False)
    of = base.tokens["key"].tolist()
    for site, kind, shape in (("neuron", "neuron", (UNITS,)), ("z", "head", (HEADS, HEAD_DIM))):
        mask = circuit.mask(kind).sel(emotion="fear").values
        for row, key in enumerate(donor):
            values = got.sel(site).isel(token=row).values.reshape(LAYERS, *shape)
            wanted = base.sel(site).isel(token=of.index(donor[key])).values.reshape(LAYERS, *shape)
            np.testing.assert_allclose(values[mask], wanted[mask], atol=1e-6)
            own = base.sel(site).isel(token=of.index(key)).values.reshape(LAYERS, *shape)
            assert not np.allclose(values[mask], own[mask]), "the donor is the prompt itself"
    for options in ({"how": "resample"}, {"how": "zero", "reference": base, "donor": donor}):
        with pytest.raises(EmotraceError, match="belong to how='resample'"):
            circuit.ablations("fear", **options)
