"""Tiny: random transformers models of every family, built offline in a blink, and a tokenizer for them.

For tests only: the weights are noise, drawn so that every branch of every block matters.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from emotrace.configs import number, text_config
from emotrace.labels import unknown
from emotrace.sites.twin import randomise

VOCAB = 160
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_MHA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GQA = {**_MHA, "num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_MLA = {**_MHA, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16} | dict.fromkeys(
    ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8
)
_OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
} | {"max_position_embeddings": 64}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _GQA),
    "mistral": ("MistralForCausalLM", {**_GQA, "head_dim": 16}),
    "qwen2": ("Qwen2ForCausalLM", _GQA),
    "qwen3": ("Qwen3ForCausalLM", {**_GQA, "head_dim": 16}),
    "gemma": ("GemmaForCausalLM", {**_GQA, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**_GQA, "head_dim": 16}),
    "gemma3": ("Gemma3ForCausalLM", {**_GQA, "head_dim": 16}),
    "phi": ("PhiForCausalLM", _MHA),
    "phi3": ("Phi3ForCausalLM", _GQA),
    "gpt2": ("GPT2LMHeadModel", _GPT),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        | {"max_position_embeddings": 64},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", _MHA),
    "gpt-j": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "opt": ("OPTForCausalLM", _OPT),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": ("FalconForCausalLM", _FALCON),
    "olmo2": ("Olmo2ForCausalLM", _GQA),
    "starcoder2": ("Starcoder2ForCausalLM", _GQA),
    "stablelm": ("StableLmForCausalLM", _GQA),
    "cohere": ("CohereForCausalLM", _GQA),
    "mixtral": ("MixtralForCausalLM", {**_GQA, "num_local_experts": 4}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {**_GQA, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "minicpm3": ("MiniCPM3ForCausalLM", {**_MLA, "scale_depth": 1.4, "scale_emb": 12, "dim_model_base": 16}),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        {**_MLA, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2}
        | {"topk_group": 1, "moe_intermediate_size": 24},
    ),
    "bert": ("BertForMaskedLM", _MHA),
    "roberta": ("RobertaForMaskedLM", {**_MHA, "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}),
    "electra": ("ElectraForMaskedLM", {**_MHA, "embedding_size": 16}),
    "deberta-v2": (
        "DebertaV2ForMaskedLM",
        {**_MHA, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        {**_MHA, "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    ),
}
"""Family → class and configuration. One entry per family of the conformance suite."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-new": ("FalconForCausalLM", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-sequential": ("FalconForCausalLM", {**_FALCON, "parallel_attn": False, "alibi": True}),
    "gpt-neox-sequential": ("GPTNeoXForCausalLM", {**_MHA, "use_parallel_residual": False}),
    "stablelm-parallel": ("StableLmForCausalLM", {**_GQA, "use_parallel_residual": True}),
    "opt-post-ln": ("OPTForCausalLM", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "llama-tied": ("LlamaForCausalLM", {**_GQA, "tie_word_embeddings": True}),
    "granite": ("GraniteForCausalLM", {**_GQA, "residual_multiplier": 0.22, "embedding_multiplier": 12.0}),
    "deberta-v2-conv": (
        "DebertaV2ForMaskedLM",
        {**_MHA, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        | {"conv_kernel_size": 3, "conv_act": "gelu", "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
}
"""Forms of a family that its default configuration does not show: other residuals, tied and scaled weights."""

NAMES = (*FAMILIES, *VARIANTS)


def build(
    name: str, *, seed: int = 0, attn_implementation: str | None = None, **config: Any
) -> transformers.PreTrainedModel:
    """A tiny random model in float32 and eval mode.

    Args:
        name: one of `NAMES`.
        seed: of the weights.
        attn_implementation: ``eager``, ``sdpa`` or None for transformers' choice.
        config: settings that replace the table's.

    Raises:
        EmotraceError: for an unknown name.
    """
    if name not in NAMES:
        raise unknown("tiny model", name, NAMES, "testing.tiny.build")
    class_name, settings = (FAMILIES | VARIANTS)[name]
    with warnings.catch_warnings():  # DeBERTa scripts functions at import, in a way that torch has deprecated
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        cls = getattr(transformers, class_name)
    base: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings = base | settings | config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls._from_config(
            cls.config_class(**settings), dtype=torch.float32, attn_implementation=attn_implementation
        )
    randomise(model, seed)
    return model.eval()


def batch(model: transformers.PreTrainedModel, *, lengths: tuple[int, ...] = (7, 4), seed: int = 0) -> dict[str, Any]:
    """Random ids and mask of several lengths: padded on the left for decoders, on the right for encoders."""
    generator = torch.Generator().manual_seed(seed)
    longest, causal = max(lengths), model.can_generate()
    ids = torch.full((len(lengths), longest), number(text_config(model.config), "pad_token_id") or 0)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        span = slice(longest - n, longest) if causal else slice(0, n)
        ids[row, span] = torch.randint(len(SPECIALS), VOCAB, (n,), generator=generator)
        mask[row, span] = 1
    return {"input_ids": ids, "attention_mask": mask}


def tiny_tokenizer(
    *, chat_template: str | None = CHAT_TEMPLATE, adds_bos: bool = True, specials: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: any text in, the same text out, one id per byte pair at most.

    Printable ASCII has ids of its own, so every id is below `VOCAB`; other characters become ``<unk>``.

    Args:
        chat_template: Jinja text, or None for a tokenizer without a template.
        adds_bos: put ``<s>`` before every text, as Llama's does.
        specials: special tokens that replace the defaults, by their transformers name.
    """
    alphabet = [*SPECIALS, *(chr(c) for c in range(33, 127)), "Ġ", "Ċ"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(alphabet)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **(names | dict(specials or {})),
        additional_special_tokens=[t for t in SPECIALS if t.startswith("<|")],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def save(name: str, directory: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> Path:
    """Write a tiny model and its tokenizer as a Hugging Face directory.

    Args:
        name: one of `NAMES`.
        directory: created if absent.
        tokenizer: written beside the model; None takes `tiny_tokenizer`.
        options: for `build`.
    """
    directory = Path(directory)
    build(name, **options).save_pretrained(directory)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(directory)
    return directory
