"""What runs inside a trace imports nothing that a server may lack: the leaf's imports, walked through all of its files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import emotrace

ROOT = Path(emotrace.__file__).parent.parent
LEAF = "emotrace.traced"
ALLOWED = {"__future__", "torch", "math", "collections", "typing", "nnsight"}


def _file(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Every module that a file imports, at whatever depth and by whatever means."""
    parts = path.relative_to(root).with_suffix("").parts
    package = parts[:-1]  # of a module, and of a package's own __init__
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*above, *([node.module] if node.module else [])))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names if _file(f"{source}.{alias.name}", root))
        elif isinstance(node, ast.Name) and node.id in ("__import__", "exec", "eval", "open"):
            yield node.id


def _outside(leaf: str, root: Path = ROOT) -> list[str]:
    """``file: import`` for each import that leaves the leaf for anything but `ALLOWED`."""
    waiting = [leaf, *(f"{leaf}.{path.stem}" for path in root.joinpath(*leaf.split(".")).rglob("[!_]*.py"))]
    seen: set[Path] = set()
    found = []
    top = leaf.partition(".")[0]
    while waiting:
        path = _file(waiting.pop(), root)
        if path is None or path in seen:
            continue
        seen.add(path)
        for name in _imports(path, root):
            if name.partition(".")[0] == top:
                waiting.append(name)
            if name.partition(".")[0] not in ALLOWED and name != leaf and not name.startswith(f"{leaf}."):
                found.append(f"{path.relative_to(root).as_posix()}: {name}")
    return sorted(found)


def test_the_leaf_stands_alone() -> None:
    assert _file(LEAF, ROOT) is not None
    assert len(list((ROOT / "emotrace" / "traced").glob("*.py"))) > 3
    assert _outside(LEAF) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch.nn.functional as F\nfrom collections import abc\nfrom leaf.inner import other", []),
        ("from . import other\nfrom .other import f\nfrom leaf import inner", ["leaf/inner/one.py: leaf"]),
        ("def f():\n    import numpy.linalg", ["leaf/inner/one.py: numpy.linalg"]),
        ("try:\n    from os import path\nexcept ImportError:\n    pass", ["leaf/inner/one.py: os"]),
        ("from leaf import rules", ["leaf/inner/one.py: leaf", "leaf/inner/one.py: leaf.rules", "leaf/rules.py: json"]),
        ("from ..rules import x", ["leaf/inner/one.py: leaf.rules", "leaf/rules.py: json"]),
        ("f = __import__('os')", ["leaf/inner/one.py: __import__"]),
    ],
)
def test_the_walk_finds_what_is_hidden(tmp_path: Path, text: str, found: list[str]) -> None:
    inner = tmp_path / "leaf" / "inner"
    inner.mkdir(parents=True)
    for path, source in (
        (inner.parent / "__init__.py", ""),
        (inner.parent / "rules.py", "import json"),
        (inner / "__init__.py", ""),
        (inner / "other.py", "import math"),
        (inner / "one.py", text),
    ):
        path.write_text(source, encoding="utf-8")
    assert _outside("leaf.inner", tmp_path) == found
