"""Making: the judge that a ``--judge`` flag names, of what a command line says."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Final

from emotrace import arguments
from emotrace.judges.base import Judge
from emotrace.labels import JUDGES, EmotraceError, unknown
from emotrace.signatures import typed

BEHIND: Final = {"FOLDER": "the folder that it was saved in", "ID_OR_DIR": "a model id or directory"}
"""What stands behind the colon of a judge's name, in words."""


@typed
def make(spec: str, **options: Any) -> Judge:
    """The judge that a ``--judge`` flag names.

    Args:
        spec: ``lexicon`` (offline), ``fitted:FOLDER`` (of `FittedJudge.save`), ``likelihood:ID_OR_DIR`` (the answer that a
            causal model finds likeliest), ``classifier:ID_OR_DIR`` (a Hugging Face text classifier) or ``openai[:MODEL]``
            (any OpenAI-compatible endpoint; ``OPENAI_API_KEY``, ``OPENAI_BASE_URL``).
        options: settings of that judge, e.g. ``label_map=…`` of `ClassifierJudge` or ``price=…`` of `OpenAIJudge`.

    Returns:
        A judge that is ready: what it needs (key, directory, label map) has been checked.

    Raises:
        EmotraceError: for an unknown kind or option, a missing key, directory or label map.
    """
    kind, colon, rest = spec.strip().partition(":")
    for form, where in JUDGES.items():
        name, _, behind = form.replace("[", "").replace("]", "").partition(":")
        if name != kind:
            continue
        if colon and not behind:
            raise EmotraceError(f"judge {spec!r}: {kind} takes nothing after it; write {kind!r}.")
        if not rest and behind and "[" not in form:
            raise EmotraceError(f"judge {spec!r}: name {BEHIND.get(behind, behind)}, as in {form!r}.")
        module, _, maker = where.rpartition(".")
        made = getattr(importlib.import_module(f"emotrace.judges.{module}"), maker)
        return _build(made, spec, (rest,) if rest else (), options)
    raise unknown("judge", spec, JUDGES, "--judge")


@typed
def flags(label_map: str | None = None, price: str | None = None) -> dict[str, Any]:
    """Options of `make` from what a command line says.

    Args:
        label_map: of a classifier, ``LABEL_0=anger,LABEL_1=none``; ``none`` leaves a label out.
        price: of an endpoint, dollars per million prompt and completion tokens, ``0.15,0.6``.

    Raises:
        EmotraceError: for what is not of that form.
    """
    options: dict[str, Any] = {}
    if label_map is not None:
        pairs = [part.partition("=") for part in label_map.split(",") if part.strip()]
        if not pairs or not all(name.strip() and equals and value.strip() for name, equals, value in pairs):
            raise EmotraceError(
                f"--label-map {label_map!r}: give LABEL=EMOTION pairs, as in LABEL_0=anger,LABEL_1=none."
            )
        options["label_map"] = {n.strip(): None if v.strip() == "none" else v.strip() for n, _, v in pairs}
    if price is not None:
        try:
            prompt, completion = (float(part) for part in price.split(","))
        except ValueError:
            raise EmotraceError(
                f"--price {price!r}: give two numbers, prompt and completion, as in 0.15,0.6."
            ) from None
        for value in (prompt, completion):
            arguments.number("--price", value, least=0)
        options["price"] = (prompt, completion)
    return options


def _build(kind: Callable[..., Judge], spec: str, args: tuple[str, ...], options: dict[str, Any]) -> Judge:
    """The judge, of what follows the colon and its options: the parameters that are given by name alone."""
    parameters = inspect.signature(kind).parameters.values()
    choices = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in choices:
            raise unknown("option", option, choices, f"the judge {spec!r}")
    return kind(*args, **options)
