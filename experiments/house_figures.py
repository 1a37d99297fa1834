"""House figures: how large a checkout is, how much its functions take, what its types say, what stands in two places.

    python experiments/house_figures.py                    # this checkout
    python experiments/house_figures.py ../before .        # two side by side

Files are read, never imported.
"""

from __future__ import annotations

import ast
import configparser
import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from emotrace.cli.guard import experiment
from emotrace.labels import EmotraceError

MANY = 8
"""More parameters than these are many."""
REPEATED = 6
"""So many equal statements in a row, in two places, are a repetition."""
SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file: its dotted name, whether it is the ``__init__`` of a folder, text, tree, and the stub beside it."""

    name: str
    folder: bool
    text: str
    tree: ast.Module
    stub: ast.Module

    @property
    def room(self) -> str:
        """The part of the package that it belongs to; empty for the package's own ``__init__``."""
        return [*self.name.split("."), ""][1]


def main(
    paths: Annotated[list[Path] | None, typer.Argument(help="checkouts; default this one")] = None,
    package: Annotated[str, typer.Option(help="folder of the package in each")] = "emotrace",
    details: Annotated[bool, typer.Option(help="also name what is counted: many parameters, names, circles, layers")] = False,
) -> None:  # fmt: skip
    """Print the figures of one or more checkouts side by side."""
    paths = paths or [Path(__file__).resolve().parent.parent]
    columns = [figures(path, package) for path in paths]
    names = list(columns[0][0])
    wide = max(map(len, names))
    sizes = [
        max(len(path.name), *(len(v) for v in found.values())) for path, (found, _) in zip(paths, columns, strict=True)
    ]
    heads = [path.resolve().name for path in paths]
    sizes = [max(a, len(b)) for a, b in zip(sizes, heads, strict=True)]
    for name, values in [("", heads), *((n, [found[n] for found, _ in columns]) for n in names)]:
        print(f"{name:<{wide}}  " + "  ".join(f"{v:>{size}}" for v, size in zip(values, sizes, strict=True)))
    for head, (_, named) in zip(heads, columns, strict=True):
        for what, some in named.items() if details else ():
            print(f"\n{head}, {what}:\n  " + "\n  ".join(some))


def figures(path: Path, package: str = "emotrace") -> tuple[dict[str, str], dict[str, list[str]]]:
    """What a checkout measures: figure → value as text, and what the counted ones are.

    Args:
        path: of the checkout.
        package: folder of the package in it.

    Raises:
        EmotraceError: where there is no such package.
    """
    modules = read(path, package)
    functions = [(m, f) for m in modules for f in ast.walk(m.tree) if isinstance(f, FUNCTIONS)]
    lengths = [_last(f) - f.lineno + 1 for _, f in functions] or [0]
    middle = (np.median(lengths), np.percentile(lengths, 95), max(lengths))
    records, strangers = fields(modules), {m.name: _strangers(m, package) for m in modules}
    given = {name: n for name, (n, required) in records.items() if not required}
    counts = [len(_parameters(f)) for _, f in functions]
    whole, every = (
        [sum(_taken(p, sizes, strangers[m.name]) for p in _parameters(f)) for m, f in functions]
        for sizes in (given, {name: n for name, (n, _) in records.items()})
    )
    slots = [a for _, f in functions for a in (*(p.annotation for p in _parameters(f)), f.returns) if a is not None]
    bare = sum(ast.unparse(a) in ("Any", "typing.Any") for a in slots)
    public = [f for _, f in functions if not f.name.startswith("_")]
    typed = sum(f.returns is not None and all(p.annotation for p in _parameters(f)) for f in public)
    told = sum(ast.get_docstring(f) is not None for f in public)
    top, rooms = exported(modules)
    shared = {
        name: sorted(r for r in rooms if name in rooms[r]) for name in {n for some in rooms.values() for n in some}
    }
    shared = {name: some for name, some in sorted(shared.items()) if len(some) > 1}
    places, lines = repeated(modules)
    now, late = arrows(modules)
    outside = unlayered(path, package, modules)
    found = {
        "lines": f"{sum(len(m.text.splitlines()) for m in modules):,}", "modules": f"{len(modules):,}",
        "functions": f"{len(functions):,}",
        "length of a function, median / p95 / max": " / ".join(f"{v:.0f}" for v in middle),
        f"functions with more than {MANY} parameters": _share(sum(n > MANY for n in counts), len(functions)),
        "… fields of settings counted": _share(sum(n > MANY for n in whole), len(functions)),
        "… fields of every record counted": _share(sum(n > MANY for n in every), len(functions)),
        "bare Any, of annotations": _share(bare, len(slots)),
        "public functions typed": _share(typed, len(public)), "public functions documented": _share(told, len(public)),
        "public names at the top": f"{len(top)}", "public names of all rooms": f"{sum(map(len, rooms.values()))}",
        "names that two rooms export": f"{len(shared)}",
        f"places repeated ({REPEATED} statements or more)": f"{len(places)}", "statements in them": f"{lines:,}",
        "arrows between rooms": f"{_size(now)}", "… with late imports": f"{_size(_both(now, late))}",
        "circles of rooms": f"{len(circles(now))}", "… with late imports (rooms in them)": _circles(_both(now, late)),
        "modules in no layer": f"{len(outside)}",
    }  # fmt: skip
    many = sorted(
        ((n, f"{m.name}.{f.name}") for n, (m, f) in zip(whole, functions, strict=True) if n > MANY), reverse=True
    )
    return found, {
        "many parameters, fields counted": [f"{n:>3}  {name}" for n, name in many],
        "names that two rooms export": [f"{name}: {', '.join(some)}" for name, some in shared.items()],
        "repeated places": places,
        "circles": [" ".join(c) for c in circles(now)] + [f"{' '.join(c)} (late)" for c in circles(_both(now, late))],
        "modules in no layer": outside,
    }


