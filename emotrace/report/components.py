"""Components: the numbers of a circuit as data frames for CSV files, and what the page shows of single components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.labels import COUNTED
from emotrace.report import style
from emotrace.report.circuits import scores
from emotrace.report.overlap import by_chance
from emotrace.report.parts import CircuitParts, label_of

if TYPE_CHECKING:
    from emotrace.circuits import Circuit

KEPT: Final = 20
"""Neurons per emotion and layer in the CSV file, best first; all heads are in theirs."""
LAYERS_SHOWN: Final = 12
TOKENS_SHOWN: Final = 6
NEURONS_SHOWN: Final = 3
PROMPTS_SHOWN: Final = 3
LONGEST: Final = 220


def frames(parts: CircuitParts) -> dict[str, pd.DataFrame]:
    """``circuit, heads, neurons, influence, curves, overlap, top_tokens, top_prompts, reply_tokens``, unrounded or empty."""
    empty = pd.DataFrame()
    return {
        "circuit": parts.circuit.components if parts.circuit is not None else empty,
        "heads": contributions(parts.heads, parts) if parts.heads is not None else empty,
        "neurons": contributions(parts.neurons, parts, KEPT) if parts.neurons is not None else empty,
        "influence": influence(parts.influence) if parts.influence is not None else empty,
        "curves": curves(parts.curves),
        "overlap": overlap(parts.circuit) if parts.circuit is not None else empty,
        "top_tokens": parts.tokens if parts.tokens is not None else empty,
        "top_prompts": parts.top_prompts if parts.top_prompts is not None else empty,
        "reply_tokens": parts.reply_tokens if parts.reply_tokens is not None else empty,
    }


def contributions(data: xr.Dataset, parts: CircuitParts, kept: int = 0) -> pd.DataFrame:
    """One row per label, layer and component, best first, with every variable of that shape; the best ``kept`` (0: all)."""
    score = scores(data, parts)
    label, feature = label_of(score), next(d for d in COUNTED if d in score.dims)
    order = (label, "layer", feature)
    score = score.transpose(*order)
    best = np.argsort(-np.nan_to_num(score.values), axis=-1, kind="stable")[..., : kept or None]
    picked = xr.DataArray(best, dims=(label, "layer", "rank"))
    alike = data[[v for v in data.data_vars if set(data[v].dims) == set(order)]].transpose(*order)
    if feature not in alike.coords:
        alike = alike.assign_coords({feature: np.arange(alike.sizes[feature])})
    table = alike.isel({feature: picked}).to_dataframe().reset_index()
    first = [label, "layer", "rank", feature]
    return table.reindex(columns=[*first, *[c for c in table if c not in first]])


def influence(found: xr.Dataset) -> pd.DataFrame:
    """One row per label, layer and sublayer: influence, std, sigma, n, and one column per finite dose."""
    label = label_of(found["influence"])
    plain = found[[v for v in ("influence", "std", "sigma", "n") if v in found]]
    table = plain.drop_vars([c for c in plain.coords if c not in plain.dims]).to_dataframe().reset_index()
    if "finite" in found:
        for dose in found["dose"].values:
            one = found["finite"].sel(dose=dose, drop=True)
            one = one.drop_vars([c for c in one.coords if c not in one.dims])
            table = table.merge(one.to_dataframe(f"finite_{dose:g}").reset_index())
    first = [label, "layer", "sublayer"]
    return table.reindex(columns=[*first, *[c for c in table if c not in first]])


def curves(found: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """One row per curve, label, set and k; random sets have a row per draw besides, with ``draw`` filled."""
    out = []
    for name, curve in found.items():
        label = label_of(curve["delta"])
        bare = curve.drop_vars([c for c in curve.coords if c not in (label, "which", "k", "draw")])
        whole = bare[[v for v in ("delta", "ci_low", "ci_high", "size", "n") if v in bare]].to_dataframe().reset_index()
        out.append(whole.assign(curve=name))
        if "random" in bare and bare.sizes.get("draw", 0):
            out.append(bare["random"].to_dataframe("delta").reset_index().assign(curve=name, which="random"))
    table = pd.concat(out, ignore_index=True) if out else pd.DataFrame()
    table = table.astype({c: "Int64" for c in ("size", "n", "draw") if c in table})
    first = [c for c in ("curve", *(label_of(c["delta"]) for c in found.values()), "which", "k", "draw") if c in table]
    first = list(dict.fromkeys(first))
    return table.reindex(columns=[*first, *[c for c in table if c not in first]])


def overlap(circuit: Circuit) -> pd.DataFrame:
    """One row per kind and pair of labels, and one per kind (label ``all``) with mean, sd and what chance would give."""
    found, label = circuit.overlap(), circuit.label
    pairs = found["jaccard"].to_dataframe().reset_index()
    kinds = [str(k) for k in found["kind"].values]
    pooled = [
        {"kind": k, label: "all", f"{label}_other": "all", "jaccard": float(found["mean"].sel(kind=k)),
         "sd": float(found["sd"].sel(kind=k)), "by_chance": by_chance(circuit, k)}
        for k in kinds
    ]  # fmt: skip
    return pd.concat([pairs, pd.DataFrame(pooled)], ignore_index=True)


def token_rows(tokens: pd.DataFrame | None) -> dict[str, Any]:
    """The top tokens of each direction: a row per layer, a cell per emotion; twelve layers at most, evenly spread.

    Of several sublayers, ``resid_post`` is shown.
    """
    if tokens is None or not len(tokens):
        return {}
    places = [str(s) for s in tokens["sublayer"].unique()] if "sublayer" in tokens else []
    place = "resid_post" if "resid_post" in places else next(iter(places), "")
    cells: dict[tuple[int, str], list[str]] = {}
    for row in sorted(tokens.to_dict("records"), key=lambda r: r["rank"]):
        cell = cells.setdefault((int(row["layer"]), str(row["emotion"])), [])
        if len(cell) < TOKENS_SHOWN and str(row.get("sublayer", "")) == place:
            cell.append(clipped(style.visible(row["token"]), 24))
    emotions = style.emotions_of(dict.fromkeys(e for _, e in cells))
    layers = sorted({layer for layer, _ in cells})
    shown = sorted({layers[round(i)] for i in np.linspace(0, len(layers) - 1, min(LAYERS_SHOWN, len(layers)))})
    rows = [{"layer": i, "cells": [cells.get((i, e), []) for e in emotions]} for i in shown]
    return {"emotions": emotions, "shown": len(shown), "layers": len(layers), "rows": rows}


def prompt_rows(found: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The prompts that activate the top neurons most, as `_units` shows them."""
    return _units(found, _prompt)


