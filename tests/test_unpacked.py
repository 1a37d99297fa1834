"""Unpacked: a GGUF file is the model written into it, its tokenizer does as the file says, a bad file is one line."""

from __future__ import annotations

import warnings

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

import emotrace as et
from emotrace import unpacked
from emotrace.labels import EmotraceError
from emotrace.templates import Encoder
from emotrace.testing import tiny
from tests import ggufs

BOS = 1


def read(path):
    """The encoder of a file, and what is said of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        coder = Encoder(unpacked.tokenizer(path))
        unpacked.configuration(path)
        coder.ids(["Rain", [{"role": "user", "content": "Rain"}]])
    return coder, [*coder.notices, *(str(w.message) for w in told)]


@pytest.fixture(scope="module")
def module():
    return tiny.build("llama")


def test_a_gguf_file_is_the_model_that_was_written(module, tmp_path, monkeypatch):
    file = ggufs.write(tmp_path / "tiny.gguf", module, **{"tokenizer.ggml.add_bos_token": True})
    ids = torch.tensor([[1, 5, 9, 40, 22]])
    model = et.load(file)
    with torch.no_grad():
        torch.testing.assert_close(model._module(ids).logits, module(ids).logits, rtol=0, atol=1e-6)
    ours = et.load(module, tokenizer=tiny.tiny_tokenizer())
    texts = ["It rained in 2024, twice.", [{"role": "user", "content": "Hello"}]]
    assert model.sites.encoder.ids(texts) == ours.sites.encoder.ids(texts)
    assert model.sites.identity["dtype"] == "float32"
    monkeypatch.chdir(tmp_path)
    file.rename("other name.gguf")
    again = et.load("other name.gguf").sites.identity
    for name in ("weights_hash", "config_hash"):
        assert again[name] == model.sites.identity[name], "a file is known by what it holds"


def test_quantised_weights_become_plain_ones(tmp_path):
    whole = tiny.build("llama", hidden_size=32, intermediate_size=64)
    file = ggufs.write(tmp_path / "q.gguf", whole, GGMLQuantizationType.Q8_0)
    config = unpacked.configuration(file)
    model = et.load(file, dtype="bfloat16")
    assert {p.dtype for p in model._module.parameters()} == {torch.bfloat16}
    assert not hasattr(model._module.config, "quantization_config")
    for (name, weight), other in zip(whole.named_parameters(), model._module.parameters(), strict=True):
        torch.testing.assert_close(other.float(), weight, rtol=0.02, atol=0.02, msg=name)
    assert config.num_hidden_layers == whole.config.num_hidden_layers


@pytest.mark.parametrize(("says", "begins", "notices"), [(True, True, 0), (False, False, 0), (None, False, 1)])
def test_the_file_says_whether_texts_begin_with_bos(says, begins, notices, module, tmp_path):
    template = tiny.CHAT_TEMPLATE.replace("{{ bos_token }}", "") if says is not True else tiny.CHAT_TEMPLATE
    fields = {"tokenizer.ggml.add_bos_token": says, "tokenizer.chat_template": template}
    coder, told = read(ggufs.write(tmp_path / "b.gguf", module, **fields))
    assert [("BOS token '<s>'" in t, "puts it before no prompt" in t) for t in told] == [(True, True)] * notices
    assert (coder.ids(["Rain"])[0][0] == BOS) is begins
    assert coder.ids(["Rain"])[0].count(BOS) == begins


def test_what_transformers_passes_over_is_said_or_done(module, tmp_path):
    says = {"tokenizer.ggml.add_bos_token": True}
    coder, told = read(ggufs.write(tmp_path / "a.gguf", module, **says, **{"tokenizer.ggml.pre": "smollm"}))
    assert told == []
    split = coder.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("in 2024")] == ["in", "Ġ", "2", "0", "2", "4"]
    fields = {"tokenizer.ggml.pre": "unheard-of", "llama.rope.scaling.type": "yarn"}
    _, told = read(ggufs.write(tmp_path / "b.gguf", module, **says, **fields))
    assert ["'unheard-of'" in t for t in told] == [True, False]
    assert "(yarn)" in told[1]


def test_a_file_that_is_no_model_is_one_line(module, tmp_path):
    whole = ggufs.write(tmp_path / "whole.gguf", module).read_bytes()
    for name, data, message in (
        ("absent.gguf", None, "No such file"),
        ("text.gguf", b"version https://git-lfs", "no GGUF file"),
        ("cut.gguf", whole[:-100], r"cut off: tensor '.*' ends at byte [\d,]+ of"),
        ("header.gguf", whole[:300], "cut off"),
        ("old.gguf", whole[:4] + (1).to_bytes(4, "little") + whole[8:], "version 1"),
        ("big.gguf", whole[:4] + (3).to_bytes(4, "big") + whole[8:], "big-endian"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(EmotraceError, match=message) as refused:
            et.load(tmp_path / name)
        assert "\n" not in str(refused.value)
    writer = GGUFWriter(tmp_path / "other.gguf", "wonderful")
    writer.add_uint32("wonderful.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EmotraceError, match=r"architecture 'wonderful' .*choices are .*llama.*qwen2"):
        et.load(tmp_path / "other.gguf")
    with pytest.raises(EmotraceError, match="one of 3 parts"):
        et.load(ggufs.write(tmp_path / "part.gguf", module, **{"split.count": 3}))
    with pytest.raises(EmotraceError, match="cannot apply to it"):
        et.load(tmp_path / "whole.gguf", revision="main")
    with pytest.raises(EmotraceError, match="is a file here; a server is asked for a hub id"):
        et.load(tmp_path / "whole.gguf", remote="http://localhost:1")