def read(path: Path, package: str) -> list[Module]:
    """Every module of the package."""
    root = path / package
    if not (root / "__init__.py").is_file():
        raise EmotraceError(f"{path} holds no package {package!r} ({root / '__init__.py'} does not exist).")
    found = []
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(path).with_suffix("")
        folder = inside.name == "__init__"
        text = file.read_text(encoding="utf-8")
        stub = file.with_suffix(".pyi")
        lazy = ast.parse(stub.read_text(encoding="utf-8") if stub.is_file() else "")
        name = ".".join((inside.parent if folder else inside).parts)
        found.append(Module(name, folder, text, ast.parse(text, str(file)), lazy))
    return found


class Fields(NamedTuple):
    """How many fields a record has, and how many of them must be given: none of what holds settings alone."""

    n: int
    required: int


def fields(modules: list[Module]) -> dict[str, Fields]:
    """Name → fields of every dataclass, NamedTuple and TypedDict; those of its bases count."""
    classes = {c.name: c for m in modules for c in ast.walk(m.tree) if isinstance(c, ast.ClassDef)}

    def bases(c: ast.ClassDef) -> list[str]:
        return [ast.unparse(b).split("[")[0].split(".")[-1] for b in c.bases]

    def plain(c: ast.ClassDef) -> bool:
        marks = [ast.unparse(d).split("(")[0].split(".")[-1] for d in c.decorator_list]
        return "dataclass" in marks or any(
            b in ("NamedTuple", "TypedDict") or (b in classes and plain(classes[b])) for b in bases(c)
        )

    def size(c: ast.ClassDef) -> Fields:
        own = [s for s in c.body if isinstance(s, ast.AnnAssign) and "ClassVar" not in ast.unparse(s.annotation)]
        given = any(k.arg == "total" and ast.unparse(k.value) == "False" for k in c.keywords)
        of_bases = [size(classes[b]) for b in bases(c) if b in classes]
        required = 0 if given else sum(s.value is None for s in own)
        return Fields(len(own) + sum(b.n for b in of_bases), required + sum(b.required for b in of_bases))

    return {name: size(c) for name, c in classes.items() if plain(c)}


