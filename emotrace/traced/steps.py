"""Steps: what a trace does at one place, and the order in which it does so.

A *program* is a list of steps in that order. Inside one forward nnsight gives values in execution order only, so reads and
edits of one forward share the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from emotrace.traced.places import Place

Sink = Callable[[int, Any], None]
"""Called with the number of a read and what its place holds."""
RANK = {"edit": 0, "shift": 0, "node": 0, "leaf": 1, "keep": 2, "rms": 2, "read": 3, "measure": 3}
"""At one place: what changes a value comes before what sees it."""


class Read(NamedTuple):
    """A value is handed on.

    Attributes:
        order: when it happens in a forward.
        place: where.
        number: by which what takes the value knows it.
    """

    order: float
    place: Place
    number: int
    kind = "read"


class Keep(NamedTuple):
    """A value is kept for an edit that comes later in the forward: ``resid_pre`` for one of ``resid_mid``."""

    order: float
    place: Place
    kind = "keep"


class Shift(NamedTuple):
    """``factor`` · δ is added, with δ = 0, to which the read-out is differentiated."""

    order: float
    place: Place
    factor: float
    kind = "shift"


class Leaf(NamedTuple):
    """δ = 0 is added to a value, to which a metric is differentiated: its gradient is handed on where the model can give one."""

    order: float
    place: Place
    number: int
    kind = "leaf"


class Measure(NamedTuple):
    """A value that a metric reads at its token."""

    order: float
    place: Place
    number: int
    kind = "measure"


class Rms(NamedTuple):
    """The root mean square of a value is taken."""

    order: float
    place: Place
    kind = "rms"


class Node(NamedTuple):
    """What components write is set or blended, and handed on as the number of a node (`emotrace.traced.circuits`)."""

    order: float
    place: Place
    number: int
    kind = "node"


def ordered(steps: Iterable) -> list:
    """Steps in the order of execution."""
    return sorted(steps, key=lambda step: (step.order, RANK[step.kind]))
