"""Planted shapes: circuits that `emotrace.testing.planted_circuits` sets by hand, head by head.

``direct`` (two copying heads, a neuron), ``chain`` (one head carries the word to a middle token, a later one from there to
the end), ``gqa`` (the chain with four query heads to a key-value head), ``mqa`` (one key-value head for all), ``backup`` (a
head that steps in where the first is silent), ``negative`` (a head that takes the answer away), ``query`` (the word decides
what a later head looks for), ``key`` (the word decides what it finds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Head:
    """A planted head: from the token with feature ``at`` it looks at the one with ``to`` and copies ``read`` to ``write``.

    Attributes:
        strength: of the copy; negative takes away.
        less: features that make it look away, to the beginning.
        by: ``value``, or ``query`` (``at`` are two features that it looks for the two of ``to`` with), or ``key`` (it looks
            for the first of ``to``): which of its inputs carries the word.
    """

    layer: int
    head: int
    at: str
    to: str
    read: str
    write: str
    strength: float = 1.5
    less: str = ""
    by: str = "value"

    @property
    def inputs(self) -> dict[str, str]:
        """Input (q, k, v) → features that it reads there and that may differ between the words."""
        return {"value": {"v": self.read}, "query": {"q": self.at}, "key": {"k": self.to}}[self.by]


@dataclass(frozen=True)
class Shape:
    """A model and its circuit.

    Attributes:
        family: ``llama`` or ``gpt2``.
        layers: blocks.
        heads: query heads of each.
        groups: key-value heads.
        planted: heads.
        neurons: layers in which two neurons amplify *out* at the end.
        idle: planted heads that do nothing in the clean run (backups).
    """

    family: str
    layers: int
    heads: int
    groups: int
    planted: tuple[Head, ...]
    neurons: tuple[int, ...] = ()
    idle: tuple[tuple[int, int], ...] = ()


SHAPES: Final = {
    "direct": Shape(
        "llama", 2, 4, 4,
        (Head(0, 1, "end", "word", "asked", "out"), Head(1, 2, "end", "word", "asked", "out"),
         Head(1, 0, "end", "word", "asked", "dead", 3.0)), (1,),
    ),
    "chain": Shape(
        "gpt2", 3, 4, 4,
        (Head(0, 2, "middle", "word", "asked", "moved", 2.5), Head(1, 0, "end", "middle", "moved", "out", 2.5),
         Head(1, 3, "end", "word", "asked", "dead", 4.0)), (2,),
    ),
    "gqa": Shape(
        "llama", 3, 8, 2,
        (Head(0, 5, "middle", "word", "asked", "moved", 2.5), Head(1, 1, "end", "middle", "moved", "out", 2.5),
         Head(2, 6, "end", "word", "asked", "out", 1.0), Head(2, 0, "end", "word", "asked", "dead", 4.0)),
    ),
    "mqa": Shape(
        "llama", 4, 4, 1,
        (Head(1, 3, "end", "word", "asked", "out", 2.0), Head(2, 0, "end", "word", "asked", "out", 1.0),
         Head(3, 2, "end", "word", "asked", "dead", 3.0)), (2, 3),
    ),
    "backup": Shape(
        "llama", 3, 4, 2,
        (Head(0, 1, "end", "word", "asked", "out", 2.0), Head(2, 3, "end", "word", "asked", "out", 2.0, less="out"),
         Head(1, 0, "end", "word", "asked", "dead", 4.0)),
        idle=((2, 3),),
    ),
    "negative": Shape(
        "gpt2", 2, 4, 4,
        (Head(0, 0, "end", "word", "asked", "out", 2.5), Head(1, 3, "end", "word", "asked", "out", -1.0),
         Head(0, 2, "end", "word", "asked", "dead", 4.0)), (1,),
    ),
    "query": Shape(
        "gpt2", 2, 4, 4,
        (Head(0, 1, "end", "word", "asked", "moved", 2.5), Head(1, 2, "moved", "sides", "sides", "out", 2.0, by="query"),
         Head(1, 0, "end", "word", "asked", "dead", 4.0)),
    ),
    "key": Shape(
        "llama", 3, 4, 2,
        (Head(0, 3, "middle", "word", "asked", "moved", 2.5), Head(2, 1, "end", "moved", "middle", "out", 2.0, by="key"),
         Head(1, 0, "end", "word", "asked", "dead", 4.0)),
    ),
}  # fmt: skip
"""Name → model."""
