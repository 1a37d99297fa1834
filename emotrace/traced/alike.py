"""Alike: edits that act at every token of every row that a generation computes, done by the modules themselves, as a bias is.

Between a module and a trace that waits for its value control passes to and fro, at each place of each new token. Where no
token is left out there is nothing to wait for: a hook of torch does the same arithmetic, and the trace enters no forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from emotrace.traced import edits, places
from emotrace.traced.edits import Group
from emotrace.traced.model import TracedModel


def whole(model: TracedModel, program: list, start: int, stop: int) -> bool:
    """Whether all that a program does is alike at all columns ``[start, stop)``, and asks for nothing but the value there.

    Not where a module that it changes serves several layers, since which call is meant only the trace knows, nor where one has
    hooks of the user's own, which see what the trace left.
    """
    groups = _groups(program)
    if not groups or not all(_alike(group, start, stop) for group in groups):
        return False
    served = Counter(id(module) for _, module in model._module.named_modules(remove_duplicate=False))
    modules = [group.place.envoy._module for group in groups]
    return all(served[id(m)] == 1 and not (m._forward_hooks or m._forward_pre_hooks) for m in modules)


def _groups(program: list) -> list:
    return [step for step in program if step.kind == "edit"]


def _alike(group: Group, start: int, stop: int) -> bool:
    place, operations = group.place, group.operations
    if place.flat or place.overwritten:
        return False
    if any(flag != 2 for op in operations for flag in op.flags[start:stop]):
        return False
    return place.kind in ("plain", "base") or not edits.sees(operations)


class Hooked:
    """While it is entered, modules carry a program out, one that is `whole`.

    Args:
        program: its steps.
        start: first column.
        fired: how often each edit was carried out; counted up.
    """

    def __init__(self, program: list, start: int, fired: list) -> None:
        self._groups, self._start, self._fired = _groups(program), start, fired
        self._handles: list = []

    def __enter__(self) -> None:
        try:
            for group in self._groups:
                self._handles.append(_hook(group.place, _change(group, self._start), self._count(group)))
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _count(self, group: Group) -> Callable[[], None]:
        return lambda: edits.count(group.operations, self._fired)


def _change(group: Group, start: int) -> Callable[[Any], Any]:
    place, operations = group.place, group.operations
    if not edits.sees(operations):
        known = edits.delta(operations, None, start, start + 1)
        return lambda value: places.added(value, place, known)

    def of(h: torch.Tensor) -> torch.Tensor:
        if not edits.only_add(operations):
            return edits.changed(operations, h.float(), start, start + 1)
        return h.to(torch.promote_types(h.dtype, torch.float32)) + edits.delta(operations, h.float(), start, start + 1)

    return lambda value: places.replaced(value, place, of)


def _hook(place: places.Place, change: Callable[[Any], Any], count: Callable[[], None]) -> Any:
    module = place.envoy._module
    if place.side == "output":

        def after(_module: Any, _args: tuple, value: Any) -> Any:
            count()
            return change(value)

        return module.register_forward_hook(after)

    def before(_module: Any, args: tuple, named: dict) -> tuple:
        count()
        if args:
            return (change(args[0]), *args[1:]), named
        name = next(iter(named))  # what nnsight takes for the input of a module
        return args, named | {name: change(named[name])}

    return module.register_forward_pre_hook(before, with_kwargs=True)
