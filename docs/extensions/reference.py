"""The API reference: a page per public room, written from what the room exports before pages are read."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import emotrace

FOLDER = "reference"
STUDIES_USE = ("acceptance", "evaluation", "fetching", "planned", "presets", "remote", "run", "runlog")
"""Rooms that the package does not export, and that studies are written with."""


class Public(NamedTuple):
    """A public name, and the room that its description stands in."""

    room: str
    name: str
    value: Any


def rooms() -> list[str]:
    """Every public room, under its full name."""
    found = [n for n in emotrace.__all__ if inspect.ismodule(getattr(emotrace, n))]
    return [f"emotrace.{name}" for name in sorted([*found, *STUDIES_USE])]


def exported(room: str) -> list[str]:
    """The names of a room: its ``__all__``, else what its module defines under a name without underscore."""
    module = importlib.import_module(room)
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [n for n in listed if not inspect.ismodule(getattr(module, n))]
    return [n for n, value in vars(module).items() if not n.startswith("_") and _own(value, room)]


def _own(value: Any, room: str) -> bool:
    return getattr(value, "__module__", None) == room and (inspect.isfunction(value) or inspect.isclass(value))


def public() -> Iterator[Public]:
    """Every public name once, in the first room that has it; those of the package itself come last."""
    seen: dict[int, str] = {}
    for room in [*rooms(), "emotrace"]:
        module = importlib.import_module(room)
        for name in exported(room):
            value = getattr(module, name)
            if id(value) not in seen or not callable(value):
                seen[id(value)] = room
                yield Public(room, name, value)


def said(one: Public) -> list[str]:
    """What stands below a constant in the module that makes it; where nothing does, the value."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("emotrace.") and getattr(module, one.name, None) is one.value:
            found = ModuleAnalyzer.for_module(name).find_attr_docs().get(("", one.name))
            if found:
                return _escaped(found)
    short = repr(one.value)
    return [f"``{short}``" if len(short) < 200 and "`" not in short else f"A {type(one.value).__name__}."]


def _escaped(lines: list[str]) -> list[str]:
    """Docstring lines whose bars are bars: outside literals ``|x|`` would be a substitution."""
    out: list[str] = []
    literal: int | None = None
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and depth <= literal:
            literal = None
        if literal is None:
            line = "".join(
                part if part.startswith("``") else part.replace("|", "\\|") for part in re.split(r"(``.*?``)", line)
            )
            if line.rstrip().endswith("::"):
                literal = depth
        out.append(line)
    return out


def escape(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads a docstring."""
    lines[:] = _escaped(lines)


def page(room: str, found: list[Public]) -> str:
    """A room as reStructuredText: what it says of itself, then each name."""
    lines = [f"``{room}``", "=" * (len(room) + 4), "", f".. automodule:: {room}", "   :no-members:", ""]
    for one in found:
        if inspect.isclass(one.value):
            lines += [f".. autoclass:: {room}.{one.name}", "   :members:", "   :show-inheritance:", ""]
        elif inspect.isroutine(one.value):
            lines += [f".. autofunction:: {room}.{one.name}", ""]
        else:
            lines += [f".. py:data:: {room}.{one.name}", "", *(f"   {line}" for line in said(one)), ""]
    elsewhere = [n for n in exported(room) if n not in {one.name for one in found}]
    if elsewhere:
        lines += ["Also here: " + ", ".join(f":py:obj:`{_home(room, n)}`" for n in elsewhere) + ".", ""]
    return "\n".join(lines)


def _home(room: str, name: str) -> str:
    value = getattr(importlib.import_module(room), name)
    return next(f"{one.room}.{one.name}" for one in public() if one.value is value)


def write(app: Sphinx) -> None:
    """One file a room, and the list of them; a page that would say the same is left as it is."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    every = list(public())
    pages = {room: page(room, [one for one in every if one.room == room]) for room in ["emotrace", *rooms()]}
    listed = [
        "Reference",
        "=========",
        "",
        "Every public name, from its docstring.",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
    ]
    pages["index"] = "\n".join([*listed, *(f"   {room}" for room in ["emotrace", *rooms()]), ""])
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Before anything is read."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", escape, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