def token_lines(found: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The reply tokens at which the top neurons are highest, amid their neighbours, as `_units` shows them."""
    return _units(found, _token)


def _units(found: pd.DataFrame | None, line: Callable[[Mapping[Any, Any]], dict[str, str]]) -> list[dict[str, Any]]:
    """Three neurons per emotion and three prompts or tokens each, in the given order.

    ``writes`` says whether a neuron writes ``for`` or ``against`` its emotion (the sign of ``beta``), where that is known.
    """
    units: dict[tuple[str, int, int], list[dict[Any, Any]]] = {}
    for row in [] if found is None else found.to_dict("records"):
        units.setdefault((str(row["emotion"]), int(row["layer"]), int(row["unit"])), []).append(row)
    out: list[dict[str, Any]] = []
    for (emotion, layer, unit), rows in units.items():
        if sum(u["emotion"] == emotion for u in out) < NEURONS_SHOWN:
            best = sorted(rows, key=lambda r: r["rank"])[:PROMPTS_SHOWN]
            weight = best[0].get("beta")
            writes = "" if weight is None or weight != weight else "for" if weight > 0 else "against"
            shown = {"emotion": emotion, "layer": layer, "unit": unit, "writes": writes}
            out.append({**shown, "prompts": [line(r) for r in best]})
    return out


def _prompt(row: Mapping[Any, Any]) -> dict[str, str]:
    text = clipped(" ".join(str(row["text"]).split()), LONGEST)
    return {"key": str(row.get("key", "")), "text": text, "activation": f"{row['activation']:.3g}"}


def _token(row: Mapping[Any, Any]) -> dict[str, str]:
    text = str(row["token_text"])
    token = text if text.strip() else style.visible(text)
    beside = {side: " ".join(str(row[side]).split("\n")) for side in ("before", "after")}
    place = {"key": str(row.get("key", "")), "at": str(int(row["position_from_end"]) + 1)}
    return {**beside, **place, "token": token, "activation": f"{row['activation']:.3g}"}


def clipped(text: str, longest: int) -> str:
    """A text, cut where it is too long."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
