"""CSVs and circuit files: labelled in, and out so that their scripts find what they look for."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emotrace import circuits, interop
from emotrace.labels import EMOTIONS, EmotraceError
from tests.interop import literal
from tests.interop.test_differences import HEADS, LAYERS, UNITS, ours

RNG = np.random.default_rng(3)


def heads():
    coords = {"emotion": list(EMOTIONS), "layer": range(LAYERS), "head": range(HEADS)}
    dims = ("emotion", "layer", "head")
    return xr.Dataset(
        {
            "mean": (dims, RNG.standard_normal((6, LAYERS, HEADS))),
            "std": (dims, RNG.random((6, LAYERS, HEADS))),
            "baseline": (dims[:2], RNG.standard_normal((6, LAYERS))),
            "n": ("emotion", np.arange(6) + 470),
        },
        coords,
    )


def neurons():
    coords = {"emotion": list(EMOTIONS), "layer": range(LAYERS), "unit": range(UNITS)}
    dims = ("emotion", "layer", "unit")
    high, low = RNG.random((2, 6, LAYERS, UNITS))
    rest = {name: (dims, RNG.standard_normal((6, LAYERS, UNITS))) for name in ("activation", "beta")}
    return xr.Dataset({"mean": (dims, high - low), "positive": (dims, high), "negative": (dims, -low), **rest}, coords)


def test_heads_round_trip_and_their_ranking(tmp_path):
    data = heads()
    files = interop.write_heads(data.transpose("head", "layer", "emotion"), tmp_path)
    assert sorted(f.name for f in files) == sorted(f"head_importance_{e}.csv" for e in EMOTIONS)
    columns = "emotion,layer,head,mean_importance,std_importance,samples,baseline_mean"
    assert files[0].read_text().splitlines()[0] == columns
    back = interop.read_heads(tmp_path)
    xr.testing.assert_equal(back, data)
    assert back["n"].dtype == np.int64
    for e in EMOTIONS:
        ranks = literal.ranked(tmp_path / f"head_importance_{e}.csv", "head", "mean_importance")
        wanted = data["mean"].sel(emotion=e).argsort(axis=-1).values[:, ::-1]
        assert ranks == {layer: row.tolist() for layer, row in enumerate(wanted)}


def test_shipped_heads_lack_the_column_emotion_and_any_order(tmp_path):
    data = heads()
    (file,) = interop.write_heads(data.isel(emotion=[2]), tmp_path / "w")
    table = pd.read_csv(file).drop(columns="emotion").sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "head_importance_happiness.csv", index=False)
    xr.testing.assert_equal(interop.read_heads(tmp_path), data.isel(emotion=[2]))
    table.to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(EmotraceError, match="says no emotion"):
        interop.read_heads(tmp_path / "scores.csv")


def test_neurons_round_trip_with_the_sign_of_the_negative_part_turned(tmp_path):
    data = neurons()
    files = interop.write_neurons(data, tmp_path)
    table = pd.read_csv(files[0])
    assert table.columns.tolist() == ["emotion", "layer", "neuron", "C_mean", "C_pos", "C_neg", "beta", "H_mean"]
    assert (table["C_neg"] >= 0).all()
    np.testing.assert_allclose(table["C_mean"], table["C_pos"] - table["C_neg"])
    back = interop.read_neurons(tmp_path)
    xr.testing.assert_allclose(back, data)
    assert (back["negative"] <= 0).all()
    assert literal.ranked(files[0], "neuron", "C_mean")[1] == np.argsort(-data["mean"].values[0, 1]).tolist()
    table.assign(C_neg=-table["C_neg"]).to_csv(files[0], index=False)
    with pytest.raises(EmotraceError, match="C_pos − C_neg"):
        interop.read_neurons(tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.drop(index=3), "is missing"),
        (lambda t: pd.concat([t, t.iloc[[2]]]), "occurs twice"),
        (lambda t: t.drop(columns="samples"), "unknown column 'samples'"),
        (lambda t: t[t["layer"] != 1], "gap"),
        (lambda t: t.assign(samples=range(len(t))), "samples"),
        (lambda t: t.assign(baseline_mean=range(len(t))), "baseline_mean"),
        (lambda t: t.assign(mean_importance=[None, *t["mean_importance"][1:]]), "empty or no numbers"),
        (lambda t: t.assign(emotion="calm"), "unknown emotion"),
    ],
)
def test_tables_that_are_not_whole(tmp_path, change, word):
    (file,) = interop.write_heads(heads().isel(emotion=[0]), tmp_path)
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(EmotraceError, match=word):
        interop.read_heads(file)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "head_importance_fear.csv").write_bytes(b"")
    with pytest.raises(EmotraceError, match="no CSV table"):
        interop.read_heads(tmp_path)
    with pytest.raises(EmotraceError, match="no such file"):
        interop.read_heads(tmp_path / "head_importance_anger.csv")
    with pytest.raises(EmotraceError, match="'std' is missing"):
        interop.write_heads(heads().drop_vars("std"), tmp_path)


def importance(doses=(0.1, 0.5)):
    rows = []
    for dose in doses:
        for n, e in enumerate(EMOTIONS):
            for kind in ("attention", "mlp"):
                for layer in range(LAYERS):
                    sigma = 0.5 + layer + (kind == "mlp")
                    ds = dose * sigma * (1 + n + layer + dose)
                    rows.append(
                        {
                            "emotion": e, "kind": kind, "layer": layer, "alpha": dose, "sigma": sigma,
                            "dose": dose * sigma, "s_base_final": n - dose, "s_final": n - dose + ds, "ds_final": ds,
                            "I_final": ds / (dose * sigma), "s_base_anchor": None, "I_anchor": None,
                            "n_samples": 470 + n,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def test_importance_per_dose_and_averaged(tmp_path):
    table = importance()
    table.to_csv(tmp_path / "importance_all_alphas.csv", index=False)
    for dose, part in table.groupby("alpha"):
        part.to_csv(tmp_path / f"importance_all_alpha{dose}.csv", index=False)
    got = interop.read_importance(tmp_path)
    assert got["sublayer"].values.tolist() == ["attn_out", "mlp_out"]
    at = {"emotion": "fear", "layer": 2, "sublayer": "mlp_out"}
    assert got["finite"].sel({**at, "dose": 0.5}).item() == pytest.approx(1 + 3 + 2 + 0.5)
    assert got["influence"].sel(at).item() == pytest.approx(6.3)
    assert got["sigma"].sel(layer=2, sublayer="mlp_out").item() == 3.5
    assert got["base"].sel(emotion="fear", dose=0.1).item() == pytest.approx(2.9)
    assert got["n"].sel(emotion="fear").item() == 473
    assert "anchor" not in got
    (tmp_path / "importance_all_alphas.csv").unlink()
    xr.testing.assert_allclose(interop.read_importance(tmp_path), got)
    mean = table.groupby(["emotion", "kind", "layer"], as_index=False)["I_final"].mean()
    mean["I_final_normalized"] = mean["I_final"] / mean.groupby("emotion")["I_final"].transform("sum")
    mean.to_csv(tmp_path / "mean.csv", index=False)
    averaged = interop.read_importance(tmp_path / "mean.csv")
    xr.testing.assert_allclose(averaged["influence"], got["influence"])
    np.testing.assert_allclose(averaged["share"].sum(("layer", "sublayer")), 1)
    plan = circuits.published_allocation(averaged, 60, minimum={"neuron": 1, "head": 1})
    assert int(plan.sum()) == 60 * 6  # what we read is what the allocation takes
    table.assign(kind="neuron").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(EmotraceError, match="unknown kind"):
        interop.read_importance(tmp_path / "bad.csv")


def components():
    rows = []
    for n, e in enumerate(EMOTIONS):
        for layer in range(LAYERS):
            order = np.random.default_rng([n, layer]).permutation(UNITS)[: (layer + n) % 4]
            rows += [(e, "neuron", layer, int(i), rank) for rank, i in enumerate(order)]
        rows += [(e, "head", 1, n % HEADS, 0)]
    return pd.DataFrame(rows, columns=["emotion", "kind", "layer", "index", "rank"])


def test_a_circuit_of_ours_is_injected_by_their_script(tmp_path):
    table, differences = components(), ours()
    attention, mlp = interop.write_differences(differences, tmp_path / "05")
    files = interop.write_circuit(table.sample(frac=1, random_state=1), tmp_path / "06", n_layers=LAYERS)
    assert {f.stem for f in files} == set(EMOTIONS)
    circuit = circuits.Circuit(table.assign(score=0.0), differences)
    edits = {edit.site: edit.payload for edit in circuit.edits()}
    for e in EMOTIONS:
        for layer in range(LAYERS):
            neurons_, heads_ = literal.injection(tmp_path / "06", attention, mlp, e, layer, 4, UNITS)
            at = {"emotion": e, "layer": layer}
            for site, wanted in (("neuron", neurons_), ("z", heads_)):
                if layer in edits[site]["layer"].values:  # an edit lists the layers in which something is added
                    np.testing.assert_array_equal(edits[site].sel(at).values.ravel(), wanted)
                else:
                    assert not wanted.any()
    back = interop.read_circuit(tmp_path / "06")
    key = ["emotion", "kind", "layer", "rank"]
    pd.testing.assert_frame_equal(
        back.drop(columns="score").sort_values(key).reset_index(drop=True),
        table.sort_values(key).reset_index(drop=True),
        check_dtype=False,
    )
    theirs = circuits.Circuit(back, interop.read_differences(attention, mlp, n_heads=HEADS))
    assert theirs.counts().equals(circuit.counts())
    about = back.attrs["emotions"]["surprise"]
    assert about["K_alloc"] == {
        "mlp": int((table["emotion"].eq("surprise") & table["kind"].eq("neuron")).sum()),
        "attention": 1,
    }
    assert about["summary"]["attention"] == {"planned": 1, "used": 1, "final_deficit": 0}


def test_a_published_circuit(tmp_path):
    layers = [
        {"layer": 0, "mlp": {"k": 2, "neurons": [5546, 8165]}, "attention": {"k": 1, "heads": [12]}},
        {"layer": 1, "mlp": {"k": 0, "neurons": []}, "attention": {"k": 2, "heads": [19, 11]}},
    ]
    content = {"emotion": "anger", "K_total": 560, "ratio_mode": "fixed", "cap_ratio": 0.4, "layers": layers}
    (tmp_path / "anger.json").write_text(json.dumps(content))
    got = interop.read_circuit(tmp_path)
    assert got[["kind", "layer", "index", "rank"]].to_numpy().tolist() == [
        ["neuron", 0, 5546, 0], ["neuron", 0, 8165, 1], ["head", 0, 12, 0], ["head", 1, 19, 0], ["head", 1, 11, 1]
    ]  # fmt: skip
    assert got.attrs["emotions"]["anger"] == {"K_total": 560, "ratio_mode": "fixed", "cap_ratio": 0.4}
    for broken, word in (({"k": 3, "heads": [1]}, "k=3"), ({"heads": [1, 1]}, "no list"), ({"heads": [-1]}, "no list")):
        (tmp_path / "anger.json").write_text(json.dumps({**content, "layers": [{"layer": 0, "attention": broken}]}))
        with pytest.raises(EmotraceError, match=word):
            interop.read_circuit(tmp_path)
    (tmp_path / "anger.json").write_text(json.dumps({"emotion": "anger"}))
    with pytest.raises(EmotraceError, match="is no circuit"):
        interop.read_circuit(tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.drop(columns="rank"), "rank"),
        (lambda t: t.assign(kind="unit"), "unknown kind"),
        (lambda t: pd.concat([t, t]), "twice"),
        (lambda t: t.assign(layer=t["layer"] + 1), "not among the 3"),
    ],
)
def test_bad_components(tmp_path, change, word):
    with pytest.raises(EmotraceError, match=word):
        interop.write_circuit(change(components()), tmp_path, n_layers=LAYERS)
