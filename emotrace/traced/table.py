"""Table: the sites of a model where emotrace is not installed: what ``model.sites`` becomes in a request."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from emotrace.traced import places
from emotrace.traced.places import Place


class PlainAddress(NamedTuple):
    """A place with the path of its module where the envoy will be, and addresses for its base and mirror.

    Attributes:
        place: where it is.
        base: of ``resid_pre``, in kind ``mid``.
        mirror: of the next norm's input, in kind ``mid``.
        writable: False for ``attn_pattern``.
    """

    place: Place
    base: Any
    mirror: Any
    writable: bool


class Table:
    """Reads and writes sites inside a trace.

    ``rows`` is site → layer (None for global sites) → `PlainAddress`. ``changed`` are the (path, side) whose tensor the
    model changes in place. A place of the user's own is a tuple ``(path, side, index)``.
    """

    model: Any
    rows: dict
    changed: Any

    def read(self, site: str | tuple, layer: int | None = None) -> torch.Tensor:
        """The value at a site, ``[batch, token, width]``."""
        value = places.fetch(self.place(site, layer))
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{site!r} holds no tensor but a {type(value).__name__}; choose another side or index.")
        return value

    def write(self, site: str | tuple, value: torch.Tensor, layer: int | None = None) -> None:
        """Swap the value at a site."""
        if not isinstance(site, tuple) and not self._address(site, layer).writable:
            raise ValueError(f"site {site!r} is read-only; edit z or o_proj_out instead.")
        places.put(self.place(site, layer), value)

    def place(self, site: str | tuple, layer: int | None = None) -> Place:
        """The place of a site."""
        if isinstance(site, tuple):
            path, side, index = site
            return Place("plain", _envoy(self.model, path), side, index, overwritten=(path, side) in self.changed)
        return self._place(self._address(site, layer))

    def _address(self, site: str, layer: int | None) -> PlainAddress:
        if site not in self.rows:
            raise ValueError(f"the model has no site {site!r}. It has: {', '.join(self.rows)}.")
        if layer not in self.rows[site]:
            raise ValueError(f"site {site!r} has no layer {layer!r}: it exists in layers {list(self.rows[site])}.")
        return self.rows[site][layer]

    def _place(self, address: PlainAddress) -> Place:
        base = None if address.base is None else self._place(address.base)
        mirror = None if address.mirror is None else self._place(address.mirror)
        return address.place._replace(envoy=_envoy(self.model, address.place.envoy), base=base, mirror=mirror)


def _envoy(model: Any, path: str) -> Any:
    here = model
    for part in path.split(".") if path else ():
        here = getattr(here, f"E_{part}" if f"E_{part}" in here.__dict__ else part)
    return here
