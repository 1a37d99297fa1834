"""Documented: the blocks of README.md and of the pages of docs/, as a reader would run them from the folder of the README.

Fences ``python`` run in one namespace a page, in order; of fences ``sh`` the lines that begin with ``emotrace``. A fence ``text``
right behind one holds what it prints, ``…`` standing for anything. ``<!-- not run: why -->`` before a fence leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from emotrace import cli

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fence that a reader would run, and what it prints where that is said."""

    page: str
    line: int
    kind: str
    body: str
    printed: str | None
    why_not: str | None


def pages() -> list[str]:
    """README.md, CONTRIBUTING.md and every page of docs/ that is written by hand and is no notebook."""
    found = [p for p in sorted((ROOT / "docs").rglob("*.md")) if not {"notebooks", "gallery"} & set(p.parts)]
    return ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in found)]


def blocks(page: str) -> list[Block]:
    """The fences of a page that are code, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    before = None
    for fence in FENCE.finditer(text):
        kind, body = fence["kind"], fence["body"]
        if kind in ("python", "sh"):
            found.append(Block(page, text.count("\n", 0, fence.start()) + 1, kind, body, None, fence["why"]))
        elif kind == "text" and before is not None and not text[before : fence.start()].strip():
            found[-1] = found[-1]._replace(printed=body)
        before = fence.end() if kind in ("python", "sh") else None
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a fence ``sh``, as a shell would split them."""
    for line in block.body.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$'(.*?)'", lambda m: shlex.quote(m[1].replace("\\n", "\n")), line)
        words = shlex.split(line, comments=True)
        if words:
            yield words


def python(block: Block, names: dict[str, Any]) -> str:
    """Run a fence ``python``; what it prints."""
    code = compile("\n" * block.line + block.body, str(ROOT / block.page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    return out.getvalue()


def command(words: list[str]) -> str:
    """Run ``emotrace …``; what it prints."""
    found = CliRunner().invoke(cli.app, words[1:])
    if found.exit_code:
        raise AssertionError(f"{shlex.join(words)}: {found.output or found.exception!r}")
    return found.stdout


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block; what it prints."""
    if block.kind == "python":
        return python(block, names)
    return "".join(command(words) for words in commands(block) if words[0] == "emotrace")


def same(printed: str, said: str) -> bool:
    """Whether what is printed is what the page says; a line ``…`` (or a ``…`` in a line) stands for anything."""
    pattern = re.escape(said.strip()).replace("…", ".*")
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.strip().splitlines()), re.S) is not None
