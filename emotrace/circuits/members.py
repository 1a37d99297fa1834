"""Members: the components of every label of a circuit and the vectors there, checked; counts, masks and overlap of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.circuits import files
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, Label, unknown


@dataclass(frozen=True, eq=False)
class Members:
    """The fields of a `Circuit`, checked, and what can be counted of them."""

    components: pd.DataFrame
    payload: xr.Dataset
    meta: dict[str, Any] = field(default_factory=dict)
    label: str = "emotion"

    def __post_init__(self) -> None:
        label = self.label
        table: Any = self.components  # pandas' types do not know a table's columns
        columns = [label, "kind", *files.NUMBERS]
        if sorted(table.columns) != sorted(columns):
            raise EmotraceError(f"a circuit's components have the columns {columns}, not {list(table.columns)}.")
        for dim in (label, "layer"):
            if dim not in self.payload.coords:
                raise unknown("dim", dim, self.payload.coords, "a circuit's payload")
            values = np.atleast_1d(self.payload[dim].values).tolist()
            if len(set(values)) < len(values):
                twice = next(v for v in values if values.count(v) > 1)
                raise EmotraceError(f"a circuit's payload has the {dim} {twice!r} twice.")
        for kind in KINDS:
            dims = (label, "layer", *COMPONENTS[kind].dims)
            found = self.payload.get(COMPONENTS[kind].site)
            if found is not None and (found.dims != dims or not np.isfinite(found.values).all()):
                raise EmotraceError(f"payload {COMPONENTS[kind].site!r} has dims {found.dims}, not finite {dims}.")
            index = found.coords.get(COMPONENTS[kind].dim) if found is not None else None
            if index is not None and index.values.tolist() != list(range(index.size)):
                raise EmotraceError(f"payload {COMPONENTS[kind].site!r} is not of every {kind} in order, from 0 on.")
            rows = table[table["kind"] == kind]
            if len(rows) and found is None:
                raise EmotraceError(f"the circuit has {len(rows)} {kind}s but no payload {COMPONENTS[kind].site!r}.")
            for name, choices in ((label, self.labels), ("layer", self.layers)) if len(rows) else ():
                for value in sorted(set(rows[name]) - set(choices)):
                    raise unknown(name, value, choices, "a circuit's components")
            if found is not None and not rows["index"].between(0, found.sizes[COMPONENTS[kind].dim] - 1).all():
                raise EmotraceError(
                    f"a {kind} of the circuit lies outside 0 to {found.sizes[COMPONENTS[kind].dim] - 1}."
                )
        for kind in sorted(set(table["kind"]) - set(KINDS)):
            raise unknown("kind", kind, KINDS, "a circuit's components")
        if table.duplicated([label, "kind", "layer", "index"]).any():
            raise EmotraceError(f"a component is twice in the circuit of one {label}.")
        order = {label: {v: i for i, v in enumerate(self.labels)}, "kind": {k: i for i, k in enumerate(KINDS)}}
        table = table[columns].sort_values(
            [label, "kind", "layer", "rank"],
            key=lambda c: c.map(order[c.name]) if c.name in order else c,
            kind="stable",
        )
        types = {"layer": np.int64, "index": np.int64, "rank": np.int64, "score": np.float64}
        object.__setattr__(self, "components", table.astype(types).reset_index(drop=True))

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def labels(self) -> list[Any]:
        """Values of the label, in order."""
        return self.payload[self.label].values.tolist()

    @property
    def layers(self) -> list[int]:
        """Layers of the payload."""
        return self.payload["layer"].values.tolist()

    @property
    def digest(self) -> str:
        """Hash of components and payload."""
        names = self.components[[self.label, "kind"]].to_numpy().tolist()
        sha = hashlib.sha256(json.dumps([self.label, names, self.layers], default=str).encode())
        for name in files.NUMBERS:
            sha.update(self.components[name].to_numpy().tobytes())
        for name in sorted(map(str, self.payload.data_vars)):
            sha.update(name.encode() + np.ascontiguousarray(self.payload[name].values).tobytes())
        return sha.hexdigest()[:16]

    def members(self, value: Label, kind: str, layer: int) -> list[int]:
        """Indices of one value's components of one kind in one layer, by rank."""
        rows = self._rows(kind, value)
        return rows[rows["layer"] == layer]["index"].tolist()

    def mask(self, kind: str) -> xr.DataArray:
        """Which components are in the circuit: ``[label, layer, unit]`` or ``[label, layer, head]`` bool."""
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS, "Circuit.mask")
        if COMPONENTS[kind].site not in self.payload:
            raise EmotraceError(f"the circuit has no {kind}s: its payload has no {COMPONENTS[kind].site!r}.")
        rows = self._rows(kind)
        like = self.payload[COMPONENTS[kind].site]
        like = like.isel(head_dim=0, drop=True) if kind == "head" else like
        out = np.zeros(like.shape, dtype=bool)
        of = pd.Index(self.labels).get_indexer(rows[self.label])
        out[of, pd.Index(self.layers).get_indexer(rows["layer"]), rows["index"]] = True
        return like.copy(data=out).rename("mask").drop_attrs()

    def counts(self) -> pd.DataFrame:
        """Number of components: one row per label and kind, one column per layer."""
        table = self.components
        found = pd.crosstab([table[self.label], table["kind"]], table["layer"])
        rows = pd.MultiIndex.from_product([self.labels, [k for k in KINDS if self._has(k)]], names=[self.label, "kind"])
        return found.reindex(index=rows, columns=pd.Index(self.layers, name="layer"), fill_value=0)

    def share(self) -> dict[str, float]:
        """Of each kind, the largest share of a layer's components that one label takes."""
        return {k: float(self.mask(k).mean(COMPONENTS[k].dim).max()) for k in KINDS if self._has(k)}

    def overlap(self) -> xr.Dataset:
        """Jaccard index of the components of every two labels: |A ∩ B| / |A ∪ B|, a component being (layer, index).

        Returns:
            ``jaccard[kind, label, label_other]``; ``mean[kind]`` and ``sd[kind]`` (ddof 1) over the pairs.
        """
        other, kinds = f"{self.label}_other", [k for k in KINDS if self._has(k)]
        table = np.full((len(kinds), len(self.labels), len(self.labels)), np.nan)
        means, spreads = np.full((2, len(kinds)), np.nan)
        for i, kind in enumerate(kinds):
            sets = self.mask(kind).values.reshape(len(self.labels), -1).astype(np.float64)
            both = sets @ sets.T
            sizes = both.diagonal()
            union = sizes[:, None] + sizes - both
            np.divide(both, union, out=table[i], where=union > 0)
            pairs = np.array([table[i, a, b] for a, b in combinations(range(len(sizes)), 2)])
            pairs = pairs[np.isfinite(pairs)]
            means[i] = pairs.mean() if len(pairs) else np.nan
            spreads[i] = pairs.std(ddof=1) if len(pairs) > 1 else np.nan
        return xr.Dataset(
            {"jaccard": (("kind", self.label, other), table), "mean": ("kind", means), "sd": ("kind", spreads)},
            coords={"kind": kinds, self.label: self.labels, other: self.labels},
            attrs={"method": "jaccard", "ddof": 1, "n_pairs": len(self.labels) * (len(self.labels) - 1) // 2},
        )

    # -- helpers ------------------------------------------------------------------------------------------------

    def _has(self, kind: str) -> bool:
        return len(self._rows(kind)) > 0

    def _rows(self, kind: str, value: Label | None = None) -> Any:
        """Components of one kind, of all labels or of one."""
        table: Any = self.components
        if value is not None and value not in self.labels:
            raise unknown(self.label, value, self.labels, "Circuit")
        return table[(table["kind"] == kind) & (True if value is None else table[self.label] == value)]
