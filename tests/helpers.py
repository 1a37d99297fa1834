"""What several tests share: loaded tiny models, and edits written with plain torch hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from emotrace import model as model_
from emotrace.testing import tiny

FORMS = ("llama", "gpt2", "gemma2", "gpt-neox", "granite", "bert")
"""A family of each form: grouped heads, transposed weights with biases, norms after branches, parallel, scaled, post-LN."""


def families(names: Iterable[str], *more: str) -> list[Any]:
    """Families as parameters: those of `FORMS` and ``more`` always, the others in `make soak`.

    For what follows from proven sites alone; the sites of every family are proven in ``test_conformance.py``.
    """
    return [n if n in (*FORMS, *more) else pytest.param(n, marks=pytest.mark.soak) for n in names]


@cache
def loaded(name: str = "llama", **options: Any) -> Any:
    return model_.load(tiny.build(name, **options), tokenizer=tiny.tiny_tokenizer())


@contextmanager
def hooked(module: torch.nn.Module, side: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change the input or output of a module with a torch hook."""

    def on_output(_m: Any, _a: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def on_input(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: change(kwargs[first])}

    if side == "output":
        handle = module.register_forward_hook(on_output)
    else:
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
