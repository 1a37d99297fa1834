"""Signatures: what a public function says that it takes is what it takes, refused by name before the function runs.

`typed` reads the annotations. It looks at kinds (a whole number, a list of texts, a `DataArray`); what lies within bounds or
among choices, and what must not occur twice, each function says itself. Numbers are those of `emotrace.arguments`: no bool is
one, and none is NaN.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[str, object], object]
"""``check(name, value)`` gives the value, or an iterator that checks its items as they come."""

_LISTS: tuple[Any, ...] = (Iterable, Iterator, Sequence, Collection, AbstractSet, list, tuple, set, frozenset)
_KINDS = {int: "iu", float: "iuf", str: "UT", bool: "b"}
"""Of arrays, by what their items are."""
_WORDS = {int: "whole numbers", float: "numbers", str: "names", bool: "True or False"}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """The function, or class, behind a look at its arguments: an `EmotraceError` for one of another kind than is annotated.

    An annotation that is ``Any``, ``Annotated`` (with who checks it), or that only type checkers can resolve, is not looked at;
    an argument called ``model`` is a model, and one called ``seed`` a seed.
    """
    if isinstance(function, type):
        function.__init__ = _guarded(function.__init__, function.__name__)  # type: ignore[misc]
        return function
    return _guarded(function, function.__name__)


def _guarded(function: Any, name: str) -> Any:
    signature = inspect.signature(function)
    checks: dict[str, Check] = {}
    ready = False

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal ready
        if not ready:  # annotations may name what is defined after the function
            checks.update(_checks(function, signature))
            ready = True
        bound = signature.bind(*args, **kwargs)  # a missing or unexpected argument is Python's own TypeError
        for argument, check in checks.items():
            if argument in bound.arguments:
                value = bound.arguments[argument]
                if value is not signature.parameters[argument].default:
                    bound.arguments[argument] = check(f"{name}({argument})", value)
        return function(*bound.args, **bound.kwargs)

    return guarded


def _checks(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name == "self":
            continue
        check = (
            _model
            if name == "model" and str(parameter.annotation).removesuffix(" | None") in ("Any", "LanguageModel")
            else _of(_evaluated(function, parameter.annotation))
        )
        if name == "seed" and parameter.annotation == "int":
            check = arguments.seed
        if check is not None:
            found[name] = check
    return found


def _evaluated(function: Callable[..., Any], annotation: object) -> Any:
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, function.__globals__)
    except NameError:  # imported for type checkers only
        return Any


def _model(name: str, value: object) -> object:
    if not hasattr(value, "sites"):
        raise EmotraceError(f"{arguments.said(name, value)}: a model of emotrace.load is due.")
    return value


def _of(annotation: Any) -> Check | None:
    """What checks an annotation; None where nothing can be said."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return _none
    if origin in (typing.Union, types.UnionType):
        return _any_of([_of(item) for item in inner])
    if origin is typing.Literal:
        return functools.partial(_literal, inner)
    if annotation in _NUMBERS:
        return _NUMBERS[annotation]
    if origin is Callable or annotation is Callable:
        return _callable
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return functools.partial(_tuple, [_of(item) for item in inner])
    if (origin or annotation) in _LISTS:
        item = next(iter(inner), Any)
        return functools.partial(_list, item, _of(item))
    if (origin or annotation) in (Mapping, dict):  # a Dataset is a mapping too, and due as such
        return functools.partial(_mapping, [_of(item) for item in inner] or [None, None])
    if annotation is Any or annotation is object or not isinstance(annotation, type):
        return None
    if typing.is_typeddict(annotation):
        return functools.partial(_mapping, [None, None])
    if getattr(annotation, "_is_protocol", False):
        return _instance(annotation) if getattr(annotation, "_is_runtime_protocol", False) else None
    if annotation is os.PathLike or Path in annotation.__mro__:
        return _path
    return _instance(annotation)


class _Wrong(EmotraceError):
    """Another kind of thing than is due, of which others may be right, too."""

    def __init__(self, name: str, value: object, due: str) -> None:
        super().__init__(f"{arguments.said(name, value)}: {due} is due.")
        self.due = due


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong(name, value, "a text")
    return value


