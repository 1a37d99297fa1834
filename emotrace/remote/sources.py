"""Sources: of the functions that requests ship, each looked up once.

nnsight ships a function as its source. `inspect` finds that by reading tokens from its first line on, twice for every function of
every request, which is most of the time that packing one takes. What was found of a code object stays true as long as it lives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any, Final

from emotrace.traced.inner import serialization

MOST: Final = 4096
"""Functions that are remembered."""


class Remembering:
    """`inspect`, which remembers the lines of functions, and of which there are none."""

    def __init__(self) -> None:
        self._found: dict[tuple[CodeType, str], tuple[list[str], int] | str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    def getsourcelines(self, function: Callable[..., Any]) -> tuple[list[str], int]:
        """Lines of a function, and the number of the first.

        Raises:
            OSError: where its source is not to be had: it was made by a program.
        """
        code = getattr(inspect.unwrap(function), "__code__", None)
        if code is None:
            return inspect.getsourcelines(function)
        place = code, code.co_filename  # code alone is equal to code of another file
        if place not in self._found:
            if len(self._found) >= MOST:
                self._found.clear()
            self._found[place] = _looked_up(function)
        found = self._found[place]
        if isinstance(found, str):
            raise OSError(found)
        return [*found[0]], found[1]

    def getsource(self, function: Callable[..., Any]) -> str:
        """The same as one text."""
        return "".join(self.getsourcelines(function)[0])


def _looked_up(function: Callable[..., Any]) -> tuple[list[str], int] | str:
    """Lines and first number; in words why there are none."""
    try:
        return inspect.getsourcelines(function)
    except OSError as error:
        return str(error)


def remember() -> None:
    """Have nnsight look up the source of a function, and the names that it needs, once."""
    if not isinstance(serialization.inspect, Remembering):
        names = lru_cache(MOST)(serialization._function_referenced_names)
        serialization.__dict__.update(inspect=Remembering(), _function_referenced_names=names)
