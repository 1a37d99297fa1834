"""Options: flags that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.labels import EmotraceError, check_positions

Model = Annotated[str, typer.Option("--model", help="hub id or directory")]
Limit = Annotated[int | None, typer.Option(help="skeletons, spread evenly over themes")]
Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default float32 on a CPU")]
Store = Annotated[Path, typer.Argument(help="an activation store")]


def names(text: str) -> list[str]:
    """Comma-separated names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def no_folder(out: Path) -> None:
    """Refuse a folder where a file is to be written."""
    if out.is_dir():
        raise EmotraceError(f"--out {out} is a folder; give a file.")


def span(text: str) -> Any:
    """A position policy, or START:STOP."""
    if ":" not in text:
        return check_positions(text, "--positions")
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit()):
        raise EmotraceError(f"--positions {text}: a span is START:STOP, e.g. 0:5.")
    return check_positions((int(start), int(stop)), "--positions")


def layer_list(text: str) -> list[int]:
    """Layers written as 2-4 or 1,3."""
    found: list[int] = []
    for part in names(text):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise EmotraceError(f"--layers {text}: give layers as 2-4 or 1,3.")
        if int(last or first) < int(first):
            raise EmotraceError(f"--layers {text}: {part} ends before it begins.")
        found += range(int(first), int(last or first) + 1)
    if not found or len(set(found)) < len(found):
        raise EmotraceError(f"--layers {text!r}: name at least one layer, and each once.")
    return found
