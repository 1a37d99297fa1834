"""Unpacked: models in GGUF files as transformers models with plain weights; their tokenizers do as the file says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import transformers
from tokenizers import pre_tokenizers
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from emotrace import configs, gguf_files
from emotrace.gguf_files import Header
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIGITS: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Names of text splitting that is GPT-2's with every digit by itself, which transformers takes for GPT-2's."""
AS_GPT2: Final = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
_UNREADABLE: Final = (OSError, ValueError, ImportError, RuntimeError, LookupError, AttributeError, TypeError)


def architectures() -> list[str]:
    """Those that the installed transformers reads."""
    return sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"})


def configuration(path: str | Path) -> Any:
    """The configuration of a model in a GGUF file.

    Raises:
        EmotraceError: for a damaged file, one part of several, or an architecture that transformers does not read.
    """
    header = gguf_files.header(path)
    parts = header.fields.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise EmotraceError(
            f"model {str(path)!r} is one of {parts} parts of a GGUF file; join them (llama-gguf-split --merge)."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder(path), gguf_file=Path(path).name)
    except _UNREADABLE as error:
        if header.architecture.replace("-", "_") not in architectures():  # transformers takes some names for others
            raise EmotraceError(
                f"model {str(path)!r}: the architecture {header.architecture!r} of GGUF files is not read by transformers "
                f"{transformers.__version__}; choices are {', '.join(architectures())}."
            ) from error
        raise _refusal(path, error) from error
    vars(config).pop("_model_name_or_path", None)  # a name is no part of what a model computes
    _tell_scaled(header, config)
    return config


def arguments(path: str | Path, config: Any) -> dict[str, Any]:
    """What ``from_pretrained`` of `folder` takes to read a GGUF file into plain weights."""
    return {
        "gguf_file": Path(path).name,
        "config": config,
        "quantization_config": transformers.GgufConfig(dequantize=True),
    }


def folder(path: str | Path) -> str:
    """Where a file lies."""
    return str(Path(path).expanduser().absolute().parent)


def plain(module: Any) -> Any:
    """A model without what remains of the quantisation that its file had."""
    for name in ("hf_quantizer", "quantization_method"):
        if name in vars(module):
            delattr(module, name)
    module.is_quantized = False
    if "quantization_config" in vars(module.config):
        del module.config.quantization_config
    return module


def tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file; it begins a text with BOS where the file says so, and not where it says not.

    Raises:
        EmotraceError: for a file without a tokenizer, or one that transformers does not read.
    """
    header = gguf_files.header(path)
    if "tokenizer.ggml.tokens" not in header.arrays:
        raise EmotraceError(f"{path} holds no tokenizer: give one with tokenizer=….")
    says = header.fields.get("tokenizer.ggml.add_bos_token")
    options: dict[str, Any] = {"add_bos_token": says} if isinstance(says, bool) else {}
    if says and "tokenizer.ggml.bos_token_id" not in header.fields:
        options = {}
    try:
        made = transformers.PreTrainedTokenizerFast.from_pretrained(folder(path), gguf_file=Path(path).name, **options)
    except _UNREADABLE as error:
        raise _refusal(path, error) from error
    made.name_or_path = Path(path).name
    _split(made, header)
    return made


def _split(made: Any, header: Header) -> None:
    """Have text split as the file says, where transformers does not know the word."""
    rule = header.fields.get("tokenizer.ggml.pre")
    if header.fields.get("tokenizer.ggml.model") != "gpt2" or rule in GGUF_PRE_TOKENIZER_SPLITS or rule in AS_GPT2:
        return
    if rule in DIGITS:
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return
    warnings.warn(
        f"{header.path.name} splits text by a rule of the name {rule!r}, which is not known here; it is split as GPT-2 does, "
        "and token ids may be others than those that the model was trained with. Give the model's own tokenizer (tokenizer=…).",
        stacklevel=4,
    )


def _tell_scaled(header: Header, config: Any) -> None:
    scaled = header.fields.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaled == "none" and any(t.name.startswith("rope_freqs") for t in header.tensors):
        scaled = "rope_freqs"
    rope = configs.field(config, "rope_parameters", {})
    if scaled != "none" and isinstance(rope, dict) and rope.get("rope_type", "default") == "default":
        warnings.warn(
            f"{header.path.name} scales its rotary frequencies ({scaled}), which transformers does not read from GGUF files: "
            "what depends on far positions is not the original model's. Load the original checkpoint where that matters.",
            stacklevel=4,
        )


def _refusal(path: str | Path, error: Exception) -> EmotraceError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return EmotraceError(f"model {str(path)!r} cannot be read: {first}")
