"""Proofs that are kept: what was shown of a model is read for the same one, and shown anew for any other."""

from __future__ import annotations

import json

import pytest
import torch

import emotrace as et
from emotrace import proofs
from emotrace import sites as sites_
from emotrace.disk import cache
from emotrace.forwards import beginnings
from emotrace.sites import written
from emotrace.testing import tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOTRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shown(monkeypatch):
    """What was shown, rather than read."""
    found = []
    for module, name in ((sites_, "find"), (beginnings, "prove"), (beginnings, "_shares")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **o: found.append(name) or real(*a, **o))
    return found


def opened(name="llama", **options):
    return et.load(tiny.build(name, **options), tokenizer=tiny.tiny_tokenizer())


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_table_is_read_as_it_was_written(name):
    table = sites_.find(tiny.build(name))
    read = written.read(json.loads(json.dumps(written.written(table))))
    assert read == table
    assert read.proofs == table.proofs
    assert [list(v) for v in read.addresses.values()] == [list(v) for v in table.addresses.values()]


@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "phi"])
def test_the_same_model_is_shown_once(name, folder, shown):
    options = {"sliding_window": 40} if name == "mistral" else {}
    first = opened(name, **options)
    limit = beginnings.shared_up_to(first)
    assert {"find", "prove"} <= set(shown)
    shown.clear()
    again = opened(name, **options)
    assert beginnings.shared_up_to(again) == limit
    assert shown == []
    assert again.sites == first.sites
    assert again.sites.proofs == first.sites.proofs
    assert again.sites.beginnings == first.sites.beginnings
    assert again.sites.identity == first.sites.identity
    ids = [list(range(20, 36)), list(range(40, 60))]
    rows = [[r["token_ids"] for r in et.generate(m, ids, max_new_tokens=3, progress=False)] for m in (first, again)] if (
        first.sites.encoder.causal
    ) else [0, 0]  # fmt: skip
    assert rows[0] == rows[1]


def test_another_model_is_shown_anew(folder, shown, monkeypatch):
    opened()
    others = {
        "weights": lambda: opened(seed=1),
        "configuration": lambda: opened(rope_theta=5e3),
        "attention": lambda: opened(attn_implementation="eager"),
    }
    for what, other in others.items():
        shown.clear()
        other()
        assert {"find", "prove"} <= set(shown), what
    module = tiny.build("llama")
    for what, release in (("versions", "versions"), ("code", "_code")):
        shown.clear()
        with monkeypatch.context() as patch:
            patch.setattr(proofs, release, lambda: {"torch": "0"})
            opened()
        assert {"find", "prove"} <= set(shown), what
    module.model.layers[0].register_forward_hook(lambda m, a, out: out)
    assert proofs.about(module) is None


class Own(torch.nn.Linear):
    """Of a class that no version describes."""


def test_classes_of_ones_own_are_shown_every_time(folder):
    module = tiny.build("llama")
    assert proofs.about(module) is not None
    module.lm_head.__class__ = Own
    assert proofs.about(module) is None


def test_prompts_of_another_padding_are_shown_on_the_twin_again(folder, shown):
    first = opened("mistral", sliding_window=40)
    shown.clear()
    tokenizer = tiny.tiny_tokenizer(specials={"pad_token": "</s>"})
    other = et.load(tiny.build("mistral", sliding_window=40), tokenizer=tokenizer)
    assert "find" not in shown
    assert "prove" in shown
    assert other.sites.beginnings == first.sites.beginnings


@pytest.mark.parametrize("harm", ["half", "other", "text", "changed"])
def test_a_damaged_entry_is_shown_anew_and_mended(harm, folder, shown):
    opened()
    files = sorted(folder.rglob("*.json"))
    assert {path.parent.name for path in files} == {"sites", "beginnings"}
    whole = {path: path.read_bytes() for path in files}
    for path in files:
        known = json.loads(whole[path])
        if harm == "other":
            known["about"] = "0" * 16
        if harm == "changed":
            known["value"]["shared" if "shared" in known["value"] else "twin"] = 3
        path.write_text({"half": whole[path].decode()[:40], "text": "no"}.get(harm) or json.dumps(known))
    shown.clear()
    opened()
    assert {"find", "prove"} <= set(shown)
    assert {path: path.read_bytes() for path in files} == whole


def test_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOTRACE_CACHE", "")
    assert cache.folder() is None
    assert proofs.about(tiny.build("llama")) is None
    monkeypatch.delenv("EMOTRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "emotrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "emotrace"


def test_a_folder_that_takes_nothing_stops_no_load(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMOTRACE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="EMOTRACE_CACHE names another folder"):
        opened()
