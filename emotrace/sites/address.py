"""Address: one proven place in a model, and the form of it that a trace understands."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from emotrace.labels import EmotraceError
from emotrace.sites.own import Side
from emotrace.traced import table
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
from emotrace.traced.steps import Read


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
        kind: ``"plain"``; ``"scaled"`` for ``scale · value``; ``"mid"`` for ``base + scale · value``, read and edited at the
            attention's output; ``"base"`` for the ``resid_pre`` that such a site needs.
        scale: c, the factor of a scaled residual.
        base: address of ``resid_pre`` for kind ``"mid"``.
        mirror: the module input that carries the same value a little later, for reading only (kinds ``"mid"``, ``"scaled"``).
        overwritten: the model changes this very tensor in place later on, so a reader must not share it.
        writable: False for ``attn_pattern``.
        heads: of ``z``, into which its width is divided equally, and of ``attn_pattern``; 0 where they are not known.
    """

    site: str
    layer: int | None
    path: str
    side: Side
    index: int | None
    flat: bool
    order: float
    width: int
    error: float = 0.0
    kind: Literal["plain", "scaled", "mid", "base"] = "plain"
    scale: float = 1.0
    base: Address | None = None
    mirror: Address | None = None
    overwritten: bool = False
    writable: bool = True
    heads: int = 0

    @property
    def own(self) -> bool:
        """Whether it is a place of the user's own, of which nothing was proven and no width is known."""
        return self.width < 0

    @property
    def seen(self) -> Address:
        """Where the value is read: ``resid_mid`` of a sequential layer where the next norm is given it, as it is."""
        return self.mirror or self

    def plain(self) -> table.PlainAddress:
        """The address as `emotrace.traced.table` takes it, without envoys."""
        base = None if self.base is None else self.base.plain()
        mirror = None if self.mirror is None else self.mirror.plain()
        return table.PlainAddress(self._place(self.path), base, mirror, self.writable)

    def lower(self, model: TracedModel) -> Place:
        """The place of this address in a model, for `emotrace.traced`."""
        base = None if self.base is None else self.base.lower(model)
        mirror = None if self.mirror is None else self.mirror.lower(model)
        return self._place(envoy(model, self.path))._replace(base=base, mirror=mirror)

    def read(self, model: TracedModel, number: int = 0) -> Read:
        """The step that reads it in a model."""
        return Read(self.order, self.lower(model), number)

    def _place(self, here: Any) -> Place:
        form = (self.kind, here, self.side, self.index, self.flat, self.scale)
        return Place(*form, overwritten=self.overwritten, order=self.order)


def envoy(model: TracedModel, path: str) -> Any:
    """The envoy at a module path; nnsight mounts a child called ``output`` or ``input`` as ``E_output``, ``E_input``.

    Raises:
        EmotraceError: if the model has no module of that path, or it is a list, which no forward calls.
    """
    module: nn.Module = model._module
    here, done = model, ""
    for part in path.split(".") if path else ():
        children = {n: m for n, m in module._modules.items() if m is not None}
        if part not in children:
            close = difflib.get_close_matches(path, [p for p, _ in model._module.named_modules()], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            names = ", ".join(children)
            names = names if len(names) < 300 else f"{next(iter(children))} to {list(children)[-1]}"
            raise EmotraceError(
                f"no module {path!r} in this model: {done or 'the root'} has the children {names or 'none'}.{hint}"
            )
        here = getattr(here, f"E_{part}" if f"E_{part}" in here.__dict__ else part)
        module, done = children[part], f"{done}.{part}".lstrip(".")
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        raise EmotraceError(f"{path!r} is a list of modules, which has no input or output; choose one of its entries.")
    return here
