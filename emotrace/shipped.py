"""Shipped: the files that come with emotrace: example data, the tiny model, the studies; found from any folder."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

TINY: Final = "tiny"
"""Name of the shipped model: ``emotrace.load("tiny")``."""
WEIGHTS: Final = {"float32": "8af20ab6fe99a65f", "bfloat16": "5368fc8b641957e7", "float16": "7abc74e775bc7c47"}
"""Dtype in which the shipped model is loaded → its `weights_hash`; a folder's name tells nothing."""
CAVEAT: Final = (
    "the shipped tiny model is for teaching and testing, trained on synthetic text: its numbers are no findings"
)
"""What a report on the shipped model says."""
DATA: Final = "data"
STUDIES: Final = "experiments"
_INSIDE: Final = Path(__file__).parent / "shipped_files"
"""Where a wheel keeps them; in a checkout they lie beside the package."""


def folder(name: str) -> Path:
    """The folder ``data`` or ``experiments`` that comes with emotrace."""
    root = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[1]
    return root / name


def find(source: str | Path) -> Path:
    """Where a file or folder lies: here, or if there is no such path here, among the example data of emotrace.

    Args:
        source: any path. ``tiny`` is the shipped model; ``data/NAME`` a file of the example data, unless it exists from here.

    Returns:
        The path as it was given where it exists or nothing of that name is shipped.
    """
    path = Path(source)
    if path.exists():
        return path
    parts = (DATA, "tiny_model") if path.as_posix() == TINY else path.parts
    if len(parts) == 2 and parts[0] == DATA and (shipped := folder(DATA) / parts[1]).exists():
        return shipped
    return path


def is_shipped(identity: Mapping[str, Any]) -> bool:
    """Whether a model is the shipped one, by its weights.

    Args:
        identity: of a loaded model (`emotrace.identity.identity`); one whose weights are elsewhere is never the shipped one.
    """
    return identity.get("weights_hash") in WEIGHTS.values()


def studies() -> dict[str, Path]:
    """The studies by name, ``emotion-circuits`` and so on, each with its file."""
    found = sorted(folder(STUDIES).glob("*.py"))
    return {p.stem.replace("_", "-"): p for p in found if _is_study(p)}


def _is_study(path: Path) -> bool:
    """Whether a file ends in a command of its own that takes a folder ``out``, and a model or data."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    names = {a.arg for main in mains for a in (*main.args.args, *main.args.kwonlyargs)}
    return {"model", "out"} <= names
