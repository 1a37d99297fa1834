"""Figures of a planted package are the ones that were planted."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from emotrace.labels import EmotraceError

ROOT = Path(__file__).resolve().parents[2]
BODY = "\n".join(f"    {{0}}{i} = {{0}}{i - 1} + {i}" for i in range(1, 7))
FILES = {
    "__init__.py": '"""A package."""\n\n__all__ = ["first", "second"]\n',
    "first/__init__.py": '"""Doc."""\nfrom pack import second\n\n__all__ = ["Wide", "twice"]\n',
    "first/wide.py": f'''
from dataclasses import dataclass
from typing import Any, NamedTuple, TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pack import types_only


@dataclass(frozen=True)
class Wide:
    a: int = 1
    b: int = 2
    c: int = 3

    def of(self, x: Any) -> Any:
        """Doc."""


class Wider(NamedTuple):
    a: int = 1
    b: int = 2
    c: int = 3
    d: int = 4
    e: int = 5
    f: int = 6
    g: int = 7


def many(a, b, c, d, e, f, g, h, i) -> None:
    x0 = 0
{BODY.format("x")}


def settled(wide: "Wide | None", wider: Wider) -> int:
    return 1


def handed(record: "second.Tensor") -> int:
    return 1


def theirs(tensor: Tensor) -> int:
    return 1
''',
    "second.py": f"""
from pack.first import Wide

__all__ = ["twice"]


class Tensor(NamedTuple):
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int
    i: int


def _hidden(value: int) -> int:
    from pack import third

    other0 = value
{BODY.format("other")}
""",
    "third.py": "import pack.second\n",
    "fourth/__init__.py": "from pack.lazy import attach\n\n__getattr__, __dir__, __all__ = attach(__name__, __file__)\n",
    "fourth/__init__.pyi": "from pack.third import later as later, twice as twice\n",
    "types_only.py": "import pack.third\n",
}
LINTER = "[importlinter:contract:x]\ntype = layers\nlayers =\n    pack.second | pack.third\n    pack.first\n"


@pytest.fixture
def house(tmp_path):
    """The module of the figures, and a checkout."""
    spec = importlib.util.spec_from_file_location("house_figures", ROOT / "experiments" / "house_figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["house_figures"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    for name, text in FILES.items():
        path = tmp_path / "checkout" / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "checkout" / ".importlinter").write_text(LINTER)
    yield module, tmp_path / "checkout"
    sys.modules.pop("house_figures")


def test_every_figure_is_what_was_planted(house):
    module, path = house
    found, named = module.figures(path, "pack")
    assert found["lines"] == str(sum(len(text.splitlines()) for name, text in FILES.items() if name.endswith(".py")))
    assert (found["modules"], found["functions"]) == ("7", "6")
    assert found["length of a function, median / p95 / max"] == "2 / 10 / 10"  # of 2, 2, 2, 2, 8 and 10
    assert found["functions with more than 8 parameters"] == "1 (16.7%)"
    assert found["… fields of settings counted"] == "2 (33.3%)"
    assert found["… fields of every record counted"] == "3 (50.0%)"
    assert found["bare Any, of annotations"] == "2 (16.7%)"
    assert found["public functions typed"] == "4 (80.0%)"
    assert found["public functions documented"] == "1 (20.0%)"
    assert (found["public names at the top"], found["public names of all rooms"]) == ("2", "5")
    assert named["names that two rooms export"] == ["twice: first, fourth, second"]
    assert named["repeated places"] == ["pack.first.wide:33", "pack.second:23"]
    assert named["circles"] == ["first second", "first second third (late)"]
    assert named["modules in no layer"] == ["pack.fourth", "pack.types_only"]


def test_two_checkouts_stand_side_by_side(house, capsys):
    module, path = house
    (path.parent / "other").mkdir()
    (path / "pack").rename(path.parent / "other" / "pack")
    (path / "pack").mkdir()
    (path / "pack" / "__init__.py").write_text("x = 1\n")
    module.main([path, path.parent / "other"], package="pack", details=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["checkout", "other"]
    assert next(line for line in lines if line.startswith("modules ")).split() == ["modules", "1", "7"]
    with pytest.raises(EmotraceError, match="holds no package 'nothing'"):
        module.main([path], package="nothing")
