"""Weightless: the client of a model that lives elsewhere: its configuration, its modules on the meta device, its tokenizer."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import transformers
from nnsight import TransformersModel

from emotrace.labels import EmotraceError
from emotrace.remote.deployments import COMING, RUNNING, Deployment, chosen
from emotrace.remote.jobs import COMING_UP
from emotrace.remote.server import Server, Unreachable
from emotrace.remote.words import say
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
    key: str | None = None,
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
        key: what requests call it; None leaves that to nnsight.
    """
    task = task_of(auto)
    options: dict[str, Any] = {} if attn is None else {"attn_implementation": attn}
    options |= {"trust_remote_code": True} if trust else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*E_output.*")  # BERT-likes name a child `output`; see sites.envoy
        warnings.filterwarnings("ignore", message=".*already defined.*")
        model = TransformersModel(source, task=task, tokenizer=tokenizer, config=config, revision=revision, **options)
    object.__setattr__(model, "dispatch", _Refusal(source))
    if key is not None:
        object.__setattr__(model, "to_model_key", _Named(key))
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


class _Named:
    """In the place of nnsight's own ``to_model_key``: servers compare keys to the letter, and spell some in other ways."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self) -> str:
        return self.key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # the model on the server is named there


def task_of(auto: object) -> str:
    """What nnsight calls the use of a model that this class makes."""
    return "fill-mask" if auto is transformers.AutoModelForMaskedLM else "text-generation"


def deployed(server: Server, source: str, auto: object, revision: str | None, trust: bool) -> Deployment:
    """The model of a server that is meant, said aloud where it must come up first.

    A directory is known by its path as given, or by its own name.

    Raises:
        EmotraceError: where the server has none, with those that it has.
    """
    try:
        models = server.deployments()
    except Unreachable as error:
        raise EmotraceError(f"{error}: the server does not answer.") from None
    try:
        found = chosen(models, source, called(source), task_of(auto), revision, trust)
    except EmotraceError as error:
        raise EmotraceError(f"{server.host} {error}") from None
    if found.state != RUNNING:
        say(f"{found} on {server.host}: {COMING[found.state]}; it is waited for, at most {COMING_UP:.0f} s")
    call(source, found.name)  # the server's own word is what counts
    return found
