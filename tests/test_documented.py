"""README.md and the site: what they tell a reader to run runs, and prints what they say."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
import typer.main

from emotrace import cli
from tests import documented
from tests.documented import ROOT, Block

ALL = [block for page in documented.pages() for block in documented.blocks(page)]
PAGES = sorted({block.page for block in ALL})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder from which everything documented works, and in which it may write."""
    for name in ("data", "experiments", "emotrace"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str, kinds: tuple[str, ...] = ("python", "sh")) -> None:
    """Every block of a page in order, but those that it says are not run."""
    names: dict[str, Any] = {}
    for block in documented.blocks(page):
        if block.why_not is None and block.kind in kinds:
            printed = documented.run(block, names)
            if block.printed is not None:
                assert documented.same(printed, block.printed), f"{page}:{block.line} printed\n{printed}"


@pytest.mark.filterwarnings("default")
def test_the_first_lines_of_the_readme_run(folder):
    """Its Python, from loading to a steered reply, and own data."""
    run("README.md", ("python",))


@pytest.mark.docs
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_run_runs(folder, page):
    run(page)


def flags() -> dict[str, set[str]]:
    """Command → its flags."""
    group: Any = typer.main.get_command(cli.app)
    return {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in group.commands.items()}


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "sh"], ids=lambda b: f"{b.page}:{b.line}")
def test_commands_and_their_flags_exist(block: Block):
    """Also of those that are not run here."""
    known = flags()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for words in documented.commands(block):
        if words[0] == "emotrace" and words[1] != "run" and not words[1].startswith("-"):
            assert words[1] in known, words
            assert {w.split("=")[0] for w in words[2:] if w.startswith("--")} <= known[words[1]], words
        elif words[0] == "make":
            assert {w for w in words[1:] if "=" not in w} <= targets, words
        elif words[0].endswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words


def test_what_is_left_out_says_why():
    """And it is not most of what there is."""
    left = [block for block in ALL if block.why_not is not None]
    assert all(len(block.why_not or "") > 10 for block in left)
    assert len(left) < len(ALL) / 2


def test_a_page_that_loads_something_from_elsewhere_is_found(tmp_path):
    """A link that a reader may follow is no load."""
    loads = runpy.run_path(str(ROOT / "docs" / "offline.py"))["loads"]
    (tmp_path / "good.html").write_text('<a href="https://a.org">a</a><script src="_static/a.js"></script>')
    assert loads(tmp_path) == []
    (tmp_path / "bad.html").write_text('<script defer src="https://a.org/x.js"></script>')
    (tmp_path / "bad.css").write_text("@font-face { src: url(//a.org/x.woff) }")
    assert [line.split(":")[0] for line in loads(tmp_path)] == ["bad.css", "bad.html"]
