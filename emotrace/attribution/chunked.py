"""Chunked: rows of stored activations that count, block by block, and what they must hold. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, provenance
from emotrace.directions.groups import accepted_attrs, codes, counting
from emotrace.directions.source import edited, pieces, provenance_of
from emotrace.labels import EmotraceError, unknown
from emotrace.store import Activations
from emotrace.store.cell import Cell, ChunkRows

RUN = 2 << 20
"""Bytes of float64 numbers that are worked on at a time: the stored ones, half of it, stay near a core."""
METHOD = "covectors"
"""``attrs["method"]`` of what `emotrace.attribution.covectors` makes."""


SOME = 48
"""Rows that are added up in float32. Equal numbers are off by at most 8e-7 then, and by more the more of them there are."""


class Piece(NamedTuple):
    """At most `SOME` rows of one label in a run.

    Attributes:
        label: its index.
        rows: which rows of the run: a slice where they are equally far apart, as in a set that asks for each label in turn.
        first: whether none of the label come before.
    """

    label: int
    rows: slice | np.ndarray
    first: bool


class RowRun(NamedTuple):
    """Rows of whole prompts that are read at once.

    Attributes:
        rows: indices into the activations.
        places: where they lie.
        code: of every row, the index of its label.
        weight: of every row, 1 / (rows of its prompt); None where every prompt has one.
        starts: first of the rows of each prompt.
        shares: ``[label, row]``: the weight of the rows that have the label, else 0.
        labels: those that occur.
        pieces: all rows, label by label.
    """

    rows: np.ndarray
    places: list[ChunkRows]
    code: np.ndarray
    weight: np.ndarray | None
    starts: np.ndarray
    shares: np.ndarray
    labels: np.ndarray
    pieces: list[Piece]


@dataclass(frozen=True, eq=False)
class CountedRows:
    """Rows of activations that count, and how: every prompt as the mean over its rows.

    Attributes:
        acts: whose rows.
        rows: indices into them.
        code: of every row, the index of its label.
        weight: of every row, 1 / (rows of its prompt).
        starts: first of the rows of each prompt.
        n: prompts of each label.
        accepted: which keys they have, of `emotrace.directions.groups.accepted_attrs`.
    """

    acts: Activations
    rows: np.ndarray
    code: np.ndarray
    weight: np.ndarray
    starts: np.ndarray
    n: np.ndarray
    accepted: Mapping[str, Any]
    _runs: dict[int, list[RowRun]] = field(default_factory=dict)
    _rooms: dict[str, np.ndarray] = field(default_factory=dict)

    def runs(self, width: int) -> list[RowRun]:
        """All rows in parts that depend on them and on the numbers of a row alone."""
        if width not in self._runs:
            self._runs[width] = [self._run(part) for part in pieces(len(self.rows), width, self.starts, RUN)]
        return self._runs[width]

    def room(self, name: str, length: int, cell: Cell) -> np.ndarray:
        """Where rows of a variable are read, layer after layer."""
        room = self._rooms.get(name)
        if room is None or len(room) < length or room.shape[1:] != (cell.width,) or room.dtype != cell.dtype:
            room = self._rooms[name] = np.empty((length, cell.width), cell.dtype)
        return room

    def _run(self, part: slice) -> RowRun:
        rows, code, weight = self.rows[part], self.code[part], self.weight[part]
        starts = self.starts[(self.starts >= part.start) & (self.starts < part.stop)] - part.start
        shares = np.where(code == np.arange(len(self.n))[:, None], weight, 0.0)
        pieces = [
            Piece(label, _spaced(of_label[at : at + SOME]), at == 0)
            for label in range(len(self.n))
            for of_label in [np.flatnonzero(code == label)]
            for at in range(0, len(of_label), SOME)
        ]
        return RowRun(
            rows, self.acts.places(rows), code, None if len(starts) == len(rows) else weight, starts, shares,
            np.unique(code), pieces,
        )  # fmt: skip


class Reader:
    """One layer of several variables, run by run."""

    def __init__(
        self, acts: Activations, variable: str, others: Sequence[str], layer: int, sublayer: str | None
    ) -> None:
        self.acts, self.layer = acts, layer
        self.cells = {name: acts.cell(name, layer=layer) for name in (variable, *others)}
        if sublayer is not None:
            self.cells[sublayer] = acts.cell("residual", layer=layer, sublayer=sublayer)

    def runs(self, rows: CountedRows) -> Iterator[tuple[RowRun, dict[str, np.ndarray]]]:
        """Runs, with what every variable holds there: float32 ``[row, number]``, good until the next."""
        runs = rows.runs(sum(cell.width for cell in self.cells.values()))
        longest = max(len(run.rows) for run in runs)
        rooms = {name: rows.room(name, longest, cell) for name, cell in self.cells.items()}
        for run in runs:
            read = {name: cell.read(run.places, rooms[name]) for name, cell in self.cells.items()}
            yield run, {name: x.astype(np.float32, copy=False) for name, x in read.items()}

    def finite(self, rows: CountedRows, *sums: np.ndarray) -> None:
        """Refuse sums over all rows that are not finite.

        Raises:
            EmotraceError: naming the first number that is not, or the layer where only the sums are too large.
        """
        if all(np.isfinite(one).all() for one in sums):
            return
        for run, read in self.runs(rows):
            for name, values in read.items():
                wrong = run.rows[~np.isfinite(values).all(1)]
                if len(wrong):
                    key = self.acts.column("key")[wrong[0]]
                    raise EmotraceError(f"{name} of layer {self.layer} of {key!r} is not finite.")
        raise EmotraceError(f"layer {self.layer} is too large to be added up in float32.")


def _spaced(index: np.ndarray) -> slice | np.ndarray:
    """The same indices as a slice where they are equally far apart: nothing is gathered then."""
    steps = np.diff(index)
    if not len(steps):
        return slice(int(index[0]), int(index[0]) + 1)
    return slice(int(index[0]), int(index[-1]) + 1, int(steps[0])) if (steps == steps[0]).all() else index


def counted(acts: Activations, covectors: xr.Dataset, accepted: Iterable[str] | None, place: str) -> CountedRows:
    """The rows that count; every one is checked to have a label of the covectors."""
    label = covectors.attrs["label"]
    if label not in acts.columns:
        raise unknown("label", label, acts.columns, f"{place}, of the activations")
    table = pd.DataFrame({"key": acts.column("key"), label: acts.column(label)})
    keep = counting(table, accepted)
    used = np.flatnonzero(keep)
    code = codes(table.iloc[used], label, covectors[label].values.tolist(), place)
    prompt = acts.column("prompt")[used]
    starts = np.flatnonzero(np.append(True, np.diff(prompt) != 0))
    weight = np.repeat(1.0, len(used)) / np.repeat(counts := np.diff(np.append(starts, len(used))), counts)
    n = np.bincount(code[starts], minlength=len(covectors[label]))
    return CountedRows(acts, used, code, weight, starts, n, accepted_attrs(table, keep))


def about(acts: Activations, covectors: xr.Dataset, rows: CountedRows) -> dict[str, Any]:
    """Where scores come from: the store, its selection and plan, the model, the directions."""
    return {
        "form": covectors.attrs["form"], "residual_scale": covectors.attrs["residual_scale"],
        "n_prompts": len(rows.starts), "n_rows": len(rows.rows), **rows.accepted, **provenance_of(acts),
        "directions_digest": covectors.attrs["directions_digest"],
    }  # fmt: skip


def check(acts: Activations, covectors: xr.Dataset, place: str) -> None:
    """Refuse what is no covectors, or of another model than the activations.

    Raises:
        EmotraceError: in words that say how to make them.
    """
    if covectors.attrs.get("method") != METHOD:
        raise EmotraceError(
            f"{place}(acts, covectors): these are no covectors; make them with attribution.covectors(model, directions)."
        )
    label = covectors.attrs["label"]
    for dim in (label, "layer"):
        if dim not in covectors.dims:
            raise EmotraceError(f"{place}: the covectors are of one {dim} without its dim; select it as a list.")
    if (n := covectors.sizes[label]) < 2:
        raise EmotraceError(f"{place}: a contrast needs two or more values of {label!r}; the covectors have {n}.")
    if not len(acts):
        raise EmotraceError(f"{place}: {acts.path} has no committed rows yet.")
    provenance.together(place, acts=acts, covectors=covectors)


def layers_of(covectors: xr.Dataset, site: str) -> list[int]:
    """Layers of a site that covectors hold, narrowed or not."""
    held = covectors["layer"].values.tolist()
    return [layer for layer in covectors.attrs.get(f"{site}_layers", ()) if layer in held]


def shared_layers(acts: Activations, covectors: xr.Dataset, site: str, layers: Any, place: str) -> list[int]:
    """Layers that both have: those asked for, or all."""
    check(acts, covectors, place)
    known = layers_of(covectors, site)
    if not known:
        raise EmotraceError(f"{place}: the covectors hold nothing of {site!r}; make them of a model that has it.")
    if layers is not None:
        asked = sorted(arguments.wholes(f"{place}(layers)", layers))
        for layer in asked:
            if layer not in known:
                raise unknown("layer of the covectors", layer, known, place)
        require(acts, site, asked, place)
        return asked
    require(acts, site, [], place)
    found = [layer for layer in known if has(acts, site, layer)]
    if not found:
        raise EmotraceError(
            f"{place}: no layer of {site!r} is both in {acts.path} and in the covectors, which have {known}."
        )
    return found


def has(acts: Activations, site: str, layer: int) -> bool:
    """Whether activations hold a site of a layer."""
    variable = next((v for v in acts.described if v.name == (site if site in acts.variables else "residual")), None)
    if variable is None or layer not in variable.coords.get("layer", ()):
        return False
    return variable.name != "residual" or (site in variable.coords["sublayer"] and (layer, site) not in variable.absent)


def require(acts: Activations, site: str, layers: Sequence[int], place: str) -> None:
    """Refuse activations without a site, or without some of its layers."""
    if site not in acts.variables:
        raise EmotraceError(f"{place}: {acts.path} holds {', '.join(acts.variables)}, not {site!r}; capture it.")
    for layer in layers:
        if not has(acts, site, layer):
            raise unknown(f"layer of {site!r}", layer, acts[site]["layer"].values.tolist(), f"{place}, of {acts.path}")


def require_whole(acts: Activations, variable: str, dims: Iterable[str], place: str) -> None:
    """Refuse activations of which `where` has left a part of what counts as a whole."""
    for dim in dims:
        if dim in acts.cut(variable):
            raise EmotraceError(f"{place}: {variable!r} is narrowed along {dim!r}, which is read whole.")


def refuse_edited(acts: Activations, place: str) -> None:
    """Refuse activations that were captured under edits."""
    if edited(acts):
        raise EmotraceError(
            f"{place}: {acts.path} was captured with edits={acts.attrs['edits']}; activations of the un-edited model are due."
        )


def require_norm(acts: Activations, name: str, layers: Sequence[int], sites: str, place: str) -> None:
    """Refuse activations without what a norm divides by."""
    if name not in acts.variables or not all(has(acts, name, layer) for layer in layers):
        raise EmotraceError(
            f"{place}: a norm stands behind the components of layer {layers[0]}, and {acts.path} does not hold what it divides "
            f"by ({name!r}); capture {sites} with components=True."
        )


def aligned(acts: Activations, covectors: xr.Dataset, site: str, dim: str, place: str) -> np.ndarray:
    """The components that activations hold, which the covectors must have."""
    require_whole(acts, site, ("head_dim",), place)
    names = acts.sel(site)[dim].values
    lost = np.setdiff1d(names, covectors[dim].values)
    if len(lost):
        raise unknown(dim, int(lost[0]), covectors[dim].values.tolist()[-1:], f"{place}, of the covectors (up to)")
    return names
