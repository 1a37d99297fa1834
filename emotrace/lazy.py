"""Lazy: the names of a room, each imported from its module when it is first used.

A room's names stand in its stub ``__init__.pyi`` as ordinary imports, where editors and type checkers look for them; its
``__init__.py`` reads the same stub, so they are written once (the way of numpy's and scipy's rooms, SPEC 1). A module of such a
room must not be called like a name of it: importing the module would put it in the place of the name. Nor can ``save`` come
later, since nnsight gives every object, modules too, a method of that name: a room has it at once, or as `renamed`.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

_TO_REPLIES = (
    "accuracy_table", "bisect", "diagonal", "dose_table", "emotion_matrix", "fluency_bounds", "is_fluent", "paired_test",
    "repetition", "response_statistics",
)  # fmt: skip
_WRITTEN = {"attribution": "scores", "discovery": "discovery", "edits": "edits"}
MOVED: Final[Mapping[str, str]] = {
    **{
        f"emotrace.{room}.{verb}": f"emotrace.{room}.{verb}_{what}"
        for room, what in _WRITTEN.items()
        for verb in ("load", "save")
    },
    "emotrace.attribution.Projection": "emotrace.attribution.OutputProjection",
    "emotrace.attribution.auroc": "emotrace.attribution.planted_auroc",
    "emotrace.attribution.projection": "emotrace.attribution.output_projection",
    "emotrace.circuits.even_plan": "emotrace.circuits.even_allocation",
    "emotrace.circuits.published_plan": "emotrace.circuits.published_allocation",
    "emotrace.discovery.bootstrap": "emotrace.discovery.bootstrap_circuits",
    "emotrace.edits.digest": "emotrace.edits.edits_digest",
    "emotrace.edits.KINDS": "emotrace.edits.EDITS",
    "emotrace.judges.KINDS": "emotrace.judges.JUDGES",
    "emotrace.prompt_tuning.find": "emotrace.prompt_tuning.tuned_prompts",
    "emotrace.report.save": "emotrace.report.save_figure",
    "emotrace.report.similarity": "emotrace.report.similarity_maps",
    "emotrace.rsa.select": "emotrace.rsa.select_neurons",
    "emotrace.stats.confusion": "emotrace.replies.confusion_table",
    **{f"emotrace.stats.{name}": f"emotrace.replies.{name}" for name in _TO_REPLIES},
    "emotrace.suite.shuffled_labels": "emotrace.replies.shuffled_labels",
}
"""Names of version 0.1.0 → where they are now; they are answered with a warning until the next version."""


def attach(room: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a room.

    Args:
        room: its ``__name__``.
        file: its ``__file__``; the stub lies beside it.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    origin = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    def __getattr__(name: str) -> Any:
        module = origin.get(name)
        if module is None:
            return moved(room, name)
        if module == room:
            return importlib.import_module(f"{room}.{name}")  # a room of this one, which the import leaves here
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[room], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*(name for name in vars(sys.modules[room]) if name.startswith("__")), *origin})

    return __getattr__, __dir__, sorted(origin)


def public(room: str) -> Callable[[], list[str]]:
    """``__dir__`` of a room that imports its names at once: those of ``__all__``, without modules and what it imports itself.

    Args:
        room: its ``__name__``.
    """

    def __dir__() -> list[str]:
        there = vars(sys.modules[room])
        return sorted({*(name for name in there if name.startswith("__")), *there["__all__"]})

    return __dir__


def moved(room: str, name: str) -> Any:
    """What a room had under a name that has moved (`MOVED`), with a `FutureWarning` that names the new place.

    Raises:
        AttributeError: for any other name.
    """
    now = MOVED.get(f"{room}.{name}")
    if now is None:
        raise AttributeError(f"module {room!r} has no attribute {name!r}")
    warnings.warn(f"{room}.{name} is now {now}.", FutureWarning, stacklevel=3)
    module, _, new = now.rpartition(".")
    return getattr(importlib.import_module(module), new)


def renamed(room: str, name: str) -> Callable[..., Any]:
    """What a room had under a name that nnsight gives to every object, so that ``__getattr__`` is not asked; see `moved`."""

    def old(*args: Any, **kwargs: Any) -> Any:
        return moved(room, name)(*args, **kwargs)

    return old
