"""Own: a place that the user names by its module. Nothing of a model is needed to name it, or to read that somebody did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from emotrace import arguments
from emotrace.labels import EmotraceError

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """A place of the user's own: the input or output of any module.

    Args:
        path: dotted path of the module as ``named_modules`` spells it, e.g. ``"model.layers.3.mlp.gate_proj"``.
        side: ``"input"`` (the first argument) or ``"output"``.
        index: element, where the value is a tuple; ``None`` takes a tensor as it is, or element 0 of a tuple.
    """

    path: str
    side: Side = "output"
    index: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise EmotraceError(
                f"Site(path={self.path!r}): the dotted path of a module is due, as named_modules spells it."
            )
        if self.index is not None:
            object.__setattr__(self, "index", arguments.whole("Site(index)", self.index, 0))
        if self.side not in ("input", "output"):
            raise EmotraceError(f"Site(path={self.path!r}, side={self.side!r}): side is 'input' or 'output'.")

    def refuse_whole(self, place: str) -> None:
        """Refuse the whole model.

        Raises:
            EmotraceError: naming the place that it was given at.
        """
        if not self.path.strip():
            raise EmotraceError(
                f"{place}: Site('') is the whole model, whose output is no tensor; see the site 'logits'."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """In a request it is a plain tuple: this class does not exist on a server."""
        return tuple, ((self.path, self.side, self.index),)

    @property
    def name(self) -> str:
        """Name of the variable in a store, e.g. ``model.layers.3.mlp.gate_proj:output``."""
        suffix = "" if self.index is None else f"[{self.index}]"
        return f"{self.path}:{self.side}{suffix}"
