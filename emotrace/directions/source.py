"""Source: rows of labelled activations, whatever holds them, read in blocks of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.labels import EmotraceError, Positions, check_positions, rows_at

BLOCK_BYTES: Final = 64 << 20
PROVENANCE: Final = (
    "model_id",
    "revision",
    "config_hash",
    "weights_hash",
    "weights_sample",
    "tokenizer_hash",
    "template_hash",
    "template_date",
    "double_bos",
    "bos",
    "dtype",
    "attn_implementation",
    "edits",
    "prompts_digest",
    "tokens_digest",
    "plan_digest",
    "source",
    "selection",
)


class Selectable(Protocol):
    """Open activations, as `emotrace.open_activations` gives them."""

    def sel(self, variable: str = "residual", **labels: Any) -> xr.DataArray:
        """Rows of one variable."""
        ...


ActivationsLike = Annotated[xr.DataArray | Selectable, "checked by source"]
"""A labelled array with a dim ``token``, or open activations."""


@dataclass(frozen=True)
class Source:
    """Rows of one array: ``array`` stays lazy, ``table`` holds the labels of its tokens, one row each.

    The dims are ``layer`` and ``sublayer`` where the array has them, ``token``, and features (everything else).
    """

    array: xr.DataArray
    table: pd.DataFrame
    attrs: dict[str, Any]
    rows: np.ndarray

    @property
    def features(self) -> tuple[str, ...]:
        """Dims of one vector, e.g. ``("dim",)`` or ``("head", "head_dim")``."""
        return tuple(str(d) for d in self.array.dims if d not in ("layer", "sublayer", "token"))

    @property
    def lead(self) -> tuple[str, ...]:
        """Those of ``layer`` and ``sublayer`` that the array has."""
        return tuple(d for d in ("layer", "sublayer") if d in self.array.dims)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, sublayers (1 for a dim that is absent) and numbers in one vector."""
        sizes = self.array.sizes
        return (
            int(sizes.get("layer", 1)),
            int(sizes.get("sublayer", 1)),
            int(np.prod([sizes[d] for d in self.features])),
        )

    def blocks(self, layer: int, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Vectors of some rows at one layer: (slice of ``rows``, float64 ``[sublayer, rows, features]``), in blocks.

        Args:
            layer: index along the dim, not the coordinate.
            rows: indices into ``table``.
        """
        _, n_sub, width = self.shape
        for part in pieces(len(rows), n_sub * width):
            yield part, self.read(layer, rows[part])

    def read(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Vectors of some rows at one layer, float64 ``[sublayer, rows, features]``.

        Args:
            layer: index along the dim, not the coordinate.
            rows: indices into ``table``.

        Raises:
            EmotraceError: for numbers that are not finite.
        """
        return self.exact(self.raw(layer, rows), layer, rows)

    def raw(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """As `read`, in the stored dtype and whatever the numbers are."""
        _, n_sub, width = self.shape
        wanted: dict[str, Any] = {"token": _as_slice(self.rows[rows])}
        if "layer" in self.array.dims:
            wanted["layer"] = layer
        block = self.array.variable.isel(wanted)
        order = [d for d in ("sublayer", "token", *self.features) if d in block.dims]
        return block.transpose(*order).values.reshape(n_sub, len(rows), width)

    def exact(self, values: np.ndarray, layer: int, rows: np.ndarray) -> np.ndarray:
        """What `raw` gave, as float64; refuses as `read`."""
        values = np.ascontiguousarray(values, dtype=np.float64)
        flat = values.reshape(-1)
        if not np.isfinite(flat @ flat):  # takes no array of truths
            where = int(np.argwhere(~np.isfinite(values))[0][-2])
            key = self.table["key"].iloc[rows[where]] if "key" in self.table else rows[where]
            raise EmotraceError(f"the activations at {self.place(layer)} of {key!r} are not finite.")
        return values

    def place(self, layer: int, sublayer: int | None = None) -> str:
        """A place in words, e.g. ``layer 3, sublayer resid_post``."""
        out = []
        for dim, i in (("layer", layer), ("sublayer", sublayer)):
            if i is not None and dim in self.array.dims:
                out.append(f"{dim} {self.array[dim].values[i] if dim in self.array.coords else i}")
        return ", ".join(out) or "the array"

    def label(
        self, values: np.ndarray, outer: str | None, coords: dict[str, Any], name: str
    ) -> tuple[xr.DataArray, tuple[str, ...]]:
        """Numbers ``[(outer), layer, sublayer, (features)]`` as a labelled array with the dims that exist."""
        head = (outer,) if outer else ()
        n_outer = len(head)
        whole = values.ndim > n_outer + 2
        dims = (*head, *self.lead, *(self.features if whole else ()))
        sizes = [values.shape[0]] * n_outer + [int(self.array.sizes[d]) for d in dims[n_outer:]]
        found: dict[str, Any] = {}
        for dim in dims[n_outer:]:
            if dim in self.array.coords and self.array[dim].dims == (dim,):
                found[dim] = (dim, self.array[dim].values)
        for dim in ("layer", "sublayer"):
            if dim in self.array.coords and self.array[dim].ndim == 0:
                found[dim] = self.array[dim].values
        return xr.DataArray(values.reshape(sizes), dims=dims, coords={**coords, **found}, name=name), dims

    def provenance(self) -> dict[str, Any]:
        """What the rows came from: model, prompts, plan."""
        return provenance_of(self)


def edited(thing: Any) -> bool:
    """Whether activations, or rows of them, were captured under edits."""
    return thing.attrs.get("edits", "none") != "none"


def provenance_of(thing: Any) -> dict[str, Any]:
    """What activations, or rows of them, came from: model, prompts, plan, store and selection."""
    found = {k: thing.attrs[k] for k in PROVENANCE if k in thing.attrs and (k != "edits" or edited(thing))}
    if "source" not in found and hasattr(thing, "path"):
        found |= {"source": str(thing.path), "selection": thing.selection}
    return found


def pieces(n: int, width: int, starts: np.ndarray | None = None, size: int | None = None) -> Iterator[slice]:
    """Rows 0 to n cut into blocks; at ``starts`` only, where a block is at least one step of these.

    Args:
        n: rows.
        width: numbers of a row.
        starts: sorted rows at which a block may begin; None for all.
        size: bytes of a block in float64; None for `BLOCK_BYTES`.
    """
    step = max(1, (BLOCK_BYTES if size is None else size) // (8 * max(width, 1)))
    at = 0
    while at < n:
        stop = min(at + step, n)
        if starts is not None and stop < n:
            i = int(np.searchsorted(starts, stop, side="right")) - 1
            stop = int(starts[i]) if starts[i] > at else int(starts[i + 1]) if i + 1 < len(starts) else n
        yield slice(at, stop)
        at = stop


def source(acts: ActivationsLike, variable: str = "residual", position: Positions = "last") -> Source:
    """Rows of ``acts`` at the positions asked.

    Args:
        acts: a DataArray with a ``token`` dim that carries label coordinates, or open activations (anything with
            ``.sel(variable=…, position=…)`` that returns one).
        variable: the array of the activations; ignored for a DataArray.
        position: policy or span. Where a DataArray says nothing about positions, each of its rows is taken.

    Raises:
        EmotraceError: for another kind of input, a missing ``token`` dim, or no row at the positions.
    """
    position = check_positions(position, "position")
    if isinstance(acts, xr.DataArray):
        array, attrs = acts, dict(acts.attrs)
    elif hasattr(acts, "sel") and not isinstance(acts, (xr.Dataset, pd.DataFrame)):
        array = acts.sel(variable=variable, position=position)
        attrs = {**dict(getattr(acts, "attrs", {})), **dict(array.attrs)}
    else:
        raise EmotraceError(f"directions take activations or a labelled DataArray, not {type(acts).__name__}.")
    if "token" not in array.dims:
        raise EmotraceError(f"the array has the dims {', '.join(map(str, array.dims))}; directions need 'token'.")
    columns = {
        str(name): _column(c.values)
        for name, c in array.coords.items()
        if c.dims == ("token",) and str(name) != "token"
    }
    table = pd.DataFrame(columns, index=range(array.sizes["token"]))
    rows = np.flatnonzero(_at(table, position))
    if len(rows) == 0:
        raise EmotraceError(f"no row at position={position!r} among {len(table)} rows.")
    return Source(array, table.iloc[rows].reset_index(drop=True), attrs, rows)


def _as_slice(rows: np.ndarray) -> Any:
    """Rows as a slice where they follow each other: nothing is gathered then."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _column(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "iufb" else values.astype(object)


def _at(table: pd.DataFrame, position: Positions) -> np.ndarray:
    if not isinstance(position, str) and "position" not in table:
        raise EmotraceError(f"position={position!r}: the rows carry no 'position' to compare with.")
    if position == "all" or (isinstance(position, str) and "position_from_end" not in table):
        return np.ones(len(table), dtype=bool)
    return rows_at(position, lambda: table["position"].to_numpy(), lambda: table["position_from_end"].to_numpy())
