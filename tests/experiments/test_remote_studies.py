"""Studies of a model on a server, with an ordinary key: they run, and find what is found here (`make soak`)."""

import inspect
import json
import shutil
import socket

import numpy as np
import pytest

from emotrace.disk import write_json
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from emotrace.testing.ndif import loopback
from tests.experiments.studies import COMMON, ROOT, experiment, strangers
from tests.experiments.test_circuit_discovery import FEW
from tests.experiments.test_emotion_knowledge import SMALL
from tests.experiments.test_goemotions_steering import TEXTS

pytestmark = pytest.mark.soak


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves a model under the path of its folder, and takes its key: an ordinary one, or the trusted one."""
    opened = []

    def serve(folder, world="ordinary"):
        context = loopback({str(folder): folder})
        server = context.__enter__()
        opened.append(context)
        monkeypatch.setenv("NDIF_API_KEY", server.key if world == "ordinary" else server.trusted_key)
        return server

    yield serve
    for context in opened:
        context.__exit__(None, None, None)


def ran(name, patch, settings, out, remote):
    """The report of a study, and the folder."""
    with experiment(name, patch) as module:
        module.main(**{**settings, "remote": remote, "out": out})
    return json.loads((out / "report.json").read_text())


def test_circuit_discovery_patches_nodes_and_edges_there(served, tmp_path, monkeypatch):
    tiny.save("llama", tmp_path / "model", num_hidden_layers=2)
    server = served(tmp_path / "model")
    with experiment("circuit_discovery", monkeypatch) as module:
        settings = {name: p.default for name, p in inspect.signature(module.main).parameters.items()}
    settings |= {**FEW, "exact_pairs": 1, "model": str(tmp_path / "model"), "train": ROOT / "data" / "sev.jsonl"}
    here = ran("circuit_discovery", monkeypatch, settings, tmp_path / "here", None)
    there = ran("circuit_discovery", monkeypatch, settings, tmp_path / "there", server.url)
    assert "circuit" in here
    assert "circuit" not in there
    for swap in ("emotion", "valence"):
        pairs = [{row["node"]: row["effect"] for row in found["nodes"][swap]} for found in (here, there)]
        assert list(pairs[0]) == list(pairs[1])
        np.testing.assert_allclose(list(pairs[1].values()), list(pairs[0].values()), rtol=1e-3)
    edges = [found["agreement"]["emotion edge"] for found in (here, there)]
    assert set(edges[1]) == {f"{method}{by}" for method in ("magnitude", "random") for by in ("", " (magnitudes)")}
    assert edges[1] == pytest.approx({name: edges[0][name] for name in edges[1]}, abs=1e-2)
    assert "emotion edge path_patching" in there["areas"]
    assert not list((tmp_path / "there").glob("*.jobs"))


def test_steering_from_texts(served, tmp_path, monkeypatch):
    write_json(tmp_path / "texts.json", TEXTS)
    settings = {
        **COMMON, **strangers(tmp_path), "train": str(tmp_path / "texts.json"), "trial": tmp_path / "theirs.json",
        "questions": str(ROOT / "data" / "truthfulqa_mc_sample.json"), "emotions": "fear,joy", "against": "neutral",
        "grouping": None, "keep": 4, "layers": None, "system": "", "limit": 4,
    }  # fmt: skip
    server = served(tmp_path / "model")
    here = ran("goemotions_steering", monkeypatch, settings, tmp_path / "here", None)
    there = ran("goemotions_steering", monkeypatch, settings, tmp_path / "there", server.url)
    assert there["methods"] == here["methods"]
    scores = [[row["auroc"] for row in found["texts"]] for found in (here, there)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)


def test_neurons_of_untuned_prompts(served, tmp_path, monkeypatch):
    with experiment("emotion_knowledge", monkeypatch) as module:
        train = module.train_tiny_masked
        texts = train.compose(train.DATA / "emotion_phrases.json", train.DATA / "goemotions_sample.csv", (5, 4, 4))
        train.write(texts, tmp_path / "model")
        train.fit(texts, tmp_path / "model", train.SMOKE)
        module.study.PERMUTATIONS = module.study.DRAWS = 50
        server = served(tmp_path / "model")
        settings = {
            **SMALL,
            "bos": None,
            "model": str(tmp_path / "model"),
            "texts": tmp_path / "model",
            "remote": server.url,
        }
        with pytest.raises(EmotraceError, match=r"soft prompts are tuned, .* where the weights are"):
            module.main(**settings, out=tmp_path / "refused")
        module.main(**(settings | {"position": "last"}), out=tmp_path / "there")
    report = json.loads((tmp_path / "there" / "report.json").read_text())
    assert {"rsa", "neurons", "apart"} <= set(report)
    assert "un-tuned" in report["warnings"][-1]
    assert {p.stem for p in (tmp_path / "there" / "figures").iterdir()} == {"rdms", "selective_neurons"}


@pytest.mark.parametrize("world", ["ordinary", "trusted"])
def test_a_store_of_a_server_is_asked_when_that_is_gone(served, tmp_path, monkeypatch, world):
    tiny.save("gemma2", tmp_path / "model", num_hidden_layers=2)
    server = served(tmp_path / "model", world)
    with experiment("ask_store", monkeypatch) as module:
        settings = {name: p.default for name, p in inspect.signature(module.main).parameters.items()}
    settings |= {"limit": 4, "neurons": 3, "heads": 1, "data": ROOT / "data" / "sev.jsonl"}
    captured = {**settings, "model": str(tmp_path / "model")}
    here = ran("ask_store", monkeypatch, captured, tmp_path / "here", None)
    there = ran("ask_store", monkeypatch, captured, tmp_path / "there", server.url)
    for name in ("layer", "components", "rows"):
        assert there[name] == here[name]
    ours, theirs = (
        {(h["emotion"], h["layer"], h["head"]): h["contrast"] for h in found["heads"]} for found in (here, there)
    )
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    shutil.rmtree(tmp_path / "model")

    def connect(self, address):
        raise ConnectionRefusedError(address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    assert ran("ask_store", monkeypatch, settings, tmp_path / "there", None) == there
