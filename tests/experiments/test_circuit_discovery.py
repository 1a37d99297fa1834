"""The study of circuits, from a file to a page, on a random model that it has never seen."""

import inspect
import json

import pandas as pd
import pytest

import emotrace as et
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.experiments.studies import ROOT, experiment

FEW = {"limit": 8, "pairs_per_skeleton": 2, "exact_pairs": 0, "edges": 12, "nodes": 3, "steps": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discovery")
    tiny.save("llama", folder / "model", num_hidden_layers=2)
    with pytest.MonkeyPatch.context() as patch, experiment("circuit_discovery", patch) as module:
        settings = {name: p.default for name, p in inspect.signature(module.main).parameters.items()}
        settings |= {**FEW, "model": str(folder / "model"), "train": ROOT / "data" / "sev.jsonl", "out": folder / "run"}
        module.main(**settings)
        yield module, settings


def test_the_page_has_its_figures_and_tables(place):
    out = place[1]["out"]
    figures = {"circuit", "nodes_emotion", "nodes_valence", "agreement", "faithfulness"}
    assert {p.stem for p in (out / "figures").iterdir()} == figures
    assert {p.stem for p in (out / "tables").iterdir()} == {"nodes", "agreement", "areas"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f'id="figure-{name}"' in page for name in figures)
    report = json.loads((out / "report.json").read_text())
    assert report["layer"] == 0
    assert report["circuit"]["n"] == 12
    skeletons = {name: set(found) for name, found in report["circuit"]["skeletons"].items()}
    assert [len(skeletons[name]) for name in ("chosen_on", "tried_on")] == [3, 1]
    assert not skeletons["chosen_on"] & skeletons["tried_on"]
    for name in ("emotion", "valence"):
        change = report["metric"][name]
        assert change["value"] == pytest.approx(change["clean"] - change["counterfactual"], abs=1e-5)
        assert change["ci95"][0] <= change["value"] <= change["ci95"][1]
    acts = et.open_activations(out / "activations.zarr")
    assert {by: set(row) for by, row in report["apart"].items()} == {
        by: set(acts.column(by)) for by in ("valence", "theme")
    }
    rows = acts.sel("residual", layer=0, sublayer="resid_post", valence="positive")
    v = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id", "valence")).isel(layer=0, sublayer=0)
    p = rows.values @ v.values.T
    own = rows["emotion"].values[:, None] == v["emotion"].values
    want = (p[own] - (p * ~own).sum(1) / (~own).sum(1)).mean()
    assert report["apart"]["valence"]["positive"] == pytest.approx(want, rel=1e-3)
    nodes = pd.read_csv(out / "tables" / "nodes.csv")
    assert nodes.groupby("swapped").size().to_dict() == {"emotion": 3, "valence": 3}
    assert (nodes["node"].str.fullmatch(r"[am]0(\.h\d)?")).all()  # nothing after the layer that the metric reads


def test_again_it_reads_what_is_done(place, capsys, undrawn):
    module, settings = place
    before = {p: p.stat().st_mtime_ns for p in (settings["out"] / "scores").iterdir()}
    module.main(**settings)
    assert {p: p.stat().st_mtime_ns for p in (settings["out"] / "scores").iterdir()} == before
    assert "rank correlation with the exact effect, emotion node: eap" in capsys.readouterr().out
    with pytest.raises(EmotraceError, match="other settings"):
        module.main(**{**settings, "edges": 13})


def test_what_there_is_not_is_refused_before_anything_runs(place, tmp_path):
    module, settings = place
    with pytest.raises(EmotraceError, match="layer 7"):
        module.main(**{**settings, "layer": 7, "out": tmp_path / "x"})
    assert not (tmp_path / "x").exists()


def test_nodes_alone_by_one_method(place, tmp_path, capsys):
    module, settings = place
    out = tmp_path / "nodes"
    module.main(**{**settings, "methods": "eap_ig_inputs", "edges": 0, "patched_pairs": 2, "out": out})
    scored = {p.stem for p in (out / "scores").glob("*.json")}
    made = {
        f"{swap}_node_{m}"
        for swap in ("emotion", "valence")
        for m in ("eap_ig_inputs", "patching", "magnitude", "random")
    }
    assert scored == made | {f"curve_node_{m}" for m in ("eap_ig_inputs", "magnitude", "random")}
    report = json.loads((out / "report.json").read_text())
    assert report["scored_by"] == {"node": "eap_ig_inputs", "edge": "eap_ig_inputs"}
    assert "circuit" not in report
    assert set(report["agreement"]) == {"emotion node", "valence node"}
    assert "effects of nodes (eap_ig_inputs)" in capsys.readouterr().out
    with pytest.raises(EmotraceError, match="unknown method 'patching'"):
        module.main(**{**settings, "methods": "patching", "out": tmp_path / "x"})
