"""Address: one proven place in a model, and the plain tuple that a trace understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from emotrace.labels import EmotraceError

Side = Literal["input", "output"]
Place = tuple[str, Any, str, int | None, bool, float, Any]
"""``(kind, envoy, side, index, flat, scale, base)``: what `emotrace.traced` reads and writes."""


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
        if self.side not in ("input", "output"):
            raise EmotraceError(f"Site(path={self.path!r}, side={self.side!r}): side is 'input' or 'output'.")

    @property
    def name(self) -> str:
        """Name of the variable in a store, e.g. ``model.layers.3.mlp.gate_proj:output``."""
        suffix = "" if self.index is None else f"[{self.index}]"
        return f"{self.path}:{self.side}{suffix}"


@dataclass(frozen=True)
class Address:
    """Where a site is: module path, side, tuple index, and what the probe proved about it.

    Attributes:
        site: name of the site.
        layer: 0-based block, or None for a global site.
        path: dotted module path.
        side: which side of the module.
        index: element of a tuple value, or None.
        flat: whether the module flattens ``[batch, token]`` into one axis.
        order: when it happens in a forward, for reading in execution order.
        width: size of the last dim.
        error: largest relative deviation that the proof left.
        kind: ``"plain"``, or ``"mid"`` for ``base + scale · value``, read and edited at the attention's output.
        scale: c, the factor of a scaled residual.
        base: address of ``resid_pre`` for kind ``"mid"``.
        mirror: the module input that carries the same value, where it can only be read (kind ``"mid"``).
        writable: False for ``attn_pattern``.
    """

    site: str
    layer: int | None
    path: str
    side: Side
    index: int | None
    flat: bool
    order: int
    width: int
    error: float = 0.0
    kind: Literal["plain", "mid"] = "plain"
    scale: float = 1.0
    base: Address | None = None
    mirror: Address | None = None
    writable: bool = True

    def lower(self, model: Any) -> Place:
        """The plain tuple of this address, with the envoy of ``model`` in place of the path."""
        base = None if self.base is None else self.base.lower(model)
        return (self.kind, envoy(model, self.path), self.side, self.index, self.flat, self.scale, base)


def envoy(model: Any, path: str) -> Any:
    """The envoy at a module path; nnsight mounts a child called ``output`` or ``input`` as ``E_output``, ``E_input``.

    Raises:
        EmotraceError: if the model has no module of that path.
    """
    here = model
    for done, part in enumerate(path.split(".") if path else ()):
        name = f"E_{part}" if part in ("output", "input", "inputs", "source") else part
        child = getattr(here, name, None)
        if child is None:
            parent = ".".join(path.split(".")[:done]) or "the root"
            children = ", ".join(n for n, _ in here._module.named_children())
            raise EmotraceError(f"no module {path!r} in this model: {parent} has the children {children or 'none'}.")
        here = child
    return here
