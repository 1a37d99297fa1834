"""Asked: functions that take a model and prompts, or activations in their place.

``f(acts, …)`` is an expression over stored activations and needs no model; ``f(model, prompts, …)`` runs one. Which is meant,
the first argument says.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from emotrace.directions.source import edited
from emotrace.labels import EmotraceError
from emotrace.planned import Planned
from emotrace.signatures import typed
from emotrace.store.activations import Activations

P = ParamSpec("P")
Q = ParamSpec("Q")
D = TypeVar("D")
T = TypeVar("T")
D_co = TypeVar("D_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)


class Either(Protocol[P, Q, T_co]):
    """A function with two spellings: of activations (``P``), and of a model and prompts (``Q``)."""

    __name__: str
    __qualname__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> T_co: ...
    def __call__(self, *args: Any, **kwargs: Any) -> T_co:
        """The result."""
        ...


class Asked(Either[P, Q, T_co], Protocol[P, Q, D_co, T_co]):
    """As `Either`, where the spelling of a model and prompts has a ``plan``; activations are there already."""

    def plan(self, *args: Q.args, **kwargs: Q.kwargs) -> D_co:
        """What would be done with a model and prompts."""
        ...


class Joins(Protocol[P, T]):
    """What `of_acts` gives: a decorator of the spelling of a model and prompts."""

    @overload
    def __call__(self, running: Planned[Q, D, T], /) -> Asked[P, Q, D, T]: ...
    @overload
    def __call__(self, running: Callable[Q, T], /) -> Either[P, Q, T]: ...
    def __call__(self, running: Any, /) -> Any:
        """The function of two spellings."""
        ...


def of_acts(stored: Callable[P, T]) -> Joins[P, T]:
    """The function, with ``stored`` for calls whose first argument (or argument ``acts``) is `Activations`.

    ``stored`` looks at its arguments as `typed` functions do, under the name of the function; an argument that only the other
    spelling takes is refused by name.
    """

    def both(running: Any) -> Any:
        stored.__name__ = running.__name__
        of, takes = typed(stored), inspect.signature(stored)

        @functools.wraps(running)
        def asked(*args: Any, **kwargs: Any) -> T:
            if not is_acts(args, kwargs):
                return running(*args, **kwargs)
            bound = _bound(running.__name__, takes, args, kwargs)
            acts = bound.arguments["acts"]
            if isinstance(acts, Activations) and edited(acts):
                what = f"{acts.path} was captured with edits={acts.attrs['edits']}"
                warnings.warn(f"{running.__name__}: {what}, so this is of the edited model.", stacklevel=2)
            return of(*args, **kwargs)

        if hasattr(running, "plan"):
            asked.plan = running.plan  # type: ignore[attr-defined]
        return asked

    return both


def is_acts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether arguments are those of the spelling of activations."""
    return isinstance(args[0], Activations) if args else "acts" in kwargs


def _bound(
    name: str, takes: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """The arguments by name; those that do not fit the spelling of activations are refused."""
    try:
        return takes.bind(*args, **kwargs)
    except TypeError as error:
        others = [repr(argument) for argument in kwargs if argument not in takes.parameters]
        wrong = f"takes no {others[0]}" if others else str(error)
        shown = ", ".join(p.name + ("" if p.default is p.empty else "=…") for p in takes.parameters.values())
        raise EmotraceError(f"{name}(acts, …): {wrong}. Of stored activations it is {name}({shown}).") from None
