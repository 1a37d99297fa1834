"""Activations: a store opened for reading, lazy and labelled."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.directions.source import edited
from emotrace.disk import Located, There, located
from emotrace.labels import COUNTED, EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.store import checks, layout
from emotrace.store.cell import Cell, ChunkRows
from emotrace.store.chunks import ChunkArray, ColumnArray, as_slice, existing, runs
from emotrace.store.frames import chunked, long_table, merged
from emotrace.store.laziness import cached, lazy
from emotrace.store.narrow import Narrowing, chained, kept_of, narrowed, within
from emotrace.store.plan import Plan
from emotrace.store.select import index_of, rows_of, said
from emotrace.store.table import TokenTable
from emotrace.store.variable import Variable

EAGER_ROWS = 20_000
"""Up to so many rows the labels on ``token`` are read at once; beyond, when they are asked for."""
SOURCE_ATTRS = (
    "model_id", "revision", "dtype", "weights_hash", "weights_sample", "edits", "prompts_digest", "plan_digest"
)  # fmt: skip
WHOLE = "[]"
"""The selection of activations that are not narrowed."""


@typed
def open_activations(path: str | os.PathLike[str]) -> Activations:
    """Open a store for reading; only committed rows are shown, also while it is being written.

    Raises:
        EmotraceError: if there is no store of emotrace at ``path``.
    """
    return Activations(path)


class Activations:
    """Activations of a prompt set: lazy arrays by site, labelled by layer, sublayer and everything known of each token.

    ``acts.residual`` (and ``.z``, ``.neuron``, …) is a lazy ``xarray.DataArray``; `sel` takes array dims and token
    labels alike; `where` takes the same labels and gives activations again, narrowed; ``acts.tokens`` is the token table.

    Args:
        path: directory of the store, or its URL (``s3://…``, ``gs://…``, ``az://…``).
    """

    def __init__(self, path: str | os.PathLike[str] | There) -> None:
        self.path: Located = located(path)
        self.attrs: dict[str, Any] = checks.attrs(self.path)
        store = self.attrs["emotrace_store"]
        self._n: int = store["rows"]
        self._row_group: int = store["row_group"]
        self.columns: tuple[str, ...] = tuple(store["columns"])
        self._table: TokenTable | None = TokenTable(self.path, store)
        self._hold({v["name"]: Variable.from_json(v) for v in store["variables"]}, {}, {})
        self.n_groups = -(-self._n // self._row_group)
        groups = [g for g in layout.committed_groups(self.path) if g < self.n_groups]
        self.complete = len(groups) == self.n_groups
        self.n_groups_committed = len(groups)
        self._rows = np.arange(self._n)
        if not self.complete:
            starts = np.asarray(groups, dtype=np.int64) * self._row_group
            rows = (starts[:, None] + np.arange(self._row_group)).ravel()
            self._rows = rows[rows < self._n]

    @classmethod
    def in_memory(cls, plan: Plan, arrays: Mapping[str, np.ndarray]) -> Activations:
        """Activations that were never written: the same surface over arrays ``[layer, sublayer, token, …]``."""
        self = cls.__new__(cls)
        self.path = Path("(memory)")
        self.attrs = plan.described
        self._n, self._row_group = plan.n_rows, plan.row_group
        self.columns, self._table = tuple(plan.rows.columns), None
        self._hold({v.name: v for v in plan.variables}, dict(arrays), dict(plan.rows.columns))
        self.n_groups = self.n_groups_committed = plan.n_groups
        self.complete = True
        self._rows = np.arange(plan.n_rows)
        return self

    @property
    def _part(self) -> np.ndarray | None:
        """These rows of the store; None for all of it."""
        return None if len(self._rows) == self._n else self._rows

    def _hold(self, variables: dict[str, Variable], held: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        self._stored: dict[str, Variable] = variables
        self._variables = dict(variables)
        self._kept: dict[str, Narrowing] = {name: {} for name in variables}
        self._held, self._cache = held, columns
        self._arrays: dict[str, xr.DataArray] = {}
        self._wider: tuple[Activations, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> xr.DataArray:
        if name.startswith("_") or name not in self._variables:
            raise AttributeError(f"{type(self).__name__} has no variable {name!r}; it has {', '.join(self.variables)}.")
        return self.sel(name) if len(self) else self._array(self._variables[name], {}, self._rows)

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.sel(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._variables})

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the stored sites."""
        return tuple(self.__dict__.get("_variables", ()))

    @property
    def described(self) -> tuple[Variable, ...]:
        """Dims, labels and dtype of every stored site, as far as these activations hold it."""
        return tuple(self._variables.values())

    def cut(self, variable: str) -> list[str]:
        """Dims of a variable of whose numbers `where` has left some only (``head``, ``head_dim``, ``unit``, ``dim``)."""
        whole, sizes = self._stored[variable].sizes, self._variables[variable].sizes
        return [dim for dim, size in sizes.items() if size < whole[dim]]

    @property
    def selection(self) -> str:
        """The labels that these activations were narrowed to by `where`, in order, as JSON."""
        return str(self.attrs.get("selection", WHOLE))

    @property
    def tokens(self) -> pd.DataFrame:
        """The token table: one row per committed (prompt, position), with every label."""
        return pd.DataFrame({name: self.column(name) for name in self.columns})

    def sel(self, variable: str = "residual", **labels: Any) -> xr.DataArray:
        """The part of a variable that has these labels, lazily.

        Args:
            variable: the stored site.
            labels: array dims (``layer``, ``sublayer``, ``head``, ``unit``, ``dim``, …) and token labels (``emotion``,
                ``key``, ``position``, …) alike: one value, several, or for numbers a slice that includes its stop. One
                value drops an array dim; on ``token`` it filters. ``position`` also takes a policy name or a half-open
                span ``(start, stop)``.

        Returns:
            ``[layer, sublayer, token, …]`` with the token labels as coordinates on ``token``; nothing is read before
            ``.values``, ``.load()`` or arithmetic.

        Raises:
            EmotraceError: for an unknown variable, label or value, for cells that do not exist, or an empty selection.
        """
        if variable not in self._variables:
            raise unknown("variable", variable, self._variables, f"sel on {self.path}")
        v, labels = self._variables[variable], said(labels)
        for name in labels:
            if name not in v.dims and name not in self.columns:
                raise unknown("label", name, (*v.dims, *self.columns), f"sel({variable!r})")
        dims = {n: index_of(n, self._coords(v, n), w) for n, w in labels.items() if n in v.dims}
        self._refuse_absent(v, dims)
        rows = self._matching({n: w for n, w in labels.items() if n in self.columns})
        return self._array(v, dims, rows, labels)

    def where(self, **labels: Any) -> Activations:
        """The activations that have these labels, as activations: a view, nothing is read or copied.

        Args:
            labels: array dims and token labels alike: one value, several, or for numbers a slice that includes its stop;
                ``position`` also a policy name or a half-open span. A variable that lacks a dim stays whole; one that has it,
                but none of the values, is left out. No dim is dropped, and all stays in the order of the store.

        Returns:
            Activations with everything that these can do; ``attrs["selection"]`` says what they were narrowed to.

        Raises:
            EmotraceError: for a label or value that nothing has, or an empty selection.
        """
        labels, dims = said(labels), {d for v in self._variables.values() for d in v.dims}
        for name in labels:
            if name not in dims and name not in self.columns:
                raise unknown("label", name, (*sorted(dims), *self.columns), f"where on {self.path}")
        kept = kept_of(self._variables, self._coords, {n: w for n, w in labels.items() if n in dims})
        rows = self._matching({n: w for n, w in labels.items() if n in self.columns})
        view = copy.copy(self)
        view.attrs = {**self.attrs, "selection": chained(self.selection, labels)}
        view._variables = {name: narrowed(self._variables[name], kept[name]) for name in kept}
        view._kept = {name: within(self._kept[name], kept[name]) for name in kept}
        view._rows, view._wider = self._rows[rows], (self, rows)
        view._cache, view._arrays = {}, {}
        return view

    def dataset(self, *variables: str, chunks: Mapping[str, int] | None = None) -> xr.Dataset:
        """The named variables (default: all) as one lazy ``xarray.Dataset``.

        Args:
            variables: names of stored sites.
            chunks: of Dask arrays, by dim; ``{}`` for those of the store: a row group of one layer and sublayer. None for arrays
                that are lazy without Dask.

        Raises:
            EmotraceError: if their coordinates differ, since xarray would fill the gaps with NaN; for chunks without Dask.
        """
        found = merged({name: self.sel(name) for name in variables or self.variables})
        if chunks is not None:
            found = chunked(found, {"layer": 1, "sublayer": 1, "token": self._row_group, **chunks})
        return found.assign_attrs({**self.attrs, "source": str(self.path), "selection": self.selection})

    def to_dataframe(self, variable: str = "residual", max_rows: int = 20_000_000, **labels: Any) -> pd.DataFrame:
        """A selection as a long table: array dims, token labels, and the value in a column named after the variable.

        Raises:
            EmotraceError: as `sel`, and if the table would have more than ``max_rows`` rows.
        """
        return long_table(self.sel(variable, **labels), variable, max_rows)

    def cell(self, variable: str, **labels: Any) -> Cell:
        """One layer (and sublayer) of a variable, whose rows are read into arrays again and again, without their labels.

        Args:
            variable: the stored site.
            labels: one value for each of the variable's ``layer`` and ``sublayer``.

        Raises:
            EmotraceError: as `sel`.
        """
        v, stored, kept = self._variables[variable], self._stored[variable], self._kept[variable]
        self._refuse_absent(v, {d: index_of(d, self._coords(v, d), labels[d]) for d in v.cell_dims})
        at = tuple(list(stored.coords[d]).index(labels[d]) for d in v.cell_dims)
        rest = [np.asarray(kept.get(d, range(stored.sizes[d]))) for d in stored.rest_dims]
        whole = self._chunks(variable)
        if isinstance(whole, ChunkArray):
            return Cell(partial(whole.chunk, at), partial(whole.opened, at), stored, rest)
        return Cell(lambda _: whole[at], None, stored, rest)

    def places(self, rows: np.ndarray) -> list[ChunkRows]:
        """Where sorted rows of these activations lie, and which rows of a room they become; the same for every `cell`."""
        size = self._n if self._table is None else self._row_group
        return [ChunkRows(*place) for place in runs(self._rows[rows], size)]

    def _matching(self, wanted: Mapping[str, Any]) -> np.ndarray:
        """Rows of these activations that have these token labels."""
        if not len(self):
            raise EmotraceError(f"{self.path} has no committed rows yet ({self.n_groups} row groups planned).")
        if not wanted:
            return self._rows if self._part is None else np.arange(len(self))
        if self._table is not None and self._table.by_prompt:
            try:
                return self._table.matching(wanted, self._part)
            except EmotraceError:  # whether and how to refuse it is decided below, over the rows of all prompts
                pass
        return rows_of(self.column, self.columns, len(self), wanted)

    def _refuse_absent(self, v: Variable, dims: dict[str, int | list[int]]) -> None:
        for cell in v.absent:
            at = {d: list(v.coords[d]).index(c) for d, c in zip(v.cell_dims, cell, strict=True)}
            if dims and all(i in np.atleast_1d(dims.get(d, i)) for d, i in at.items()):
                place = ", ".join(f"{d}={c!r}" for d, c in zip(v.cell_dims, cell, strict=True))
                raise EmotraceError(f"{v.name} has no {place}: the model has no such site. {existing(v)}")

    def _coords(self, v: Variable, dim: str) -> list[Any]:
        if dim in v.coords:
            return list(v.coords[dim])
        return list(self._kept[v.name].get(dim, range(v.sizes[dim])))

    def _array(
        self, v: Variable, dims: dict[str, int | list[int]], rows: np.ndarray, labels: Mapping[str, Any] | None = None
    ) -> xr.DataArray:
        """The DataArray of these indices; ``rows`` count rows of these activations, ``labels`` say what was asked for."""
        index: dict[str, Any] = dict(dims)
        if len(rows) < len(self):
            index["token"] = as_slice(rows)
        part = self._whole(v).isel(index)
        numbered = {d: i for d, i in dims.items() if d not in part.coords and isinstance(i, int)}
        part = part.assign_coords(numbered) if numbered else part
        part = part.assign_attrs(selection=chained(self.selection, labels)) if labels else part
        return part.copy(deep=False, data=cached(part.variable))

    def _whole(self, v: Variable) -> xr.DataArray:
        """All rows of a variable; made once, since making coordinates takes longer than indexing them."""
        if v.name not in self._arrays:
            kept = self._kept[v.name]
            index: dict[str, Any] = {d: as_slice(np.array(at)) for d, at in kept.items()}
            if len(self._rows) < self._n:
                index["token"] = as_slice(self._rows)
            data = xr.Variable(v.full_dims, lazy(self._chunks(v.name))).isel(index)
            coords: dict[str, Any] = {}
            for dim in v.dims:
                if dim in v.coords or dim in COUNTED or dim in kept:
                    coords[dim] = (dim, np.array(self._coords(v, dim), dtype=object if dim == "sublayer" else np.int64))
            coords |= {name: ("token", self._token_coord(name)) for name in self.columns}
            origin = {k: self.attrs[k] for k in SOURCE_ATTRS if k in self.attrs and (k != "edits" or edited(self))}
            origin |= {"source": str(self.path), "selection": self.selection}
            attrs = {"variable": v.name, "source_dtype": v.source_dtype, **origin}
            self._arrays[v.name] = xr.DataArray(data, name=v.name, attrs=attrs).assign_coords(coords)
        return self._arrays[v.name]

    def _chunks(self, variable: str) -> ChunkArray | np.ndarray:
        """All of a variable, not narrowed."""
        if variable not in self._held:
            self._held[variable] = ChunkArray(
                self.path,
                self._stored[variable],
                self._n,
                self._row_group,
                self.attrs["emotrace_store"].get("inner_rows"),
            )
        return self._held[variable]

    def _token_coord(self, name: str) -> Any:
        if self._n <= EAGER_ROWS or self._table is None:
            return self.column(name)
        return lazy(ColumnArray(lambda k: self._column_at(name, k), len(self), self._table.dtype(name)))

    def column(self, name: str) -> np.ndarray:
        """One column of the token table, rows of these activations only; read once."""
        if name not in self._cache:
            if self._table is not None and (self._wider is None or self._table.by_prompt):
                self._cache[name] = self._table.take(name, self._part)
            elif self._wider is not None:
                wider, rows = self._wider
                self._cache[name] = wider.column(name)[rows]
        return self._cache[name]

    def _column_at(self, name: str, key: Any) -> np.ndarray:
        """Some values of a column; of a store with the labels of every prompt once, only these are made."""
        if self._table is None or not self._table.by_prompt or name in self._cache:
            return self.column(name)[key]
        rows = self._rows[key]
        return self._table.take(name, rows) if rows.ndim else self._table.take(name, rows[None])[0]

    def __repr__(self) -> str:
        from emotrace.store.show import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from emotrace.store.show import as_html

        return as_html(self)
