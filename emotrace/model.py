"""Model: load any causal or masked Hugging Face model as nnsight's own ``TransformersModel``, with its sites attached."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nnsight
import tokenizers
import torch
import transformers
from nnsight import TransformersModel
from safetensors import SafetensorError

from emotrace import sites as sites_
from emotrace import traced
from emotrace.labels import EmotraceError
from emotrace.templates import DATE, Encoder

nnsight.register(traced)  # what runs inside a trace ships by value to a remote server


def load(
    model: str | Path | torch.nn.Module | TransformersModel,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    tokenizer: Any = None,
    date: str = DATE,
    double_bos: bool = False,
    trust_remote_code: bool = False,
) -> TransformersModel:
    """nnsight's model of a checkpoint, with ``model.sites`` proven and attached.

    Args:
        model: hub id, directory, or a transformers or nnsight model already loaded (used as it is).
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda:1`` …; not together with ``device_map``.
        dtype: of the weights; None is float32 on a CPU, whatever the checkpoint holds, else the checkpoint's.
        device_map: passed to transformers (needs accelerate).
        revision: branch, tag or commit of a hub id.
        attn_implementation: ``eager`` (gives ``attn_pattern``), ``sdpa`` …; None takes transformers' choice.
        tokenizer: a tokenizer or its id; None takes the model's own.
        date: ISO day told to dated chat templates.
        double_bos: as EmotionCircuits encoded its prompts (preset ``emotion_circuits``).
        trust_remote_code: run code that comes with a checkpoint. Off by default.

    Returns:
        A ``TransformersModel`` in eval mode; ``model.sites`` reads, writes and encodes.

    Raises:
        EmotraceError: for a missing checkpoint, an unknown dtype or device, a quantized or PEFT model, an
            encoder-decoder, or a model whose sites cannot be proven.
    """
    given = [
        name
        for name, value in (
            ("device", None if device == "auto" else device), ("dtype", dtype), ("device_map", device_map),
            ("revision", revision), ("attn_implementation", attn_implementation),
        )
        if value is not None
    ]  # fmt: skip
    if isinstance(model, (str, Path)):
        source = str(model)
        module = _from_pretrained(source, device, dtype, device_map, revision, attn_implementation, trust_remote_code)
        tokenizer = _tokenizer(source if tokenizer is None else tokenizer, revision, trust_remote_code)
        model_id = source
    else:
        if given:
            names = ", ".join(given)
            raise EmotraceError(f"load(model=<{type(model).__name__}>) is loaded already; {names} cannot apply to it.")
        nnsight_model = model if isinstance(model, TransformersModel) else None
        module: Any = model if nnsight_model is None else nnsight_model._module
        tokenizer = tokenizer if tokenizer is not None else getattr(nnsight_model, "tokenizer", None)
        tokenizer = _tokenizer(tokenizer, revision, trust_remote_code)
        config = getattr(module, "config", None)
        model_id = str(getattr(config, "_name_or_path", "") or f"in memory: {type(module).__name__}")
    _refuse_unsupported(module, model_id)
    found = sites_.find(module)
    causal = is_causal(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*E_output.*")  # BERT-likes name a child `output`; see sites.envoy
        warnings.filterwarnings("ignore", message=".*already defined.*")
        traced_model = model if isinstance(model, TransformersModel) else _wrap(module, tokenizer)
    limit = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    encoder = Encoder(
        tokenizer, causal=causal, date=date, double_bos=double_bos, max_length=_positions(module, limit),
        vocab_size=getattr(module.config.get_text_config(), "vocab_size", None),
    )  # fmt: skip
    found.attach(traced_model, encoder)
    found.identity = identity(module, model_id, revision)
    module.eval()
    return traced_model


def _wrap(module: Any, tokenizer: Any) -> TransformersModel:
    return TransformersModel(module, tokenizer=_placeholder() if tokenizer is None else tokenizer)


def _placeholder() -> Any:
    """nnsight's pipeline wants a tokenizer; a model without one gets this, and our encoder then refuses text."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


def _from_pretrained(
    source: str, device: str, dtype: Any, device_map: Any, revision: str | None, attn: str | None, trust: bool
) -> Any:
    path = Path(source)
    beside = len(path.parts) > 1 and path.parent.is_dir()  # "data/tiny_modell" is a slip, not a hub id
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1 or beside
    if (path / "adapter_config.json").is_file():
        raise EmotraceError(
            f"model {source!r} is a PEFT adapter. Merge it (merge_and_unload) and give the merged model."
        )
    if looks_local and not (path / "config.json").is_file():
        problem = "no config.json in it" if path.is_dir() else "not a directory"
        raise EmotraceError(f"model {source!r}: {problem}. Give a Hugging Face model directory or a hub id.")
    if device_map is not None and device != "auto":
        raise EmotraceError(f"device={device!r} and device_map={device_map!r}: give one of them.")
    where = _device(device)
    number_type = _dtype(dtype, where)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **common)
        _refuse_config(config, source)
        auto = _auto_class(config)
        if attn is not None:
            common["attn_implementation"] = attn
        if device_map is not None:
            common["device_map"] = device_map
        module, info = auto.from_pretrained(
            source, dtype=number_type, use_safetensors=_safetensors(path), output_loading_info=True, **common
        )
    except EmotraceError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EmotraceError(f"model {source!r} cannot be loaded: {first}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise EmotraceError(
            f"model {source!r}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}; they would be random."
        )
    return module if device_map is not None else module.to(where)


