"""Weightless: the client of a model that lives elsewhere: its configuration, its modules on the meta device, its tokenizer."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from nnsight import TransformersModel

from emotrace.labels import EmotraceError
from emotrace.remote.server import Server, Unreachable
from emotrace.traced.inner import call, called

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def build(
    source: str,
    config: PretrainedConfig,
    auto: type,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    attn: str | None,
    trust: bool,
) -> TransformersModel:
    """nnsight's model of a configuration, without weights: a trace that would run here is refused.

    Args:
        source: hub id or directory.
        config: of the model.
        auto: the transformers class that makes it.
        tokenizer: of the model.
        revision: branch, tag or commit of a hub id.
        attn: attention implementation; None takes transformers' choice.
        trust: run code that comes with the configuration.
    """
    task = task_of(auto)
    options: dict[str, Any] = {} if attn is None else {"attn_implementation": attn}
    options |= {"trust_remote_code": True} if trust else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*E_output.*")  # BERT-likes name a child `output`; see sites.envoy
        warnings.filterwarnings("ignore", message=".*already defined.*")
        model = TransformersModel(source, task=task, tokenizer=tokenizer, config=config, revision=revision, **options)
    object.__setattr__(model, "dispatch", _Refusal(source))
    module: Any = model._module
    if module.can_generate():
        with contextlib.suppress(OSError, ValueError):  # none of its own: that of the model's configuration stays
            at: dict[str, Any] = {} if revision is None else {"revision": revision}
            module.generation_config = transformers.GenerationConfig.from_pretrained(source, **at)
    module.eval()
    return model


class _Refusal:
    """In the place of nnsight's own ``dispatch``, which would load the weights without a word."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self) -> None:
        raise EmotraceError(
            f"model {self.source!r} was loaded without weights (remote=…): a trace of it runs on the server only. Say "
            "model.trace(…, remote=True) (or the server's URL), or load it without remote."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # the model on the server has its weights


def task_of(auto: object) -> str:
    """What nnsight calls the use of a model that this class makes."""
    return "fill-mask" if auto is transformers.AutoModelForMaskedLM else "text-generation"


def deployed(server: Server, source: str, auto: object, revision: str | None) -> str:
    """What the server calls a model, which nnsight then asks for.

    A directory is known by its path as given, or by its own name.

    Raises:
        EmotraceError: where the model is not up; those that are up are named.
    """
    task = task_of(auto)
    try:
        up = server.running()
    except Unreachable as error:
        raise EmotraceError(f"{error}: the server does not answer.") from None
    names = [str(d["repo_id"]) for d in up if d["task"] == task or d["task"] is None]
    local = Path(source).is_dir()
    own = os.path.basename(os.path.abspath(source))
    told = called(source)
    found = [n for n in names if n == told or n.lower() == source.lower()]
    found += [n for n in names if local and n.rsplit("/", 1)[-1] == own]
    if not found:
        listed = ", ".join(f"{d['repo_id']} ({d['task']})" for d in up) or "none"
        raise EmotraceError(f"model {source!r} ({task}) is not up on {server.host}. Up are: {listed}.")
    name = found[0]
    states = {str(d["application_state"]) for d in up if d["repo_id"] == name and d["task"] in (task, None)}
    if "RUNNING" not in states:
        raise EmotraceError(f"model {name!r} on {server.host} is {', '.join(sorted(states))}; try again when it runs.")
    revisions = {d["revision"] or "main" for d in up if d["repo_id"] == name}
    if (revision or "main") not in revisions:
        raise EmotraceError(f"{name!r} is up with revision {', '.join(sorted(revisions))}, not {revision or 'main'!r}.")
    call(source, name)  # the server's own word is what counts
    return name
