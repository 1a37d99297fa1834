"""Decoding: a generation configuration in which nothing is left to the files beside the weights but the tokens a reply must
begin and end with."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from emotrace.forwards.entering import backend
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    from transformers import GenerationConfig

COLDEST: Final = 1e-4
"""Lowest temperature of sampling: what logits are divided by, in float16 too."""
OFF: Final = {
    "num_beams": 1, "num_return_sequences": 1, "min_length": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "remove_invalid_values": False,
    "renormalize_logits": False, "diversity_penalty": 0.0, "guidance_scale": 1.0,
}  # fmt: skip
"""What a checkpoint's generation_config.json would otherwise fill in, off."""
FILLED: Final = (
    "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "exponential_decay_length_penalty",
    "force_words_ids", "constraints", "stop_strings", "watermarking_config", "penalty_alpha", "dola_layers", "token_healing",
    "prompt_lookup_num_tokens", "top_h", "max_time",
)  # fmt: skip
"""What transformers takes from that file wherever nothing is said, and no value switches off."""
OF_THE_MODEL: Final = (
    "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"
)  # fmt: skip
"""What belongs to the model as its vocabulary does: Bart's replies begin and end as it was trained, as in transformers."""


@contextmanager
def neutral(model: LanguageModel) -> Iterator[None]:
    """No generation settings of the checkpoint, where the model is here; on a server they are refused, since they stay.

    Raises:
        EmotraceError: for a server's model whose settings would change tokens.
    """
    module = model._module
    own = module.generation_config
    filled = [name for name in FILLED if getattr(own, name, None)]
    if backend(model).name == "ndif":
        if filled:
            raise EmotraceError(
                f"the generation_config.json of {model.sites.model_class} sets {', '.join(filled)}, which a "
                "server applies unasked."
            )
        yield
        return
    module.generation_config = type(own)()
    try:
        yield
    finally:
        module.generation_config = own


def configuration(
    model: LanguageModel, decoding: dict[str, Any], pad_id: int, stops: Collection[int] = ()
) -> GenerationConfig:
    """A generation configuration with nothing but what `generate` was told, the model's end tokens, and those of ``stops``."""
    config = copy.deepcopy(model._module.generation_config)
    keep = {name: getattr(config, name, None) for name in OF_THE_MODEL}
    config = type(config)(**{k: v for k, v in keep.items() if v is not None})
    if config.eos_token_id is None:
        config.eos_token_id = getattr(model.sites.encoder.tokenizer, "eos_token_id", None)
    if stops:
        config.eos_token_id = sorted({*ends_of(config), *stops})
    config.pad_token_id = pad_id
    config.update(**{k: v for k, v in OFF.items() if hasattr(config, k)})
    config.update(**{k: v for k, v in decoding.items() if k not in ("seed", "stop")})
    if decoding.get("do_sample"):
        config.min_p = 0.0  # not among `OFF`: of greedy decoding transformers would say that it has no use for it
        config.top_k = config.top_k if decoding.get("top_k") else 0
    if not decoding.get("min_new_tokens"):
        config.min_new_tokens = None
    return config


def ends_of(config: GenerationConfig) -> list[int]:
    """The tokens that end a reply."""
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
