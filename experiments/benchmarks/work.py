"""Work: the models and prompts that the benchmarks run on; random, built in memory, the same on every machine."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import emotrace as et
from emotrace.datasets import sev
from emotrace.sites import LanguageModel

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "tiny_model"
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z", "neuron")
"""The seven sites of the benchmark."""

LARGE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4,
    "intermediate_size": 2048, "vocab_size": 2048,
}  # fmt: skip
SMOL = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of SmolLM2-135M."""
SMALL = {
    "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 704, "vocab_size": 2048, "tie_word_embeddings": True,
}  # fmt: skip
QUICK = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 2048,
}  # fmt: skip


class Pair(NamedTuple):
    """The same weights twice: ready for emotrace, and as a plain transformers model that no library has touched."""

    model: LanguageModel
    twin: Any


def llama(settings: dict[str, Any]) -> Pair:
    """A random Llama and its twin."""
    config = transformers.LlamaConfig(
        **settings, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(config).eval()
    twin = transformers.LlamaForCausalLM(config).eval()
    twin.load_state_dict(module.state_dict())
    return Pair(et.load(module), twin)


def shipped() -> Pair:
    """The shipped model, or a random one of its size where it has not been trained yet."""
    if not (SHIPPED / "model.safetensors").is_file():
        return llama(SMALL)
    twin = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    return Pair(et.load(SHIPPED), twin)


def random_ids(prompts: int, length: int, seed: int = 0) -> list[list[int]]:
    """Token ids that share no beginning."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 2048, (prompts, length), generator=generator).tolist()


def sev_ids(model: LanguageModel, limit: int | None = None) -> list[list[int]]:
    """Token ids of ``data/sev.jsonl`` in six emotions (2,880 prompts), in the order of `emotrace.datasets.sev`.

    A model without a tokenizer gets stand-in ids: one per piece of a word, so that lengths and shared beginnings are
    much as a tokenizer of 2,048 pieces makes them.
    """
    prompts = sev(ROOT / "data" / "sev.jsonl", limit=limit)
    if model.sites.encoder.tokenizer is not None:
        return model.sites.encoder.ids(prompts)
    return [[1, *(i for m in p.messages or () for i in _pieces(m["role"], m["content"])), 3] for p in prompts]


def _pieces(role: str, text: str) -> list[int]:
    words = re.findall(r"\w{1,5}|[^\w ]", text)
    return [4 + zlib.crc32(role.encode()) % 4, *(8 + zlib.crc32(w.encode()) % 2040 for w in words), 3]


def padded(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch, padded on the left."""
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
    }


def batches(ids: list[list[int]], size: int, by_length: bool = False) -> list[dict[str, torch.Tensor]]:
    """Padded batches, in the given order or sorted by length, longest first."""
    order = sorted(ids, key=len, reverse=True) if by_length else ids
    return [padded(order[i : i + size]) for i in range(0, len(order), size)]


@torch.no_grad()
def forward(twin: Any, inputs: list[dict[str, torch.Tensor]]) -> None:
    """The bare forward of every batch, logits included and no cache kept: what capturing is measured against."""
    for batch in inputs:
        twin(**batch, use_cache=False)
