"""Kinds: the edits as small frozen descriptions.

Scale of an addition, h being the value before our edits at that site: ``raw`` h + s·v, ``unit`` h + s·v/‖v‖,
``rms`` h + s·RMS(h)·v/‖v‖ with RMS(h) = √(mean h²).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from emotrace import arguments, shown
from emotrace.labels import EmotraceError, Positions, check_positions, unknown
from emotrace.sites import Site

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

Norming = Literal["raw", "unit", "rms"]
Payload: TypeAlias = "xr.DataArray | np.ndarray | torch.Tensor | Sequence[float] | float"
"""What an edit may carry."""


class Numbers:
    """A field of whole numbers: one, several or none are given, and a tuple or None is held."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, edit: Edit | None, owner: type | None = None) -> tuple[int, ...] | None:
        return None if edit is None else edit.__dict__[self.name]

    def __set__(self, edit: Edit, value: Iterable[int] | int | None) -> None:
        name = f"{type(edit).__name__}({self.name})"
        if isinstance(value, slice):
            last = "…" if value.stop is None else value.stop + 1
            raise EmotraceError(
                f"{name[:-1]}={value}): edits take no slices. In a selection a slice includes its end, so the same is "
                f"range({value.start or 0}, {last})."
            )
        edit.__dict__[self.name] = None if value is None else arguments.wholes(name, value)


@dataclass(frozen=True)
class Edit:
    """What all edits share: where they act.

    Args:
        site: name of a site, or a place of the user's own (`emotrace.Site`).
        layers: 0-based layers, one or several, never a slice; None for global sites and own places.
        positions: policy or span; ``steer`` = last prompt token and every generated one.
        heads: heads of ``z`` to act on; None for all.
        units: units of ``neuron`` (or columns of any other site) to act on; None for all.
        origin: what it was made with (`emotrace.provenance`); None: what the vector's attrs say.
    """

    site: str | Site
    layers: Numbers = Numbers()
    positions: Positions = "steer"
    heads: Numbers = Numbers()
    units: Numbers = Numbers()
    origin: Mapping[str, Any] | None = field(default=None, kw_only=True, repr=False, compare=False)
    kind: ClassVar[str] = ""
    by_unit: ClassVar[bool] = False
    """Whether the vector holds a factor for every unit."""
    as_which: ClassVar[str] = ""
    """What an edit is called that needs a vector."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Edit.__repr__  # a dataclass would print the vector

    def __repr__(self) -> str:
        shown_ones = [(f.name, getattr(self, f.name), f.default) for f in fields(self) if f.repr]
        told = {name: value for name, value, default in shown_ones if _differs(value, default)}
        return shown.called(type(self).__name__, told.pop("site", self.site), **told)

    def _repr_html_(self) -> str:
        return shown.html(
            type(self).__name__, {f.name: shown.short(getattr(self, f.name)) for f in fields(self) if f.repr}
        )

    def __post_init__(self) -> None:
        at = check_positions(self.positions, f"{type(self).__name__}(positions=…)")
        object.__setattr__(self, "positions", at)
        if self.origin is not None and not isinstance(self.origin, Mapping):
            raise EmotraceError(
                f"{type(self).__name__}(origin={self.origin!r}): a mapping of what it was made with, or None."
            )
        if self.as_which and self.payload is None:
            raise EmotraceError(f"{type(self).__name__}(vector=None): {self.as_which} needs a vector.")
        if "strength" in self.__dict__:
            arguments.number(f"{type(self).__name__}(strength)", self.__dict__["strength"])

    @property
    def payload(self) -> Payload | None:
        """The vector that the edit carries, or None."""
        return getattr(self, "vector", None)

    @property
    def by_direction(self) -> bool:
        """Whether only the direction of the vector counts, not its length."""
        return False

    @property
    def by_activation(self) -> bool:
        """Whether what is written is measured in the activation, so that its size is not known beforehand."""
        return False


@dataclass(frozen=True)
class Add(Edit):
    """h + s·v in one of three scales.

    Args:
        vector: ``[dim]``, or a DataArray that may have the dims ``layer`` and ``sublayer`` (matched by name) and one
            label dim such as ``emotion`` (gathered for each prompt by its label).
        strength: s.
        scale: ``raw``, ``unit`` or ``rms``.
    """

    vector: Payload | None = None
    strength: float = 1.0
    scale: Norming = "raw"
    kind: ClassVar[str] = "add"
    as_which: ClassVar[str] = "an addition"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in ("raw", "unit", "rms"):
            raise unknown("scale", self.scale, ("raw", "unit", "rms"), "Add(scale=…)")

    @property
    def by_direction(self) -> bool:
        """In units of a length."""
        return self.scale != "raw"

    @property
    def by_activation(self) -> bool:
        """In units of RMS(h)."""
        return self.scale == "rms"


@dataclass(frozen=True)
class Scale(Edit):
    """strength · h, or strength · f ⊙ h with a factor f for every unit.

    Args:
        strength: of all units alike.
        vector: f, shaped and labelled as the vector of `Add`; None for 1.
    """

    strength: float = 1.0
    vector: Payload | None = None
    kind: ClassVar[str] = "scale"
    by_unit: ClassVar[bool] = True


@dataclass(frozen=True)
class Ablate(Edit):
    """0 (``vector=None``), or a constant such as a mean, in place of h."""

    vector: Payload | None = None
    kind: ClassVar[str] = "ablate"


@dataclass(frozen=True)
class Project(Edit):
    """h − s·⟨h, v̂⟩ v̂: the component along a direction removed (s = 1), or mirrored (s = 2)."""

    vector: Payload | None = None
    strength: float = 1.0
    kind: ClassVar[str] = "project"
    as_which: ClassVar[str] = "a projection"

    @property
    def by_direction(self) -> bool:
        """Along it is projected."""
        return True

    @property
    def by_activation(self) -> bool:
        """What is taken away is a part of h."""
        return True


def _differs(value: Any, default: Any) -> bool:
    """Whether a value is worth printing: an array, or not what it is by default."""
    return bool(getattr(value, "shape", ())) or (value is not default and value != default)


EDITS: Mapping[str, type[Edit]] = {cls.__name__: cls for cls in (Add, Scale, Ablate, Project)}
