"""Controls of a circuit: other components for a payload, another payload for the components; tables and arrays alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.circuits.files import NUMBERS
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown
from emotrace.stats.ties import descending

Pick = Callable[[Any, str, int, np.ndarray], np.ndarray]
"""Label, kind, layer and the components that a circuit has there → as many components in their place."""


def randomly(payload: xr.Dataset, seed: int) -> Pick:
    """Components that are not the label's own; only where too few others exist, own ones too."""
    rng = np.random.default_rng(seed)

    def pick(label: Any, kind: str, layer: int, own: np.ndarray) -> np.ndarray:
        others = np.setdiff1d(np.arange(payload.sizes[COMPONENTS[kind].dim]), own)
        drawn = rng.choice(others, min(len(own), len(others)), replace=False)
        return np.sort(np.concatenate([drawn, rng.choice(own, len(own) - len(drawn), replace=False)]))

    return pick


def best_of_all(scores: Mapping[str, xr.DataArray], label: str) -> Pick:
    """The components with the highest mean score over labels: of every label the first of one ranking."""
    orders: dict[tuple[str, int], np.ndarray] = {}

    def pick(_: Any, kind: str, layer: int, own: np.ndarray) -> np.ndarray:
        if (kind, layer) not in orders:
            if kind not in scores:
                raise unknown("kind", kind, scores, "Circuit.shared(scores=…)")
            dim, table = COMPONENTS[kind].dim, scores[kind]
            if set(table.dims) != {label, "layer", dim} or layer not in table["layer"]:
                raise EmotraceError(
                    f"Circuit.shared: the scores of {kind}s have dims {table.dims} and layers "
                    f"{table['layer'].values.tolist() if 'layer' in table.dims else 'none'}; "
                    f"({label}, layer, {dim}) with layer {layer} are due."
                )
            mean = table.sel(layer=layer).mean(label)
            orders[kind, layer] = mean[dim].values[descending(mean.values)]
        return orders[kind, layer][: len(own)]

    return pick


def replaced(
    components: pd.DataFrame, payload: xr.Dataset, label: str, pick: Pick, matched: bool
) -> tuple[pd.DataFrame, xr.Dataset]:
    """As many other components of each label, kind and layer, and the payload that they get.

    Args:
        components: of a circuit.
        payload: of it; never changed.
        label: name of the label.
        pick: which.
        matched: scale the vectors of each label, kind and layer to the norm that the circuit's components have there.
    """
    rows, payload = [], payload.copy(deep=True)
    whole: Any = components
    for (value, kind, layer), part in whole.groupby([label, "kind", "layer"], sort=False):
        own = part["index"].to_numpy()
        chosen = pick(value, kind, layer, own)
        fields = {label: value, "kind": kind, "layer": layer, "score": np.nan}
        rows += [{**fields, "index": int(i), "rank": rank} for rank, i in enumerate(chosen)]
        if matched:
            at = {label: value, "layer": layer}
            vectors = payload[COMPONENTS[kind].site].loc[at]
            norms = [float(np.linalg.norm(vectors.values[i])) for i in (own, chosen)]
            if norms[1] > 0:
                payload[COMPONENTS[kind].site].loc[at] = vectors * np.float32(norms[0] / norms[1])
    return pd.DataFrame(rows, columns=pd.Index([label, "kind", *NUMBERS])), payload


def everything(payload: xr.Dataset, label: str, places: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """Every component of some kinds and layers, for every label."""
    parts = []
    for value in payload[label].values.tolist():
        for kind, layer in places:
            n = payload.sizes[COMPONENTS[kind].dim]
            fields = {label: value, "kind": kind, "layer": layer, "score": np.nan}
            parts.append(pd.DataFrame({**fields, "index": np.arange(n), "rank": np.arange(n)}))
    return pd.concat(parts, ignore_index=True)


def exchanged(payload: xr.Dataset, label: str, of: Mapping[Any, Any]) -> xr.Dataset:
    """The payload in which every label has another one's difference vectors.

    Raises:
        EmotraceError: for labels that are not those of the payload, or one that would keep its own.
    """
    labels = payload[label].values.tolist()
    for value in (*of, *of.values()):
        if value not in labels:
            raise unknown(label, value, labels, "Circuit.with_payload_of")
    lost = [value for value in labels if value not in of]
    if lost:
        raise EmotraceError(f"Circuit.with_payload_of: {label} {lost[0]!r} gets no payload; name one for each.")
    if own := [value for value in labels if of[value] == value]:
        raise EmotraceError(
            f"Circuit.with_payload_of: {label} {own[0]!r} would keep its own payload; name another one."
        )
    moved = payload.copy(deep=True)
    for site in (COMPONENTS[kind].site for kind in KINDS):
        if site in payload:
            moved[site] = payload[site].sel({label: [of[v] for v in labels]}).assign_coords({label: payload[label]})
    return moved