def _safetensors(path: Path) -> bool | None:
    """Only safetensors from a directory that has them; never a pickle that transformers would not load itself."""
    return True if any(path.glob("*.safetensors")) else None


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise EmotraceError(f"device={device!r} is not usable here: {str(error).splitlines()[0]}") from None
    return where


def _dtype(dtype: Any, where: torch.device) -> Any:
    if dtype is None:
        return torch.float32 if where.type == "cpu" else "auto"
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise EmotraceError(f"dtype={dtype!r}: choices are {', '.join(names)}.")
    return names[dtype]


def _auto_class(config: Any) -> Any:
    architectures = " ".join(config.architectures or ())
    if "ForMaskedLM" in architectures:
        return transformers.AutoModelForMaskedLM
    if "ForCausalLM" in architectures or "LMHead" in architectures:
        return transformers.AutoModelForCausalLM
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM):
        if type(config) in auto._model_mapping:
            return auto
    raise EmotraceError(f"{type(config).__name__} ({architectures or 'no architecture'}) is no causal or masked model.")


def _refuse_config(config: Any, name: str) -> None:
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        quantized = quantized if isinstance(quantized, dict) else quantized.to_dict()
        raise EmotraceError(
            f"model {name!r} is quantized ({quantized.get('quant_method', '4/8-bit')}): its sites are "
            "proven on plain weights. Load an unquantized checkpoint, or dtype='bfloat16' to halve the memory."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise EmotraceError(f"model {name!r} is an encoder-decoder; emotrace takes causal and masked models.")


def _refuse_unsupported(module: Any, name: str) -> None:
    if hasattr(module, "peft_config") or type(module).__module__.startswith("peft"):
        raise EmotraceError(f"model {name!r} is a PEFT model. Give model.merge_and_unload() instead.")
    if not isinstance(module, transformers.PreTrainedModel):
        raise EmotraceError(f"load(model=…) takes a hub id, a directory, a transformers or an nnsight model, "
                            f"not {type(module).__name__}.")  # fmt: skip
    _refuse_config(module.config, name)


def _tokenizer(source: Any, revision: str | None, trust: bool) -> Any:
    if not isinstance(source, str):
        return source
    try:
        return transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise EmotraceError(f"tokenizer of {source!r} cannot be loaded: {first}") from error


def is_causal(module: Any) -> bool:
    """Whether a transformers model is a decoder that generates."""
    return bool(module.can_generate()) and "MaskedLM" not in type(module).__name__


def _positions(module: Any, limit: Any) -> int | None:
    """Longest sequence; RoBERTa's table starts after its padding index."""
    if not isinstance(limit, int):
        return None
    pad = getattr(module.config, "pad_token_id", None)
    is_roberta = "roberta" in str(getattr(module.config, "model_type", ""))
    return limit - pad - 1 if is_roberta and isinstance(pad, int) else limit


def identity(module: Any, model_id: str, revision: str | None) -> dict[str, Any]:
    """What a manifest says of a model: id, revision, hashes of configuration and weights, dtype, attention."""
    config = {k: v for k, v in module.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return {
        "model_id": model_id if not Path(model_id).exists() else Path(model_id).name,
        "revision": revision or getattr(module.config, "_commit_hash", None) or "",
        "config_hash": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "weights_hash": _weights_hash(module),
        "dtype": str(module.dtype).removeprefix("torch."),
        "attn_implementation": str(getattr(module.config, "_attn_implementation", "")),
        "backend": "local",
        "device": str(next(module.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def _weights_hash(module: Any) -> str:
    """Hash of every parameter's name, shape and the integer sum of its bit patterns, which no order of adding changes."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        total = "absent" if parameter.is_meta else _bits(parameter)
        digest.update(f"{name}{tuple(parameter.shape)}{total}".encode())
    return digest.hexdigest()[:16]


def _bits(parameter: torch.Tensor) -> str:
    """Sums of all bit patterns and of every third, and the first sixteen: one changed weight is noticed."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    bits = parameter.detach().view(integers).reshape(-1)
    return f"{int(bits.sum(dtype=torch.int64))} {int(bits[::3].sum(dtype=torch.int64))} {bits[:16].tolist()}"


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {name: version(name) for name in ("emotrace", "nnsight", "torch", "transformers", "zarr", "xarray", "numpy")}


_LOCKS: dict[int, threading.RLock] = {}


@contextmanager
def locked(model: TransformersModel) -> Iterator[None]:
    """One trace at a time per model: nnsight's interleaver belongs to one thread."""
    with _LOCKS.setdefault(id(model._module), threading.RLock()):
        yield
