"""Model: load any causal or masked Hugging Face model as nnsight's own ``TransformersModel``, with its sites attached."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nnsight
import torch
from nnsight import TransformersModel

from emotrace import checkpoints, configs, gguf_files, proofs, shipped, traced
from emotrace import known as known_
from emotrace.forwards.entering import backend, inputs, lock
from emotrace.identity import identity
from emotrace.labels import EmotraceError
from emotrace.remote import Remote, Server, Simulated, weightless
from emotrace.remote.confirm import confirm
from emotrace.sites import LanguageModel
from emotrace.specials import check_switch
from emotrace.templates import DATE, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

nnsight.register(traced)  # what runs inside a trace ships by value to a remote server


def load(
    model: str | Path | torch.nn.Module | TransformersModel,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    date: str = DATE,
    double_bos: bool = False,
    bos: bool | None = None,
    trust_remote_code: bool = False,
    remote: bool | str | Server = False,
) -> LanguageModel:
    """nnsight's model of a checkpoint, with ``model.sites`` proven and attached.

    Args:
        model: hub id, directory, GGUF file (de-quantised), short name of what `emotrace fetch` has fetched, ``tiny`` (the
            shipped model), or a transformers or nnsight model already loaded (used as it is).
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda:1`` …; not together with ``device_map``.
        dtype: of the weights; None is float32 on a CPU, whatever the checkpoint holds, else the checkpoint's.
        device_map: passed to transformers.
        revision: branch, tag or commit of a hub id.
        attn_implementation: ``eager`` (gives ``attn_pattern``), ``sdpa`` …; None takes transformers' choice.
        tokenizer: a tokenizer or its id; None takes the model's own.
        date: ISO day told to dated chat templates.
        double_bos: as EmotionCircuits encoded its prompts (preset ``emotion_circuits``).
        bos: True begins every prompt with one BOS token, False with none; None does as tokenizer and chat template do, and warns
            where they know a BOS token and do not put it.
        trust_remote_code: run code that comes with a checkpoint. Off by default.
        remote: where it runs. False is here. True is NDIF, a URL another server of its kind: no weights are loaded, only
            configuration and tokenizer; host and key come from nnsight's configuration (``NDIF_HOST``, ``NDIF_API_KEY``), or a
            `emotrace.remote.Server` says them. ``"local"`` is here, packed as for a server.

    Returns:
        A ``TransformersModel`` in eval mode; ``model.sites`` reads, writes and encodes.

    Raises:
        EmotraceError: for a missing checkpoint, an unknown dtype or device, a model that does not fit there (before it is
            loaded, with what would fit), a quantized or PEFT model, an encoder-decoder, or a model whose sites cannot be
            proven; remotely for a missing key, a model that is not up, or versions that do not fit.
    """
    given = [
        name
        for name, value in (
            ("device", None if device == "auto" else device), ("dtype", dtype), ("device_map", device_map),
            ("revision", revision), ("attn_implementation", attn_implementation),
        )
        if value is not None
    ]  # fmt: skip
    check_switch(bos, double_bos)
    if remote not in (None, False, "local") and isinstance(model, (str, Path)) and gguf_files.is_one(model):
        raise EmotraceError(f"load({str(model)!r}, remote=…) is a file here; a server is asked for a hub id.")
    server = _server(remote)
    traced_model: TransformersModel | None = None
    if isinstance(model, (str, Path)):
        source = known_.place(str(model), here=server is None)
        if server is None:
            source = str(shipped.find(source))
            module: Any = checkpoints.from_pretrained(
                source, device, dtype, device_map, revision, attn_implementation, trust_remote_code
            )
            tokenizer = checkpoints.tokenizer_of(
                source if tokenizer is None else tokenizer, revision, trust_remote_code
            )
        else:
            if set(given) & {"device", "dtype", "device_map"}:
                raise EmotraceError(f"load(remote=…): the server chose {', '.join(given)} when it loaded {source!r}.")
            config, auto = checkpoints.configuration(source, revision, trust_remote_code)
            tokenizer = checkpoints.tokenizer_of(
                source if tokenizer is None else tokenizer, revision, trust_remote_code
            )
            there = weightless.deployed(server, source, auto, revision, trust_remote_code)
            client = traced_model = weightless.build(
                source,
                config,
                auto,
                tokenizer or checkpoints.placeholder(),
                revision,
                attn_implementation,
                trust_remote_code,
                there.key,
            )
            module, source = client._module, there.name
        model_id = source
    else:
        if given:
            names = ", ".join(given)
            raise EmotraceError(f"load(model=<{type(model).__name__}>) is loaded already; {names} cannot apply to it.")
        if server is not None:
            raise EmotraceError(
                f"load(model=<{type(model).__name__}>, remote=…) has its weights here: give its hub id."
            )
        nnsight_model = model if isinstance(model, TransformersModel) else None
        module = model if nnsight_model is None else nnsight_model._module
        tokenizer = tokenizer if tokenizer is not None else getattr(nnsight_model, "tokenizer", None)
        tokenizer = checkpoints.tokenizer_of(tokenizer, revision, trust_remote_code)
        config = getattr(module, "config", None)
        model_id = str(configs.field(config, "_name_or_path") or f"in memory: {type(module).__name__}")
        traced_model = nnsight_model
    checkpoints.refuse_unsupported(module, model_id)
    known = proofs.about(module) if server is None else None
    found = proofs.sites(module, known)
    causal = is_causal(module)
    traced_model = traced_model or checkpoints.wrapped(module, tokenizer)
    text = configs.text_config(module.config)
    limit = configs.number(text, "max_position_embeddings")
    encoder = Encoder(
        tokenizer, causal=causal, date=date, double_bos=double_bos, bos=bos, max_length=_positions(module, limit),
        vocab_size=configs.number(text, "vocab_size"),
    )  # fmt: skip
    for notice in encoder.notices:
        warnings.warn(notice, stacklevel=2)
    loaded = cast(LanguageModel, traced_model)
    found.attach(loaded, encoder)
    found.again = partial(
        load, str(Path(model).absolute() if Path(model).exists() else model) if isinstance(model, (str, Path)) else module,
        device=device, dtype=dtype, device_map=device_map, revision=revision, attn_implementation=attn_implementation,
        tokenizer=tokenizer, date=date, double_bos=double_bos, bos=bos, trust_remote_code=trust_remote_code, remote=remote,
    )  # fmt: skip
    module.eval()
    if server is not None:
        found.remote = Remote(server, lock(loaded))
        confirm(loaded, inputs(loaded, [[i % found.vocab_size for i in range(5 + r, 10 + r)] for r in (0, 7)]))
    elif remote == "local":
        found.remote = Simulated()
    try:
        found.beginnings = proofs.of_prompts(loaded, known)
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise EmotraceError(
            f"{found.model_class} cannot run prompts of 1 to 11 tokens: {type(error).__name__}: {first[:200]}"
        ) from error
    weights = None if known is None else known["weights"]
    found.identity = identity(module, model_id, revision, backend(loaded).name, weights)
    if not found.beginnings.padded:  # what was made in padded batches is another thing
        found.identity["batches"] = "of one length" if found.beginnings.batched else "of one prompt"
    return loaded


def _server(remote: bool | str | Server | None) -> Server | None:
    """The server that is meant; None for here.

    Raises:
        EmotraceError: for what is no place, or a server whose versions do not fit.
    """
    if remote is None or remote is False or remote == "local":
        return None
    server = remote if isinstance(remote, Server) else Server(remote if isinstance(remote, str) else None)
    server.check()
    return server


def is_causal(module: Any) -> bool:
    """Whether a transformers model is a decoder that generates."""
    return bool(module.can_generate()) and "MaskedLM" not in type(module).__name__


def _positions(module: Any, limit: int | None) -> int | None:
    """Longest sequence; RoBERTa's table starts after its padding index."""
    pad = configs.number(module.config, "pad_token_id")
    is_roberta = "roberta" in str(configs.field(module.config, "model_type", ""))
    return limit - pad - 1 if is_roberta and limit is not None and pad is not None else limit