def _path(name: str, value: object) -> object:
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise _Wrong(name, value, "a path")
    return value


def _callable(name: str, value: object) -> object:
    if not callable(value):
        raise _Wrong(name, value, "a function")
    return value


def _plain(check: Check, due: str, name: str, value: object) -> object:
    """The value as it is, where a rule of `emotrace.arguments` takes it."""
    try:
        check(name, value)
    except EmotraceError:
        raise _Wrong(name, value, due) from None
    return value


_NUMBERS: dict[Any, Check] = {
    int: functools.partial(_plain, arguments.whole, "a whole number"),
    float: functools.partial(_plain, arguments.number, "a finite number"),
    bool: functools.partial(_plain, arguments.flag, "True or False"),
    str: _text,
    Path: _path,
}


def _instance(kind: type) -> Check:
    def check(name: str, value: object) -> object:
        if not isinstance(value, kind):
            raise _Wrong(name, value, kind.__name__)
        return value

    return check


def _none(name: str, value: object) -> None:
    if value is not None:
        raise _Wrong(name, value, "")


def _literal(choices: tuple[Any, ...], name: str, value: object) -> object:
    if (
        not isinstance(value, (str, int, type(None)))
        or isinstance(value, bool) != (True in choices)
        or value not in choices
    ):
        function, _, argument = name.rstrip(")").partition("(")
        raise unknown(argument, value, choices, f"{function}({argument}=…)")
    return value


def _any_of(checks: Sequence[Check | None]) -> Check | None:
    """The first that takes the value; where none does, what is wrong inside it, or all that it might have been."""
    if any(check is None for check in checks):
        return None

    def check(name: str, value: object) -> object:
        due: dict[str, None] = {}
        inside = None
        for one in checks:
            assert one is not None
            try:
                return one(name, value)
            except _Wrong as error:
                due[error.due] = None
            except EmotraceError as error:
                inside = error
        due.pop("", None)
        raise inside or _Wrong(name, value, " or ".join(due))

    return check


def _tuple(checks: Sequence[Check | None], name: str, value: object) -> object:
    if not isinstance(value, (tuple, list)) or len(value) != len(checks):
        raise _Wrong(name, value, f"{len(checks)} values in a tuple")
    for check, item in zip(checks, value, strict=True):
        _inside(check, name, item)
    return value


def _list(item: object, check: Check | None, name: str, value: object) -> object:
    what = _WORDS.get(item, "values")
    if (
        isinstance(value, (str, bytes, bytearray))
        or (isinstance(value, Mapping) and item is not str)  # the keys of a mapping are names, as Python has it
        or not isinstance(value, Iterable)
        or getattr(value, "ndim", 1) == 0
    ):
        if isinstance(value, slice) and item is int:
            arguments.wholes(name, value)  # says what to give instead
        if isinstance(value, str) and item is str:
            arguments.names(name, value)  # likewise
        raise _Wrong(name, value, f"a list of {what}")
    if check is None:
        return value
    if isinstance(value, Iterator):
        return (_inside(check, name, one) for one in value)
    kind = getattr(getattr(value, "dtype", None), "kind", "O")
    if kind != "O" and item in _KINDS:
        if kind not in _KINDS[item]:
            raise EmotraceError(f"{name} holds {value.dtype}; a list of {what} is due.")  # type: ignore[attr-defined]
        return value
    for one in value:
        _inside(check, name, one)
    return value


def _mapping(checks: Sequence[Check | None], name: str, value: object) -> object:
    if not isinstance(value, Mapping):
        raise _Wrong(name, value, "a mapping (a dict)")
    for key, one in value.items():
        _inside(checks[0], name, key)
        _inside(checks[1], f"the value of {key!r} in {name}", one)
    return value


def _inside(check: Check | None, name: str, value: object) -> object:
    """An item by its own check: what is wrong with it is what is wrong with the whole."""
    try:
        return value if check is None else check(name, value)
    except _Wrong as error:
        raise EmotraceError(str(error)) from None
