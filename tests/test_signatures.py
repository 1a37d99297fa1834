"""What a public function is annotated to take is what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace.labels import EmotraceError
from emotrace.signatures import typed

ROOMS = (
    "attribution",
    "circuits",
    "datasets",
    "directions",
    "discovery",
    "interop",
    "prompt_tuning",
    "rsa",
    "stats",
    "suite",
)

UNTYPED = ("Any", "object", "ArrayLike", "PromptsLike", "PromptLike | Prompts", "ActivationsLike")
"""Annotations of arguments that a function looks at itself."""


@typed
def taken(
    whole: int = 1, number: float = 1.0, flag: bool = True, name: str = "a", path: str | Path = "p", names: Iterable[str] = (),
    layers: Iterable[int] | int | None = None, how: Literal["one", "all"] = "one", rows: Iterable[Mapping[str, Any]] = (),
    array: xr.DataArray | None = None, call: Callable[[float], float] = abs, sizes: Mapping[str, float] | None = None,
    span: str | tuple[int, int] = "all", model: Any = None, seed: int = 0, many: Sequence[float] = (),
) -> Any:  # fmt: skip
    return whole, layers, list(rows)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"whole": "1"}, r"taken\(whole='1'\): a whole number is due"),
        ({"whole": True}, "a whole number"),
        ({"whole": 1.0}, "a whole number"),
        ({"number": float("nan")}, "a finite number"),
        ({"number": True}, "a finite number"),
        ({"flag": 1}, "True or False"),
        ({"name": b"a"}, "a text is due"),
        ({"path": 3}, "a text or a path"),
        ({"names": "abc"}, r"a list of names is due, e.g. \['abc'\]"),
        ({"names": {"a": 1}.values()}, r"taken\(names=1\): a text"),
        ({"names": [None]}, r"taken\(names=None\): a text"),
        ({"layers": slice(0, 2)}, "give integers"),
        ({"layers": "12"}, "a list of whole numbers or a whole number"),
        ({"layers": [1.5]}, "layers=1.5.*whole number"),
        ({"layers": np.array([1.0])}, "holds float64"),
        ({"how": "some"}, "unknown how 'some' in taken.*Choices: one, all"),
        ({"how": True}, "unknown how True"),
        ({"rows": None}, "a list of values"),
        ({"rows": iter([1])}, r"taken\(rows=1\): a mapping"),
        ({"array": np.ones(2)}, "DataArray is due"),
        ({"call": 3}, "a function is due"),
        ({"sizes": {"a": "b"}}, r"the value of 'a' in taken\(sizes='b'\)"),
        ({"sizes": [1]}, "a mapping"),
        ({"span": (1, 2, 3)}, "a text or 2 values"),
        ({"span": 3}, "a text or 2 values"),
        ({"model": 3}, "a model of emotrace.load"),
        ({"seed": -1}, "seed=-1.*0 to"),
        ({"many": ["a"]}, "many='a'.*finite number"),
    ],
)
def test_another_kind_is_refused_by_name(given, words):
    with pytest.raises(EmotraceError, match=words):
        taken(**given)


def test_what_is_annotated_passes_as_it_is():
    rows = ({"a": i} for i in range(2))
    assert taken(**{"whole": np.int64(3)}, layers=range(2), rows=rows) == (3, range(2), [{"a": 0}, {"a": 1}])
    assert taken(layers=np.array([1, 2]), names=np.array(["a"]), span=(0, 1), sizes={"a": 1}, seed=5)[0] == 1
    with pytest.raises(TypeError, match="unexpected"):  # a slip in the code of the caller, which Python itself names
        taken(**{"hole": 1})


def _functions() -> list[tuple[str, Any]]:
    rooms = [(room, getattr(et, room)) for room in ROOMS]
    return [
        (f"{name}.{f}", getattr(room, f))
        for name, room in rooms
        for f in room.__all__
        if inspect.isfunction(getattr(room, f))
    ]


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in _functions()])
def test_every_public_function_refuses_what_is_of_no_kind(function):
    """Each argument with an annotation, and each of its own, gets what nothing takes; the others get nothing at all."""
    signature = inspect.signature(function)
    own = {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    assert hasattr(function, "__wrapped__"), "not @typed"
    needed = {n: object() for n, p in own.items() if p.default is p.empty}
    if all(own[n].annotation in UNTYPED and n != "model" for n in needed):
        return
    with pytest.raises(EmotraceError, match=function.__name__):
        function(**needed)
