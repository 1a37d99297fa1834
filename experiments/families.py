"""Families: every causal and masked class of the installed transformers, built tiny and random from its configuration."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from emotrace.sites.twin import randomise

VOCAB, LAYERS, WIDTH, HEADS, HEAD, FF, LENGTH = 160, 4, 32, 4, 8, 48, 64
LARGEST = 5_000_000
"""Parameters of a model that is still called tiny."""

SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCAB),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "dim", "word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "attention_hidden_size", "lru_width"), WIDTH),
    **dict.fromkeys(("embedding_dim", "d_latents", "prediction_head_size", "entity_emb_size"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "swa_num_attention_heads", "linear_num_heads"), HEADS),
    **dict.fromkeys(("num_self_attention_heads", "num_cross_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "dim_head", "kv_channels", "linear_head_dim", "attention_head_size"), HEAD),
    **dict.fromkeys(("d_head", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim"), HEAD),
    **dict.fromkeys(("rotary_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), HEAD),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "dim_ff", "dff"), FF),
    **dict.fromkeys(("encoder_ffn_dim", "feed_forward_size", "d_inner", "hidden_dim", "intermediate_size_mlp"), FF),
    **dict.fromkeys(("dense_intermediate_size", "prefix_dense_intermediate_size"), FF),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size", "moe_latent_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), LENGTH),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "original_max_position_embeddings"), LENGTH),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "sliding_window_size"), 4),
    **dict.fromkeys(("attention_chunk_size", "local_attention", "keep_window_size"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "hc_lowrank", "embedding_rank"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "index_topk", "block_size"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 8),
    **dict.fromkeys(("linear_num_value_heads", "n_groups", "sliding_window_pattern"), 2),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "num_hidden_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_kv_shared_layers", "num_mtp_layers", "num_nextn_predict_layers"), 0),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "adapter_rank", "router_hidden_size"), 8),
    **dict.fromkeys(("max_2d_position_embeddings", "shape_vocab_size", "pronunciation_vocab_size", "entity_vocab_size"), 64),
    **dict.fromkeys(("shape_embed_dim", "pronunciation_embed_dim", "intra_bottleneck_size", "query_pre_attn_scalar"), 16),
    **dict.fromkeys(("image_size", "num_mel_bins", "num_latents", "patch_size"), 8),
    "index_n_heads": 16,  # of few heads the scores are often all zero, and which of equal tokens is chosen is chance
    "ple_embed_dim": 8, "ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 1,
    "max_window_layers": 2, "type_vocab_size": 2, "global_attn_every_n_layers": 2, "backbone_hidden_size": WIDTH,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "audio_vocab_size": VOCAB,
}  # fmt: skip
"""Field of a configuration → small size; only where the field exists and is a number by default."""

TOWER = {"hidden_size": WIDTH, "intermediate_size": FF, "num_hidden_layers": 1, "num_attention_heads": HEADS, "image_size": 16,
         "patch_size": 8}  # fmt: skip
"""A tower for pictures or sound, which text does not pass."""

SETTINGS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2, "n_group": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "esmc": {"num_key_value_heads": HEADS},
    "esm": {"vocab_size": VOCAB, "mask_token_id": 5},
    "gemma3": {"vision_config": TOWER},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "modernvbert": {"vision_config": TOWER},
    "ultravbert": {"vision_config": TOWER},
    "got_ocr2": {"vision_config": TOWER | {"output_channels": 8, "global_attn_indexes": [0]}},
    "neomme": {"head_dim": 16},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "local_attn_chunk_length": 4,
                 "lsh_attn_chunk_length": 4, "attn_layers": ["local", "lsh"] * 2, "is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a family needs besides: model type → fields."""
FORCED = ("num_key_value_heads", "head_dim")
"""Sizes that are set though they are None by default."""


def names() -> list[tuple[str, str]]:
    """(model type, class) of all, each class once, causal ones first; a class for both is causal."""
    found: dict[str, str] = {}
    for table in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        for kind, name in table.items():
            found.setdefault(name, kind)
    return [(kind, name) for name, kind in found.items()]


def shrunk(config_class: Any, kind: str = "", **more: Any) -> Any:
    """A small configuration: sizes by the names of fields, sub-configurations alike."""
    fields: dict[str, Any] = {}
    parts = dict(getattr(config_class, "sub_configs", None) or {})
    for name, parameter in inspect.signature(config_class).parameters.items():
        default = parameter.default
        whole = isinstance(default, int) and not isinstance(default, bool)
        if name in parts:
            if not isinstance(parts[name], type) or parts[name] is transformers.AutoConfig:
                continue
            fields[name] = shrunk(parts[name]).to_dict()
        elif name in SIZES and (whole or name in FORCED or name.endswith("token_id")):
            fields[name] = SIZES[name]
        elif whole and name.endswith(("token_id", "token_index")):
            fields[name] = min(default, VOCAB - 2)
    if "kv_lora_rank" in fields:  # multi-head latent attention has a key for each head
        fields["num_key_value_heads"] = HEADS
    return config_class(**{**fields, **SETTINGS.get(kind, {}), **more})


def build(kind: str, name: str, seed: int = 0) -> Any:
    """A tiny random model of a class, in float32 and eval mode.

    Weights are drawn so that every branch counts and attention is far from uniform.

    Raises:
        Exception: whatever the class says of a configuration that is too small for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = getattr(transformers, name)
        config = shrunk(cls.config_class, kind)
        for part in (config, config.get_text_config()):
            with contextlib.suppress(AttributeError):
                part.is_decoder = "MaskedLM" not in name
        with torch.device("meta"):
            size = sum(p.numel() for p in cls._from_config(config, dtype=torch.float32).parameters())
        if size > LARGEST:
            raise ValueError(f"{size:,} parameters from the smallest configuration that is known")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls._from_config(config, dtype=torch.float32)
    randomise(model, seed)
    if (
        getattr(model, "generation_config", None) is not None
    ):  # Bart's replies end with a token, whatever the logits say
        model.generation_config.forced_bos_token_id = model.generation_config.forced_eos_token_id = None
    return model.eval()
