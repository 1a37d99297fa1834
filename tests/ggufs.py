"""GGUF files of tiny models, written by the package `gguf`, as converters write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

from emotrace.testing import tiny

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(path: Path, module: Any, kind: GGMLQuantizationType | None = None, **fields: Any) -> Path:
    """A Llama and its tokenizer; matrices quantised as ``kind``, fields beside the usual or (None) left out."""
    config, writer = module.config, GGUFWriter(path, "llama")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    said = {
        "general.name": "tiny", "llama.context_length": config.max_position_embeddings,
        "llama.block_count": config.num_hidden_layers, "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size, "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads, "llama.vocab_size": config.vocab_size,
        "llama.rope.dimension_count": config.head_dim, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": tiny.CHAT_TEMPLATE,
    } | fields  # fmt: skip
    for name, value in said.items():
        if value is None:
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(name, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", config.rope_parameters["rope_theta"])
    words = json.loads(tiny.tiny_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    tokens = sorted(words, key=words.__getitem__)
    tokens += ["~~", *(f"[PAD{i}]" for i in range(len(tokens) + 1, config.vocab_size))]
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in tiny.SPECIALS else TokenType.NORMAL for t in tokens])
    writer.add_token_merges(["~ ~"])
    for name, weight in module.state_dict().items():
        array = weight.detach().to(torch.float32).numpy()
        kept, ending = _named(name)
        if kept.split(".")[-1] in heads:  # as llama.cpp turns: halves of a head beside each other
            n = heads[kept.split(".")[-1]]
            array = array.reshape(n, 2, array.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(array.shape)
        array = np.ascontiguousarray(array)
        if kind is not None and array.ndim == 2:
            writer.add_tensor(f"{kept}.{ending}", quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{kept}.{ending}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(name: str) -> tuple[str, str]:
    stem, ending = name.rsplit(".", 1)
    plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in plain:
        return plain[stem], ending
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}", ending
