"""Asking a store: captured once, asked without a model, here and in a process that never imports one."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

import emotrace as et
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.experiments.studies import ROOT, experiment

FEW = {"limit": 4, "neurons": 3, "heads": 1}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    tiny.save("gemma2", folder / "model", num_hidden_layers=2)
    with pytest.MonkeyPatch.context() as patch, experiment("ask_store", patch) as module:
        settings = {name: p.default for name, p in inspect.signature(module.main).parameters.items()}
        settings |= {**FEW, "model": str(folder / "model"), "data": ROOT / "data" / "sev.jsonl", "out": folder / "run"}
        module.main(**settings)
        yield module, settings


def test_what_was_captured_is_asked_without_a_model(asked):
    _, settings = asked
    out = settings["out"]
    before = json.loads((out / "report.json").read_text())
    (out / "report.json").unlink()
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "experiments")!r})
import ask_store
from pathlib import Path
ask_store.ask(Path({str(out)!r}), {FEW["neurons"]}, {FEW["heads"]})
for name in ("torch", "transformers", "nnsight"):
    assert name not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "report.json").read_text()) == before
    assert "heads that raise the projection" in done.stdout


def test_the_answers_are_those_of_the_slices(asked):
    module, settings = asked
    out = settings["out"]
    acts = et.open_activations(out / "activations.zarr").where(half="asked")
    directions = et.directions.load(out / "directions")
    report = json.loads((out / "report.json").read_text())
    assert report["rows"] == len(acts) == 36
    assert '"half": "asked"' in report["selection"]
    layer = report["layer"]
    rows = acts.sel("residual", layer=layer, sublayer="resid_post")
    units = directions.sel(layer=layer, sublayer="resid_post")
    p = rows.values @ units.sel(emotion="fear").values
    own, gaps = rows["emotion"].values, module.own_less_others(acts, directions)
    cross = [rows.values[own == "fear"] @ units.sel(emotion=e).values for e in et.EMOTIONS if e != "fear"]
    length = np.sqrt((rows.values**2).mean(-1)).mean() * np.sqrt(rows.sizes["dim"])
    want = (p[own == "fear"].mean() - np.mean(cross)) / length
    assert float(gaps.sel(emotion="fear", layer=layer, sublayer="resid_post")) == pytest.approx(want, rel=1e-4)
    circuit = et.circuits.Circuit.load(out / "circuit")
    assert len(circuit.components) == report["components"] == 6 * 2 * (3 + 1)
    assert set(report["themes"]) == set(acts.column("theme"))


def test_nothing_to_ask(asked, tmp_path):
    module, settings = asked
    with pytest.raises(EmotraceError, match="holds no captured activations yet"):
        module.main(**{**settings, "model": None, "out": tmp_path / "empty"})
