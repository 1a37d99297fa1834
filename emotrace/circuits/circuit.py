"""Circuit: the neurons and heads that write an emotion, with what to add there; from it edits, controls, tables, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import provenance
from emotrace.circuits import files, show
from emotrace.edits import Ablate, Add, Edit
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, Label, Positions, unknown
from emotrace.sites import LanguageModel


@dataclass(frozen=True, eq=False)
class Circuit:
    """Components of every label, and the vectors that are added at them.

    Attributes:
        components: one row per component: the label (a column of that name), ``kind`` (``neuron`` or ``head``), ``layer``,
            ``index`` (unit or query head), ``score`` (what it was ranked by; NaN where it was drawn at random) and
            ``rank`` within its label, kind and layer, from 0. Positive score: removing the component lowers the
            projection on the label's direction.
        payload: whole difference vectors ``neuron[label, layer, unit]`` and ``z[label, layer, head, head_dim]``; where they
            are known also the means ``neuron_mean[layer, unit]`` and ``z_mean[layer, head, head_dim]``.
        meta: what it came from: model, digests of directions and prompts, ranking, plan, n, seed; ``warnings``.
        label: name of the label that is contrasted.

    Raises:
        EmotraceError: for columns, kinds, labels or places that do not fit together.
    """

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
        for kind in KINDS:
            dims = (label, "layer", *COMPONENTS[kind].dims)
            found = self.payload.get(COMPONENTS[kind].site)
            if found is not None and (found.dims != dims or not np.isfinite(found.values).all()):
                raise EmotraceError(f"payload {COMPONENTS[kind].site!r} has dims {found.dims}, not finite {dims}.")
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

    def members(self, label: Label, kind: str, layer: int) -> list[int]:
        """Indices of one label's components of one kind in one layer, by rank."""
        rows = self._rows(kind, label)
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

    def check(self, model: LanguageModel) -> None:
        """Refuse another model than the one it was found in, or one that lacks the circuit's places.

        Raises:
            EmotraceError: for another model (see `emotrace.adopt`), a site, layer, unit or head that the model does not have, or
                heads of another width.
        """
        provenance.check(self, model.sites, "the circuit")
        for kind in KINDS:
            rows, site = self._rows(kind), COMPONENTS[kind].site
            for layer in sorted(set(rows["layer"])):
                model.sites.address(site, layer)
            if len(rows):
                mine = {d: self.payload.sizes[d] for d in COMPONENTS[kind].dims}
                theirs = model.sites.size(site, sorted(set(rows["layer"])))
                if mine != theirs:
                    raise EmotraceError(f"the circuit was made for {site!r} of size {mine}; this model has {theirs}.")

    # -- what it does -------------------------------------------------------------------------------------------

    def edits(
        self,
        strength: float | Mapping[str, float] = 1.0,
        neuron_positions: Positions = "steer",
        head_positions: Positions = "steer",
        label: str | None = None,
        *,
        by_label: Mapping[Any, float] | None = None,
    ) -> list[Edit]:
        """The circuit as edits: λ·(difference vector, zero outside the circuit) added at ``neuron`` and at ``z``.

        One edit per site; each prompt gets the vector of its own label. The original adds at heads in the whole prompt
        (``head_positions="all"``), at neurons from the last prompt token on.

        Args:
            strength: λ, or λ by kind (``{"neuron": 1.0, "head": 0.5}``; a kind that is not named is left out).
            neuron_positions: policy or span.
            head_positions: policy or span.
            label: label of the prompts that says which vector they get; None for the circuit's own.
            by_label: factors of single labels, 1 for the others.

        Raises:
            EmotraceError: for a kind or label that the circuit does not have.
        """
        by_kind = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(KINDS, strength)
        for kind in by_kind:
            if kind not in KINDS:
                raise unknown("kind", kind, KINDS, "Circuit.edits(strength=…)")
        factors = xr.DataArray(np.ones(len(self.labels), dtype=np.float32), {self.label: self.labels})
        for value, factor in (by_label or {}).items():
            if value not in self.labels:
                raise unknown(self.label, value, self.labels, "Circuit.edits(by_label=…)")
            factors.loc[{self.label: value}] = factor
        positions = {"neuron": neuron_positions, "head": head_positions}
        found: list[Edit] = []
        for kind, times in by_kind.items():
            layers = sorted(set(self._rows(kind)["layer"].tolist()))
            if not layers:
                continue
            vector = (
                (self.payload[COMPONENTS[kind].site] * factors).where(self.mask(kind), np.float32(0)).sel(layer=layers)
            )
            vector = vector.rename({self.label: label} if label not in (None, self.label) else {})
            found.append(Add(COMPONENTS[kind].site, layers=layers, positions=positions[kind], vector=vector, strength=times,
                             origin=provenance.of(self)))  # fmt: skip
        if not found:
            raise EmotraceError(f"the circuit has no {' or '.join(by_kind) or 'kind'} to edit.")
        return found

    def ablations(
        self, label: Label, how: Literal["zero", "mean"] = "zero", positions: Positions | None = None
    ) -> list[Edit]:
        """One label's components taken away: 0, or the mean over all labels, in their place.

        Args:
            label: whose components.
            how: ``zero`` or ``mean``.
            positions: policy or span; None is ``steer`` for ``zero`` and ``last`` for ``mean``, because the mean is that of
                the last prompt token: held at every generated token it breaks the text, whatever the components do.

        Returns:
            One edit per site and layer.

        Raises:
            EmotraceError: for an unknown label, a label without components, or means that the circuit does not know.
        """
        if how not in ("zero", "mean"):
            raise unknown("ablation", how, ("zero", "mean"), "Circuit.ablations(how=…)")
        if positions is None:
            positions = "steer" if how == "zero" else "last"
        found: list[Edit] = []
        for kind in KINDS:
            rows, site = self._rows(kind, label), COMPONENTS[kind].site
            if how == "mean" and len(rows) and f"{site}_mean" not in self.payload:
                raise EmotraceError(f"the circuit's payload has no {site}_mean: ablate with how='zero'.")
            for layer, part in rows.groupby("layer"):
                which = COMPONENTS[kind].picked(part["index"].tolist())
                vector = None if how == "zero" else self.payload[f"{site}_mean"].sel(layer=layer)
                found.append(Ablate(site, layers=layer, positions=positions, vector=vector, **which,
                                    origin=provenance.of(self)))  # fmt: skip
        if not found:
            raise EmotraceError(f"the circuit of {self.label} {label!r} has no components.")
        return found

    def random(self, seed: int, matched: bool = False) -> Circuit:
        """A control: as many components of each label, kind and layer, drawn from those that are not the label's own.

        Only where too few others exist are own ones drawn too. The vectors are the difference vectors at the components
        drawn; with ``matched`` scaled, for each label, kind and layer, to the norm that the circuit's have.
        """
        rng = np.random.default_rng(seed)
        rows, payload = [], self.payload.copy(deep=True)
        whole: Any = self.components
        for (label, kind, layer), part in whole.groupby([self.label, "kind", "layer"], sort=False):
            own, n = part["index"].to_numpy(), len(part)
            others = np.setdiff1d(np.arange(self.payload.sizes[COMPONENTS[kind].dim]), own)
            drawn = rng.choice(others, min(n, len(others)), replace=False)
            drawn = np.sort(np.concatenate([drawn, rng.choice(own, n - len(drawn), replace=False)]))
            values = {self.label: label, "kind": kind, "layer": layer, "score": np.nan}
            rows += [{**values, "index": int(i), "rank": rank} for rank, i in enumerate(drawn)]
            if matched:
                at = {self.label: label, "layer": layer}
                vectors = payload[COMPONENTS[kind].site].loc[at]
                norms = [float(np.linalg.norm(vectors.values[i])) for i in (own, drawn)]
                if norms[1] > 0:
                    payload[COMPONENTS[kind].site].loc[at] = vectors * np.float32(norms[0] / norms[1])
        meta = {**self.meta, "method": "random", "seed": int(seed), "matched": matched, "control_of": self.digest}
        columns = [self.label, "kind", *files.NUMBERS]
        return replace(self, components=pd.DataFrame(rows, columns=columns), payload=payload, meta=meta)

    # -- files and show -----------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return show.text(self)

    def __repr__(self) -> str:
        return f"<{show.summary(self)}>"

    def _repr_html_(self) -> str:
        return show.html(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``circuit.safetensors`` and ``circuit.json`` into a folder; `load` gives the circuit back bit by bit."""
        return files.save(self.label, self.components, self.payload, self.meta, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """The circuit that `save` wrote.

        Raises:
            EmotraceError: for a missing or damaged file, or one that holds something else.
        """
        label, components, payload, meta = files.load(folder)
        return cls(components, payload, meta, label)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _has(self, kind: str) -> bool:
        return len(self._rows(kind)) > 0

    def _rows(self, kind: str, label: Label | None = None) -> Any:
        """Components of one kind, of all labels or of one."""
        table: Any = self.components
        if label is not None and label not in self.labels:
            raise unknown(self.label, label, self.labels, "Circuit")
        return table[(table["kind"] == kind) & (True if label is None else table[self.label] == label)]
