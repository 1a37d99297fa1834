"""Memory: a model that does not fit is refused before its weights are read, with what would fit."""

from __future__ import annotations

import pytest
import torch
import transformers

import emotrace as et
from emotrace import memory
from emotrace.labels import EmotraceError
from emotrace.testing import tiny

CPU = torch.device("cpu")


def config(rows, **more):
    """Of a Llama of two layers whose parameters are nearly all in a vocabulary of so many rows."""
    settings = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": rows,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return transformers.LlamaConfig(**settings, **more)


def test_sizes_are_those_of_the_model_itself():
    for name in ("llama", "gpt2", "bert"):
        module = tiny.build(name)
        auto = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
        found = memory.size(auto, module.config, False)
        assert found.numel == sum(p.numel() for p in module.parameters()), name
        assert found.largest == max(p.numel() for p in module.parameters()), name
    assert memory.Size(100, 10).needed(torch.bfloat16) == memory.ROOM + 220
    assert memory.Size(100, 10).needed(torch.bfloat16, unpacked=True) == memory.ROOM + 280


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path):
    rows = int(
        memory.available(CPU) * 1.3 / 8 / 64
    )  # tables of the words twice while loading: in float32 too large by 30 %
    config(rows).save_pretrained(tmp_path)  # and no weights at all
    with pytest.raises(
        EmotraceError, match=r"needs [\d.]+ GiB in float32, and cpu has [\d.]+ GiB left.*dtype='bfloat16'"
    ):
        et.load(tmp_path)
    with pytest.raises(EmotraceError, match="no file named"):
        et.load(tmp_path, dtype="bfloat16")
    config(rows * 4).save_pretrained(tmp_path)
    with pytest.raises(EmotraceError, match=r"in bfloat16.*at most [\d.]+ billion parameters in 16 bits"):
        et.load(tmp_path, dtype="bfloat16")
