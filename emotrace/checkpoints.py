"""Checkpoints: transformers models, configurations and tokenizers from the hub or a directory, with errors that help."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers
from nnsight import TransformersModel
from safetensors import SafetensorError
from torch import nn

from emotrace import gguf_files, memory, unpacked
from emotrace.configs import field
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def from_pretrained(
    source: str, device: str, dtype: Any, device_map: Any, revision: str | None, attn: str | None, trust: bool
) -> Any:
    """A transformers model with its weights.

    Raises:
        EmotraceError: for what `emotrace.load` says.
    """
    if device_map is not None and device != "auto":
        raise EmotraceError(f"device={device!r} and device_map={device_map!r}: give one of them.")
    where = _device(device)
    number_type = _dtype(dtype, where)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust}
    config, auto = configuration(source, revision, trust)
    packed = gguf_files.is_one(source)
    if device_map is None:
        _fits(source, auto, config, number_type, where, trust)
    if attn is not None:
        common["attn_implementation"] = attn
    if device_map is not None:
        common["device_map"] = device_map
    common |= unpacked.arguments(source, config) if packed else {"use_safetensors": _safetensors(Path(source))}
    try:
        module, info = auto.from_pretrained(
            unpacked.folder(source) if packed else source, dtype=number_type, output_loading_info=True, **common
        )
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise EmotraceError(
            f"model {source!r}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}; they would be random."
        )
    module = unpacked.plain(module) if packed else module
    return module if device_map is not None else module.to(where)


def _fits(source: str, auto: Any, config: Any, dtype: torch.dtype | str, where: torch.device, trust: bool) -> None:
    """Refuse a model that does not fit; one that cannot be built is told of by whoever builds it with its weights."""
    chosen = dtype if isinstance(dtype, torch.dtype) else field(config, "dtype")
    try:
        size = memory.size(auto, config, trust)
    except _UNREADABLE:
        return
    for place in {torch.device("cpu"), where}:  # weights are read into memory, and go to their device from there
        kept = chosen if isinstance(chosen, torch.dtype) else torch.float32
        memory.check(source, size, kept, place, gguf_files.is_one(source))


def configuration(source: str, revision: str | None, trust: bool) -> tuple[Any, Any]:
    """The configuration of a model, and the transformers class that makes it.

    Raises:
        EmotraceError: for a missing checkpoint, an adapter, or a model that emotrace does not take.
    """
    path = Path(source)
    if gguf_files.is_one(path):
        if revision is not None:
            raise EmotraceError(f"model {source!r} is a file; revision={revision!r} cannot apply to it.")
        config = unpacked.configuration(path)
        refuse_config(config, source)
        return config, _auto_class(config)
    beside = len(path.parts) > 1 and path.parent.is_dir()  # "data/tiny_modell" is a slip, not a hub id
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1 or beside
    if (path / "adapter_config.json").is_file():
        raise EmotraceError(
            f"model {source!r} is a PEFT adapter. Merge it (merge_and_unload) and give the merged model."
        )
    if looks_local and not (path / "config.json").is_file():
        problem = "no config.json in it" if path.is_dir() else "not a directory"
        raise EmotraceError(
            f"model {source!r}: {problem}. Give a Hugging Face model directory, a GGUF file or a hub id."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust)
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error
    refuse_config(config, source)
    return config, _auto_class(config)


_UNREADABLE = (
    OSError, ValueError, ImportError, RuntimeError, LookupError, AttributeError, TypeError, ArithmeticError, SafetensorError
)  # fmt: skip


def _unreadable(source: str, error: Exception) -> EmotraceError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return EmotraceError(f"model {source!r} cannot be loaded: {first}")


def _safetensors(path: Path) -> bool | None:
    """Only safetensors from a directory that has them; never a pickle that transformers would not load itself."""
    return True if any(path.glob("*.safetensors")) else None


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).cpu()  # "meta" makes tensors, but holds nothing
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise EmotraceError(f"device={device!r} is not usable here: {str(error).splitlines()[0]}") from None
    return where


def _dtype(dtype: Any, where: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if where.type == "cpu" else "auto"
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise EmotraceError(f"dtype={dtype!r}: choices are {', '.join(names)}.")
    return names[dtype]


def _auto_class(config: Any) -> Any:
    architectures = " ".join(field(config, "architectures", ()))
    if "ForMaskedLM" in architectures:
        return transformers.AutoModelForMaskedLM
    if "ForCausalLM" in architectures or "LMHead" in architectures:
        return transformers.AutoModelForCausalLM
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM):
        if type(config) in auto._model_mapping:
            return auto
    raise EmotraceError(f"{type(config).__name__} ({architectures or 'no architecture'}) is no causal or masked model.")


def refuse_config(config: object, name: str) -> None:
    """Refuse a model that is quantized, or an encoder-decoder."""
    quantized = field(config, "quantization_config")
    if quantized:
        quantized = quantized if isinstance(quantized, dict) else quantized.to_dict()
        raise EmotraceError(
            f"model {name!r} is quantized ({quantized.get('quant_method', '4/8-bit')}): its sites are "
            "proven on plain weights. Load an unquantized checkpoint, or dtype='bfloat16' to halve the memory."
        )
    if field(config, "is_encoder_decoder"):
        raise EmotraceError(f"model {name!r} is an encoder-decoder; emotrace takes causal and masked models.")


def refuse_unsupported(module: object, name: str) -> None:
    """Refuse what is no plain transformers model."""
    if hasattr(module, "peft_config") or type(module).__module__.startswith("peft"):
        raise EmotraceError(f"model {name!r} is a PEFT model. Give model.merge_and_unload() instead.")
    if not isinstance(module, transformers.PreTrainedModel):
        raise EmotraceError(f"load(model=…) takes a hub id, a directory, a GGUF file, a transformers or an nnsight model, "
                            f"not {type(module).__name__}.")  # fmt: skip
    refuse_config(module.config, name)


def tokenizer_of(
    source: PreTrainedTokenizerBase | str | None, revision: str | None, trust: bool
) -> PreTrainedTokenizerBase | None:
    """A tokenizer by its id or directory; one already made as it is."""
    if not isinstance(source, str):
        return source
    if gguf_files.is_one(source):
        return unpacked.tokenizer(source)
    try:
        return transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise EmotraceError(f"tokenizer of {source!r} cannot be loaded: {first}") from error


def wrapped(module: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> TransformersModel:
    """nnsight's model of a transformers model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*E_output.*")  # BERT-likes name a child `output`; see sites.envoy
        warnings.filterwarnings("ignore", message=".*already defined.*")
        return TransformersModel(module, tokenizer=placeholder() if tokenizer is None else tokenizer)


def placeholder() -> PreTrainedTokenizerBase:
    """nnsight's pipeline wants a tokenizer, with a mask for masked models; this stands in, and our encoder refuses text."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", mask_token="<pad>"
    )
