"""Studies of a model on a server, with an ordinary key: they run, and find what is found here (`make soak`)."""

import inspect
import json
import multiprocessing
import shutil
import socket
import time

import numpy as np
import pytest
import torch

import emotrace as et
from emotrace.disk import write_json
from emotrace.labels import EmotraceError
from emotrace.remote import Server
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


def discovery(folder, patch):
    """Settings of a small circuit discovery."""
    tiny.save("llama", folder / "model", num_hidden_layers=2)
    with experiment("circuit_discovery", patch) as module:
        settings = {name: p.default for name, p in inspect.signature(module.main).parameters.items()}
    return settings | {
        **FEW,
        "exact_pairs": 1,
        "model": str(folder / "model"),
        "train": ROOT / "data" / "sev.jsonl",
    }


def steering(folder, patch):
    """Settings of a small steering from texts."""
    write_json(folder / "texts.json", TEXTS)
    return {
        **COMMON, **strangers(folder), "train": str(folder / "texts.json"), "trial": folder / "theirs.json",
        "questions": str(ROOT / "data" / "truthfulqa_mc_sample.json"), "emotions": "fear,joy", "against": "neutral",
        "grouping": None, "keep": 4, "layers": None, "system": "", "limit": 4,
    }  # fmt: skip


def knowledge(folder, patch):
    """Settings of a small study of prompts that nothing was tuned for."""
    with experiment("emotion_knowledge", patch) as module:
        train = module.train_tiny_masked
        texts = train.compose(train.DATA / "emotion_phrases.json", train.DATA / "goemotions_sample.csv", (5, 4, 4))
        train.write(texts, folder / "model")
        train.fit(texts, folder / "model", train.SMOKE)
    return {**SMALL, "bos": None, "model": str(folder / "model"), "texts": folder / "model", "position": "last"}


def ran(name, patch, settings, out, remote):
    """The report of a study."""
    with experiment(name, patch) as module:
        if name == "emotion_knowledge":
            module.study.PERMUTATIONS = module.study.DRAWS = 50
        module.main(**{**settings, "remote": remote, "out": out})
    return json.loads((out / "report.json").read_text())


def test_circuit_discovery_patches_nodes_and_edges_there(served, tmp_path, monkeypatch):
    settings = discovery(tmp_path, monkeypatch)
    server = served(tmp_path / "model")
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
    settings = steering(tmp_path, monkeypatch)
    server = served(tmp_path / "model")
    here = ran("goemotions_steering", monkeypatch, settings, tmp_path / "here", None)
    there = ran("goemotions_steering", monkeypatch, settings, tmp_path / "there", server.url)
    assert there["methods"] == here["methods"]
    scores = [[row["auroc"] for row in found["texts"]] for found in (here, there)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)


def test_neurons_of_untuned_prompts(served, tmp_path, monkeypatch):
    settings = knowledge(tmp_path, monkeypatch)
    server = served(tmp_path / "model")
    with pytest.raises(EmotraceError, match=r"soft prompts are tuned, .* where the weights are"):
        ran(
            "emotion_knowledge",
            monkeypatch,
            settings | {"position": None},
            tmp_path / "refused",
            server.url,
        )
    report = ran("emotion_knowledge", monkeypatch, settings, tmp_path / "there", server.url)
    assert {"rsa", "neurons", "apart"} <= set(report)
    assert "un-tuned" in report["warnings"][-1]
    assert {p.stem for p in (tmp_path / "there" / "figures").iterdir()} == {"rdms", "selective_neurons"}
    untuned = settings | {"model": str(tmp_path / "model"), "untuned": True, "position": None}
    here = ran("emotion_knowledge", monkeypatch, untuned, tmp_path / "untuned", None)
    assert here["rsa"]["human"]["correlation"] == pytest.approx(report["rsa"]["human"]["correlation"], abs=1e-4)
    assert "un-tuned" in here["warnings"][-1]
    with pytest.raises(EmotraceError, match="--untuned reads the last token"):
        ran("emotion_knowledge", monkeypatch, untuned | {"position": "answer"}, tmp_path / "refused", None)


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


def alone(*given):
    """What a process of its own runs."""
    torch.set_num_threads(1)  # a fork has no threads of its own
    with pytest.MonkeyPatch.context() as patch:
        ran(given[0], patch, *given[1:])


@pytest.mark.parametrize(
    ("name", "small"),
    [("goemotions_steering", steering), ("circuit_discovery", discovery), ("emotion_knowledge", knowledge)],
    ids=["goemotions_steering", "circuit_discovery", "emotion_knowledge"],
)
def test_a_study_killed_on_its_way_asks_nothing_twice(served, tmp_path, monkeypatch, name, small):
    settings = small(tmp_path, monkeypatch)
    server, fork = served(tmp_path / "model"), multiprocessing.get_context("fork")
    et.load(settings["model"], remote=Server(server.url, server.key))
    loading = start = len(server.log())

    def begun(out):
        process = fork.Process(target=alone, args=(name, settings, tmp_path / out, server.url))
        process.start()
        return process

    process = begun("whole")
    process.join()
    assert process.exitcode == 0
    whole = len(server.log()) - start
    server.faults(delay="running", seconds=0.15, times=-1)
    start, killed, shares = len(server.log()), 0, (0.35, 0.7, 0.93)
    for share in shares:
        process = begun("broken")
        while process.is_alive():
            waiting = any(log.stat().st_size for log in (tmp_path / "broken").rglob("*.jobs"))
            if waiting and len(server.log()) - start >= share * whole:
                break
            time.sleep(0.03)
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed == len(shares)
    server.calm()
    process = begun("broken")
    process.join()
    assert process.exitcode == 0
    asked = len(server.log()) - start
    assert whole <= asked <= whole + killed * loading, "no more than an unbroken run, and what each load may ask"
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("whole", "broken")]
    assert reports[1] == reports[0]
    for replies in (tmp_path / "whole").glob("*.jsonl"):
        assert (tmp_path / "broken" / replies.name).read_bytes() == replies.read_bytes()
    assert not list((tmp_path / "broken").rglob("*.jobs"))
