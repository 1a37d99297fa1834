"""Presets: the settings of the published lines of work, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from emotrace.labels import unknown


def preset(name: str) -> Mapping[str, Any]:
    """The settings that make a run comparable with one published line of work; copied into the run's manifest.

    Raises:
        EmotraceError: for an unknown name.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS, "preset")
    return PRESETS[name]


def _frozen(value: object) -> Any:
    return MappingProxyType({k: _frozen(v) for k, v in value.items()}) if isinstance(value, dict) else value


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = _frozen(
    {
        "emotion_circuits": {  # arXiv 2510.11328
            "model": "meta-llama/Llama-3.2-3B-Instruct",
            "dtype": "float32",
            "attn_implementation": {"generate": "eager", "capture": "sdpa"},
            "double_bos": True,
            "template_date": "day of the run",
            "system": "Always reply in {emotion}.\nKeep the reply to at most two sentences.",
            "system_steered": "Keep the reply to at most two sentences.",
            "user": "{scenario}\n{event}",
            "seed": 1234,
            "batch_size": 1,
            "decoding": {"do_sample": False, "max_new_tokens": 100},
            "decoding_steered": {
                "do_sample": False,
                "max_new_tokens": 100,
                "min_new_tokens": 10,
                "repetition_penalty": 1.05,
                "no_repeat_ngram_size": 3,
            },
            "capture": {
                "sites": ("resid_mid", "resid_post"),
                "positions": "last",
                "dtype": "float16",
                "accepted_only": True,
                "complete_groups_only": True,
            },
            "final_norm_last_row": True,
            "within": ("skeleton_id", "valence"),
            "keep_norms": False,
            "steering": {
                "site": "resid_post",
                "layers": tuple(range(11, 21)),
                "scale": "rms",
                "strength": 8.0,
                "positions": "steer",
            },
            "influence": {
                "doses": (0.1, 0.3, 0.5, 0.7),
                "block": tuple(range(21, 26)),
                "readout": "final_norm",
                "align": True,
            },
            "circuit": {
                "by": "mean",  # not contrasted with the other emotions
                "readout": "normed",  # heads at the input of the MLP, along resid_mid directions
                "total": 560,
                "mlp_share": 0.7,
                "minimum": {"neuron": 4, "head": 2},
                "cap": 0.4,
                "strength": 1.0,
                "strength_by_emotion": {"anger": 0.8},
                "neuron_positions": "steer",
                "head_positions": "all",
                "dtype": "float16",
            },
            "decoding_circuit": {
                "do_sample": False,
                "max_new_tokens": 100,
                "min_new_tokens": 10,
                "repetition_penalty": 1.1,
                "no_repeat_ngram_size": 3,
            },
            "judge": {"model": "gpt-4o-mini", "target_aware": True, "on_failure": "no match"},
        },
        "emotion_vectors": {  # arXiv 2502.04075
            "emotions": ("anger", "disgust", "fear", "joy", "sadness"),
            "dtype": "bfloat16",
            "capture": {"site": "o_proj_out", "positions": "generated", "mean_over": "steps"},
            "contrast": "emotional minus neutral answer to the same query, mean over queries",
            "base": "mean over emotions",
            "vector_dtype": "float32",
            "normalised": False,
            "steering": {
                "site": "o_proj_out",
                "layers": "all",
                "scale": "raw",
                "strengths": (-1, 0, 1, 2, 4),
                "positions": "steer",
            },
            "decoding": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 512, "seed": None},
            "held_out_queries": False,
        },
        "goemotions": {
            "model": "meta-llama/Llama-3.2-3B-Instruct",
            "data": {"set": "go_emotions", "split": "train", "single_label": True, "against": "neutral"},
            "chat_template": False,
            "capture": {"site": "resid_post", "positions": "last"},
            "final_norm_last_row": True,
            "vector": {"type": "top_k", "k": 50, "rank_by": "absolute mean difference", "normalised": False},
            "test": {"name": "Welch t", "two_sided": True, "correction": None},
            "steering": {"site": "resid_post", "layers": "all", "scale": "raw", "strength": 1.0, "positions": "steer"},
            "decoding": {"do_sample": False, "max_length": 60, "temperature": 0.7, "top_p": 0.9, "seed": 42},
            "classifier": "j-hartmann/emotion-english-distilroberta-base",
            "score_includes_prompt": True,
            "truthfulqa": {"rows": 817, "score": "any correct answer is a substring of prompt and answer"},
        },
        "model_emotion": {  # arXiv 2302.09582
            "model": "roberta-base",
            "seeds": (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 42, 100),
            "prompt_length": 100,
            "prompt_init": "normal(0, 0.02)",
            "verbalizer": {"negative": 33407, "positive": 22173},
            "negatives": {"with_replacement": True, "from": "all rows, positives included", "ratio": 1},
            "optimizer": {
                "name": "AdamW",
                "correct_bias": False,
                "lr": 2e-3,
                "weight_decay": 0.01,
                "schedule": "constant",
            },
            "training": {"epochs": 50, "batch_size": 8, "max_length": 256, "select": "best dev accuracy"},
            "accuracy": {"split": "dev", "mean": "of batches", "batch_size": 256},
            "activations": {"site": "neuron", "position": 0, "input": "<mask>, prompt, <s>"},
            "rsa": {
                "pattern_distance": "cosine",
                "neuron_distance": "absolute difference",
                "correlation": "kendall tau-b",
                "alternative": "greater",
                "attribute_decimals": None,
                "correction": "published",  # p * n / rank
                "significant_below": 0.01,
            },
            "masking": {
                "k": (500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000),
                "ablation": "zero",
                "positions": "all",
                "layers": "all",
                "random_draws": 1,
                "random_match": "none",
                "random_shared": False,
                "split": "dev",
                "batch_size": 100,
                "units": ("emotion", "seed", "attribute"),
            },
        },
    }
)
