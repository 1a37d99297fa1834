"""Parts: what a report shows of the inside of a model, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import xarray as xr

from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown

if TYPE_CHECKING:
    from emotrace.circuits.circuit import Circuit

INNER: Final = ("layer", "head", "unit", "sublayer", "which", "k", "draw", "dose")
"""Dims of the datasets; the one that is not among them is the label that is contrasted."""
_NEEDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "influence": ("influence", ("layer", "sublayer")),
    **{f"{kind}s": ("contrast", ("layer", COMPONENTS[kind].dim)) for kind in KINDS},
}
"""Dataset → a variable that it has, and the dims of that besides the label."""
_COLUMNS: Final = {
    "tokens": ("emotion", "layer", "rank", "token"),
    "top_prompts": ("emotion", "layer", "unit", "rank", "text", "activation"),
    "reply_tokens": (
        "emotion",
        "layer",
        "unit",
        "rank",
        "before",
        "token_text",
        "after",
        "activation",
        "position_from_end",
    ),
}


@dataclass(frozen=True, eq=False)
class CircuitParts:
    """Whatever there is of a circuit and of what its components do; every part may be absent.

    Attributes:
        circuit: of `circuits.discover`.
        influence: of `attribution.sublayer_influence`.
        curves: name (such as ``neurons ablated``) → Dataset of `attribution.ablation_curve` or `enhancement_curve`.
        heads: of `attribution.head_contributions`.
        neurons: of `attribution.neuron_contributions`.
        tokens: of `attribution.top_tokens`: one row per ``emotion``, ``layer`` (``sublayer``) and ``rank``, with ``token``.
        attention: patterns ``[query, key]`` of `attribution.attention`, with the attrs ``layer``, ``head``, and ``emotion``,
            whose head it is, if known.
        top_prompts: of `attribution.top_prompts`: one row per ``layer``, ``unit`` and ``rank``, with ``text``, ``activation``,
            ``key`` if known, and ``emotion``: whose neuron it is, not what the prompt asks for.
        reply_tokens: of ``attribution.top_prompts(acts, …)`` at reply tokens: likewise, with ``before``, ``token_text``,
            ``after`` and ``position_from_end`` in the place of ``text``; ``reply_tokens["of"]`` of the report says of which
            replies.

    Raises:
        EmotraceError: for a part without the dims, variables or columns that its figure or table needs.
    """

    circuit: Circuit | None = None
    influence: xr.Dataset | None = None
    curves: Mapping[str, xr.Dataset] = field(default_factory=dict)
    heads: xr.Dataset | None = None
    neurons: xr.Dataset | None = None
    tokens: pd.DataFrame | None = None
    attention: Sequence[xr.DataArray] = ()
    top_prompts: pd.DataFrame | None = None
    reply_tokens: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if self.circuit is not None and not hasattr(self.circuit, "overlap"):
            raise EmotraceError(f"circuits['circuit'] is a Circuit, not {type(self.circuit).__name__}.")
        for name, (variable, dims) in _NEEDS.items():
            if getattr(self, name) is not None:
                _check(getattr(self, name), variable, dims, f"circuits[{name!r}]")
        for name, curve in self.curves.items():
            _check(curve, "delta", ("which", "k"), f"circuits['curves'][{name!r}]")
        for name, columns in _COLUMNS.items():
            frame = getattr(self, name)
            if frame is None:
                continue
            missing = [c for c in columns if c not in frame]
            if missing:
                raise EmotraceError(f"circuits[{name!r}] lacks the column(s) {', '.join(missing)}; it has {[*frame]}.")
        for pattern in self.attention:
            lacks = {"query", "key"} - set(map(str, pattern.dims)) | {"layer", "head"} - set(pattern.attrs)
            if lacks:
                raise EmotraceError(f"circuits['attention']: a pattern lacks {', '.join(sorted(lacks))}.")

    @classmethod
    def of(cls, found: Mapping[str, Any] | CircuitParts | None) -> CircuitParts:
        """The parts themselves, or those of a mapping; parts that are None or empty count as absent.

        Raises:
            EmotraceError: for a name that is no part.
        """
        if isinstance(found, CircuitParts):
            return found
        names = [f.name for f in fields(cls)]
        for name in found or {}:
            if name not in names:
                raise unknown("part", name, names, "report(circuits=…)")
        return cls(**{k: v for k, v in (found or {}).items() if v is not None})


def label_of(data: xr.Dataset | xr.DataArray) -> str:
    """The dim of a dataset that tells emotions apart."""
    return next(str(d) for d in data.dims if d not in INNER)


def _check(data: object, variable: str, dims: tuple[str, ...], place: str) -> None:
    if not isinstance(data, xr.Dataset) or variable not in data:
        raise EmotraceError(f"{place} is a Dataset with {variable!r}, not {_contents(data)}.")
    found = set(map(str, data[variable].dims))
    if not set(dims) <= found or len(found - set(INNER)) != 1:
        raise EmotraceError(f"{place}: {variable!r} has the dims label, {', '.join(dims)}, not {tuple(sorted(found))}.")


def _contents(data: object) -> str:
    return f"one with {', '.join(map(str, data)) or 'nothing'}" if isinstance(data, xr.Dataset) else type(data).__name__
