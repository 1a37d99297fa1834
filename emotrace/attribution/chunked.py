"""Chunked: rows of stored activations that count, block by block, and what they must hold. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, provenance
from emotrace.directions.groups import accepted_attrs, codes, counting
from emotrace.directions.source import Source, pieces, provenance_of
from emotrace.labels import EmotraceError, unknown
from emotrace.store import Activations

CACHE = 1 << 20
"""Bytes of the float64 numbers that are worked on at a time: they stay in a core's cache."""
METHOD = "covectors"
"""``attrs["method"]`` of what `emotrace.attribution.covectors` makes."""


class Rows(NamedTuple):
    """Rows of activations that count, and how: every prompt as the mean over its rows.

    Attributes:
        rows: indices into the activations.
        code: of every row, the index of its label.
        weight: of every row, 1 / (rows of its prompt).
        starts: first of the rows of each prompt.
        n: prompts of each label.
        own: ``[label, row]``, the weight where a row has the label.
        accepted: which keys they have, of `emotrace.directions.groups.accepted_attrs`.
    """

    rows: np.ndarray
    code: np.ndarray
    weight: np.ndarray
    starts: np.ndarray
    n: np.ndarray
    own: np.ndarray
    accepted: Mapping[str, Any]


class Reader:
    """One layer of several variables, block by block."""

    def __init__(
        self, acts: Activations, variable: str, others: Sequence[str], layer: int, sublayer: str | None
    ) -> None:
        names = [variable, *others]
        arrays = {name: acts.sel(name, layer=layer) for name in names}
        if sublayer is not None:
            arrays[sublayer] = acts.sel("residual", layer=layer, sublayer=sublayer)
        table = pd.DataFrame({"key": acts.column("key")})
        every = np.arange(len(acts))
        self.sources = {name: Source(array, table, {}, every) for name, array in arrays.items()}
        self.width = sum(source.shape[2] for source in self.sources.values())

    def blocks(self, rows: Rows) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Parts of the rows, whole prompts each, with what every variable holds there: float64 ``[row, number]``."""
        for part in pieces(len(rows.rows), self.width, rows.starts):
            at = rows.rows[part]
            held = {name: source.raw(0, at)[0] for name, source in self.sources.items()}
            starts = rows.starts[(rows.starts >= part.start) & (rows.starts < part.stop)] - part.start
            for i in pieces(len(at), self.width, starts, CACHE):
                values = {name: self.sources[name].exact(array[i], 0, at[i]) for name, array in held.items()}
                yield slice(part.start + i.start, part.start + i.stop), values


def counted(acts: Activations, covectors: xr.Dataset, accepted: Iterable[str] | None, place: str) -> Rows:
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
    own = np.where(np.arange(len(n))[:, None] == code[None, :], weight, 0.0)
    return Rows(used, code, weight, starts, n, own, accepted_attrs(table, keep))


def about(acts: Activations, covectors: xr.Dataset, rows: Rows) -> dict[str, Any]:
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
    if not len(acts):
        raise EmotraceError(f"{place}: {acts.path} has no committed rows yet.")
    provenance.together(place, acts=acts, covectors=covectors)


def shared_layers(acts: Activations, covectors: xr.Dataset, site: str, layers: Any, place: str) -> list[int]:
    """Layers that both have: those asked for, or all."""
    check(acts, covectors, place)
    known = covectors.attrs.get(f"{site}_layers", [])
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


def require_norm(acts: Activations, name: str, layers: Sequence[int], sites: str, place: str) -> None:
    """Refuse activations without what a norm divides by."""
    if name not in acts.variables or not all(has(acts, name, layer) for layer in layers):
        raise EmotraceError(
            f"{place}: a norm stands behind the components of layer {layers[0]}, and {acts.path} does not hold what it divides "
            f"by ({name!r}); capture {sites} with components=True."
        )


def aligned(acts: Activations, covectors: xr.Dataset, site: str, dim: str, place: str) -> np.ndarray:
    """The components that activations hold, which the covectors must have."""
    array = acts.sel(site)
    for name in (d for d in ("head_dim",) if d in array.dims):
        if array.sizes[name] != covectors.sizes[name]:
            raise EmotraceError(f"{place}: {site!r} is narrowed along {name!r}; a head is taken whole.")
    names = array[dim].values
    lost = np.setdiff1d(names, covectors[dim].values)
    if len(lost):
        raise unknown(dim, int(lost[0]), covectors[dim].values.tolist()[-1:], f"{place}, of the covectors (up to)")
    return names
