"""Asked: functions that take a model and prompts, or activations in their place.

``f(acts, …)`` is an expression over stored activations and needs no model; ``f(model, prompts, …)`` runs one. Which is meant,
the first argument says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from emotrace.planned import Planned
from emotrace.signatures import typed
from emotrace.store.activations import Activations

P = ParamSpec("P")
Q = ParamSpec("Q")
D = TypeVar("D")
T = TypeVar("T")
D_co = TypeVar("D_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)


class Asked(Protocol[P, Q, D_co, T_co]):
    """A function with two spellings: of activations (``P``), and of a model and prompts (``Q``), which alone has a ``plan``."""

    __name__: str
    __qualname__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> T_co: ...
    def __call__(self, *args: Any, **kwargs: Any) -> T_co:
        """The result."""
        ...

    def plan(self, *args: Q.args, **kwargs: Q.kwargs) -> D_co:
        """What would be done with a model and prompts; activations are there already."""
        ...


def of_acts(stored: Callable[P, T]) -> Callable[[Planned[Q, D, T]], Asked[P, Q, D, T]]:
    """The function, with ``stored`` for calls whose first argument (or argument ``acts``) is `Activations`.

    ``stored`` looks at its arguments as `typed` functions do, under the name of the function.
    """

    def both(running: Planned[Q, D, T]) -> Asked[P, Q, D, T]:
        of = _named(stored, running.__name__)

        @functools.wraps(running)
        def asked(*args: Any, **kwargs: Any) -> T:
            return (of if is_acts(args, kwargs) else running)(*args, **kwargs)

        asked.plan = running.plan  # type: ignore[attr-defined]
        return asked  # type: ignore[return-value]

    return both


class Either(Protocol[P, Q, T_co]):
    """As `Asked`, where neither spelling has a ``plan``."""

    __name__: str
    __qualname__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> T_co: ...
    def __call__(self, *args: Any, **kwargs: Any) -> T_co:
        """The result."""
        ...


def of_acts_alone(stored: Callable[P, T]) -> Callable[[Callable[Q, T]], Either[P, Q, T]]:
    """As `of_acts`, for a function without a ``plan``."""

    def both(running: Callable[Q, T]) -> Either[P, Q, T]:
        of = _named(stored, getattr(running, "__name__", ""))

        @functools.wraps(running)
        def asked(*args: Any, **kwargs: Any) -> T:
            return (of if is_acts(args, kwargs) else running)(*args, **kwargs)

        return asked  # type: ignore[return-value]

    return both


def _named(stored: Callable[P, T], name: str) -> Callable[P, T]:
    stored.__name__ = name
    return typed(stored)


def is_acts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether arguments are those of the spelling of activations."""
    return isinstance(args[0], Activations) if args else "acts" in kwargs
