"""Show: what a notebook prints for an open store."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd

from emotrace.disk import Located
from emotrace.shown import few, html
from emotrace.store.variable import Variable


class ShownRows(Protocol):
    """What is shown of activations: the rows that are committed, and where they come from."""

    path: Located
    attrs: dict[str, Any]
    columns: tuple[str, ...]
    complete: bool

    @property
    def described(self) -> tuple[Variable, ...]:
        """Dims, labels and dtype of every stored site."""
        ...

    def column(self, name: str) -> Any:
        """One token label of every row."""
        ...

    def __len__(self) -> int: ...


def summary(acts: ShownRows) -> str:
    """A few lines: where from, how much, which sites, which labels with their values."""
    sites = [f"    {describe(v, len(acts))}" for v in acts.described]
    lines = [_head(acts), "  sites", *sites, "  token labels"]
    if len(acts):
        lines += [f"    {name:<18} {_values(acts.column(name))}" for name in acts.columns]
    lines.append("  .sel(layer=…, sublayer=…, LABEL=…) → lazy DataArray; .where(…) → Activations; .tokens → DataFrame")
    return "\n".join(lines)


def as_html(acts: ShownRows) -> str:
    """The same for notebooks."""
    sites = {v.name: describe(v, len(acts)).removeprefix(f"{v.name} ") for v in acts.described}
    labels = {name: _values(acts.column(name)) for name in acts.columns} if len(acts) else {}
    return html(_head(acts), {**sites, **labels})


def _head(acts: ShownRows) -> str:
    attrs, store = acts.attrs, acts.attrs["emotrace_store"]
    state = "complete" if acts.complete else f"{len(acts):,} of {store['rows']:,} rows committed"
    if "selection" in attrs:
        state = f"of {store['rows']:,} in the store, where {attrs['selection']}"
    return f"Activations of {attrs.get('model_id', 'an unnamed model')}: {len(acts):,} rows, {state}  ({acts.path})"


def describe(v: Variable, rows: int) -> str:
    """One line for a variable: dims with sizes, layers, sublayers, dtype, size."""
    sizes = ", ".join(f"{d}: {n}" for d, n in zip(v.full_dims, v.shape(rows), strict=True))
    coords = "; ".join(f"{d} {_span(c)}" for d, c in v.coords.items())
    dtype = v.source_dtype if v.codec == "none" else f"{v.source_dtype}, {v.codec}"
    return f"{v.name} [{sizes}] {dtype}, {human(rows * v.row_bytes)}" + (f"; {coords}" if coords else "")


def human(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def _span(values: Any) -> str:
    values = list(values)
    if len(values) > 2 and not isinstance(values[0], str) and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}–{values[-1]}"
    return ", ".join(map(str, values))


def _values(column: Any) -> str:
    if column.dtype.kind in "iuf":
        return f"{column.min()} … {column.max()}"
    unique = pd.unique(column)
    return few(unique.tolist())