def exported(modules: list[Module]) -> tuple[list[str], dict[str, list[str]]]:
    """``__all__`` of the package, and of each room that has one; where names come late, those that its stub imports."""
    rooms: dict[str, list[str]] = {}
    for m in modules:
        if m.name.count(".") < 2 and (m.folder or m.room):
            if lazy := [a.name for s in m.stub.body if isinstance(s, ast.ImportFrom) for a in s.names]:
                rooms[m.room] = lazy
            for s in () if lazy else m.tree.body:
                if isinstance(s, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in s.targets):
                    rooms[m.room] = [
                        n.value for n in ast.walk(s.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                    ]
    return rooms.pop("", []), rooms


def repeated(modules: list[Module]) -> tuple[list[str], int]:
    """Places whose statements stand elsewhere too, with other names, texts and numbers.

    Imports, docstrings and declarations (``name: type``, as fields of a class are) do not count.
    """
    said = {m.name: list(_statements(m)) for m in modules}
    seen: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, some in said.items():
        for i in range(len(some) - REPEATED + 1):
            seen[tuple(words for _, words in some[i : i + REPEATED])].append((name, i))
    covered: dict[str, set[int]] = defaultdict(set)
    for places in seen.values():
        apart = [p for p in places if any(q[0] != p[0] or abs(q[1] - p[1]) >= REPEATED for q in places)]
        for name, i in apart:
            covered[name] |= set(range(i, i + REPEATED))
    runs = [f"{name}:{said[name][i][0]}" for name, some in covered.items() for i in sorted(some) if i - 1 not in some]
    return runs, sum(map(len, covered.values()))


def _statements(module: Module) -> Iterator[tuple[int, str]]:
    """Line and normalised words of every logical line."""
    words: list[str] = []
    line = 0
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.NEWLINE:
            declared = words[:2] == ["n", ":"]
            if words not in (["s"], ["s", "s"]) and words[0] not in ("import", "from") and not declared:
                yield line, " ".join(words)
            words = []
        elif token.type not in SKIPPED:
            line = line if words else token.start[0]
            name = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
            kind = {tokenize.STRING: "s", tokenize.NUMBER: "0"}.get(token.type, "n" if name else token.string)
            words.append(kind)


Arrows = dict[str, set[str]]


def arrows(modules: list[Module]) -> tuple[Arrows, Arrows]:
    """Room → rooms that it imports: when it is imported, and late (in functions and stubs); those of types alone do not count."""
    known = {m.room for m in modules} - {""}
    now: Arrows = defaultdict(set)
    late: Arrows = defaultdict(set)
    for m in modules:
        if m.room:
            for node, inside in (*_imports(m.tree), *_imports(m.stub, inside=True)):
                to = {r for r in _rooms(m, node, modules[0].name.split(".")[0]) if r in known and r != m.room}
                (late if inside else now)[m.room].update(to)
    return now, late


def _imports(
    tree: ast.AST, inside: bool = False, types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, inside
        elif types or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imports(node, inside or isinstance(node, FUNCTIONS), types)


def _rooms(m: Module, node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """The rooms that an import names."""
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    else:
        here = m.name.split(".")
        up = here[: len(here) - node.level + m.folder] if node.level else []
        full = [".".join([*up, *(node.module or "").split("."), alias.name]).replace("..", ".") for alias in node.names]
    for name in full:
        parts = name.split(".")
        if parts[0] == package and len(parts) > 1:
            yield parts[1]


def circles(graph: Arrows) -> list[list[str]]:
    """Strongly connected sets of more than one room: rooms that reach each other."""
    reach: Arrows = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            if (room := todo.pop()) not in seen:
                seen.add(room)
                todo += graph.get(room, ())
        reach[start] = seen
    found = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in reach if a in reach[a]}
    return [list(c) for c in sorted(found)]


def unlayered(path: Path, package: str, modules: list[Module]) -> list[str]:
    """Modules whose room no contract of layers names."""
    linter = configparser.ConfigParser()
    linter.read(path / ".importlinter", encoding="utf-8")
    named = set()
    for contract in (s for s in linter.values() if s.get("type") == "layers"):
        names = [n.strip("() ") for n in re.split(r"[|:\n]", contract.get("layers", "")) if n.strip("() ")]
        inside = contract.get("containers", "").split() or [""]  # layers of a container are named without it
        named |= {f"{one}.{name}".strip(".") for one in inside for name in names}
    return [m.name for m in modules if m.room and f"{package}.{m.room}" not in named]


def _parameters(f: Function) -> list[ast.arg]:
    every = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg]
    return [p for i, p in enumerate(every) if p is not None and not (i == 0 and p.arg in ("self", "cls"))]


def _taken(p: ast.arg, sizes: dict[str, int], strangers: set[str]) -> int:
    """Parameters that one is: as many as it has fields, if it is one of these records of the package."""
    if p.annotation is None:
        return 1
    text = ast.unparse(p.annotation).strip("'\"").removesuffix(" | None")
    text = text.removeprefix("Unpack[").removesuffix("]") if text.startswith("Unpack[") else text
    return 1 if text.split(".")[0] in strangers else sizes.get(text.split(".")[-1], 1)


def _strangers(m: Module, package: str) -> set[str]:
    """Names of a module that it has from elsewhere than the package: torch's ``Tensor`` is no record of ours of that name."""
    found = set()
    for node, _ in _imports(m.tree, types=True):
        if isinstance(node, ast.Import) or (not node.level and str(node.module).split(".")[0] != package):
            names = [a.asname or a.name.split(".")[0] for a in node.names]
            found |= {n for n in names if n != package}
    return found


def _last(f: Function) -> int:
    assert f.end_lineno is not None  # set by `ast.parse`
    return f.end_lineno


def _share(n: int, of: int) -> str:
    return f"{n:,} ({n / max(of, 1):.1%})"


def _size(graph: Arrows) -> int:
    return sum(map(len, graph.values()))


def _both(a: Arrows, b: Arrows) -> Arrows:
    return {room: a.get(room, set()) | b.get(room, set()) for room in {*a, *b}}


def _circles(graph: Arrows) -> str:
    found = circles(graph)
    return f"{len(found)}" + (f" ({', '.join(str(len(c)) for c in found)})" if found else "")


if __name__ == "__main__":
    experiment(main)
