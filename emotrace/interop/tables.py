"""Tables: the published CSVs of heads, neurons and sublayers, and the circuit JSON, as labelled arrays and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.interop.files import load_json, write
from emotrace.interop.layout import OUTPUT, SOURCE, Paths, emotion_in, files_of, from_zero, ordered
from emotrace.labels import EMOTIONS, EmotraceError, emotion, filenames, unknown
from emotrace.signatures import typed
from emotrace.texts import as_bytes

LISTED: Final = {"neuron": ("mlp", "neurons"), "head": ("attention", "heads")}
"""Our kind of a component → its part and list in their circuit JSON."""
SIGN: Final = "positive = the component raises the projection on the emotion's direction"


@typed
def read_heads(path: Paths) -> xr.Dataset:
    """``head_importance_{emotion}.csv``, with or without the column ``emotion``.

    Returns:
        The layout of `emotrace.attribution.heads`: ``mean`` and ``std`` ``[emotion, layer, head]`` (zero ablation of one
        head, same layer, read at the *normed* input of the MLP; ddof 0), ``baseline[emotion, layer]``, ``n[emotion]``.

    Raises:
        EmotraceError: for missing columns, a cell that is missing or given twice, or figures that should be one
            per layer or emotion and are not.
    """
    columns = ["layer", "head", "mean_importance", "std_importance", "samples", "baseline_mean"]
    table = _emotions(path, "head_importance_*.csv", columns)
    grid = _grid(table, ("emotion", "layer", "head"), path, columns[2:])
    out = xr.Dataset(
        {
            "mean": grid["mean_importance"],
            "std": grid["std_importance"],
            "baseline": _constant(grid["baseline_mean"], "head", path),
            "n": _constant(grid["samples"], ("layer", "head"), path).astype(np.int64),
        }
    )
    return out.assign_attrs(
        method="zero ablation of one head, same layer", readout="normed", readout_site="mlp input", sign=SIGN, ddof=0,
        label="emotion", source=SOURCE,
    )  # fmt: skip


@typed
def write_heads(heads: xr.Dataset, folder: str | Path) -> list[Path]:
    """Head contributions as ``head_importance_{emotion}.csv``, one row per layer and head, in the authors' columns.

    Args:
        heads: ``mean``, ``std`` ``[emotion, layer, head]``, ``baseline[emotion, layer]``, ``n[emotion]``.
        folder: created if absent.

    Raises:
        EmotraceError: for a missing variable or layers that do not count from 0.
    """
    columns = {"mean_importance": "mean", "std_importance": "std", "samples": "n", "baseline_mean": "baseline"}
    return _write(heads, folder, "head", columns, "head_importance_{}.csv")


@typed
def read_neurons(path: Paths) -> xr.Dataset:
    """``contrib_mean_{emotion}.csv``: analytic contributions of MLP neurons.

    Returns:
        The layout of `emotrace.attribution.neurons`, ``[emotion, layer, unit]``: ``mean``, ``positive`` = mean max(c, 0),
        ``negative`` = mean min(c, 0) (their ``C_neg`` with its sign turned), ``activation``, ``beta``.

    Raises:
        EmotraceError: as `read_heads`; also where mean ≠ positive + negative.
    """
    columns = ["layer", "neuron", "C_mean", "C_pos", "C_neg", "beta", "H_mean"]
    table = _emotions(path, "contrib_mean_*.csv", columns).rename(columns={"neuron": "unit"})
    grid = _grid(table, ("emotion", "layer", "unit"), path, columns[2:])
    out = xr.Dataset(
        {
            "mean": grid["C_mean"],
            "positive": grid["C_pos"],
            "negative": -grid["C_neg"],
            "activation": grid["H_mean"],
            "beta": grid["beta"],
        }
    )
    gap = np.abs((out["positive"] + out["negative"] - out["mean"]).values)
    if (gap > 1e-4 * (out["positive"] - out["negative"]).values + 1e-7).any():
        raise EmotraceError(f"{path}: C_mean is not C_pos − C_neg; the columns belong to different runs.")
    return out.assign_attrs(method="activation × beta", sign=SIGN, label="emotion", source=SOURCE)


@typed
def write_neurons(neurons: xr.Dataset, folder: str | Path) -> list[Path]:
    """Neuron contributions as ``contrib_mean_{emotion}.csv`` (``C_neg`` = −``negative``), in the authors' columns.

    Raises:
        EmotraceError: for a missing variable or layers that do not count from 0.
    """
    columns = {"C_mean": "mean", "C_pos": "positive", "C_neg": "negative", "beta": "beta", "H_mean": "activation"}
    turned = neurons.assign(negative=-neurons["negative"]) if "negative" in neurons else neurons
    return _write(turned.rename(unit="neuron"), folder, "neuron", columns, "contrib_mean_{}.csv")


@typed
def read_importance(path: Paths) -> xr.Dataset:
    """Sublayer importance: ``importance_*alpha*.csv`` (per dose), or the 336-row table of means over doses.

    Returns:
        Dims ``(emotion, layer, sublayer)`` with the sublayers ``attn_out`` and ``mlp_out``, where they inject:
        ``finite[dose, …]`` = Δs / (dose·σ), ``influence`` = its mean over the doses (or the table's), ``anchor`` (read at
        layers 21–25, where it was taken), ``sigma[layer, sublayer]``, ``base[dose, emotion]``, ``n[emotion]``; of the
        table of means ``influence`` and ``share`` (negatives kept,
        sum 1 within an emotion). The read-out is the final-normed last state.

    Raises:
        EmotraceError: as `read_heads`.
    """
    files = files_of(path, "importance_all_alphas.csv", "importance_all_alpha[0-9].*.csv", "importance_*_alpha*.csv")
    table = pd.concat([_csv(f, ["emotion", "kind", "layer", "I_final"]) for f in files], ignore_index=True)
    for name in table["kind"].unique():
        if name not in OUTPUT:
            raise unknown("kind", name, OUTPUT, str(path))
    table["sublayer"] = [OUTPUT[kind] for kind in table["kind"]]
    attrs = {"method": "finite dose along the local direction", "readout": "final_norm", "sign": SIGN, "source": SOURCE}
    dims = ("emotion", "layer", "sublayer")
    if "alpha" not in table:
        grid = _grid(
            table.rename(columns={"I_final": "influence", "I_final_normalized": "share"}), dims, path, ["influence"]
        )
        return grid[[v for v in ("influence", "share") if v in grid]].assign_attrs(attrs, influence="mean over doses")
    table = table.drop(columns="dose", errors="ignore").rename(columns={"alpha": "dose"})  # ours counts in units of σ
    grid = _grid(table, ("dose", *dims), path, ["I_final"])
    out = xr.Dataset({"finite": grid["I_final"], "influence": grid["I_final"].mean("dose")})
    if "sigma" in grid:
        out["sigma"] = _constant(grid["sigma"], ("dose", "emotion"), path)
    if "I_anchor" in grid:
        out["anchor"] = grid["I_anchor"]
    if "s_base_final" in grid:
        out["base"] = _constant(grid["s_base_final"], ("layer", "sublayer"), path)
    if "n_samples" in grid:
        out["n"] = _constant(grid["n_samples"], ("dose", "layer", "sublayer"), path).astype(np.int64)
    return out.assign_attrs(attrs, influence="mean over doses")


@typed
def read_circuit(path: Paths) -> pd.DataFrame:
    """``global_circuit/{emotion}.json``: the components of each emotion's circuit.

    Returns:
        One row per component: ``emotion, kind`` (neuron or head), ``layer, index, rank`` (0-based place in its layer's list,
        strongest first) and ``score``, which the files do not hold (NaN): the components of a
        `emotrace.circuits.Circuit`, whose payload `read_differences` reads. ``.attrs["emotions"]`` holds what else the
        files say (budget, minimum, cap …), by emotion.

    Raises:
        EmotraceError: for a file without its keys, a count ``k`` that is not the list's length, or a repeated index.
    """
    rows, about = [], {}
    for file in files_of(path, "*.json"):
        content = load_json(file)
        if "emotion" not in content or not isinstance(content.get("layers"), Sequence):
            raise EmotraceError(
                f"{file} is no circuit: it needs 'emotion' and 'layers' (it has: {', '.join(content)})."
            )
        name = emotion(content["emotion"], EMOTIONS, str(file))
        if name in about:
            raise EmotraceError(f"{file}: a second circuit of {name!r}.")
        about[name] = {k: v for k, v in content.items() if k not in ("emotion", "layers")}
        for entry in content["layers"]:
            for kind, (part, listed) in LISTED.items():
                held = entry.get(part, {}) if isinstance(entry, Mapping) else {}
                found, layer = held.get(listed, []), entry.get("layer") if isinstance(entry, Mapping) else None
                whole = all(isinstance(i, int) and i >= 0 for i in (layer, *found))
                if not whole or len(set(found)) != len(found) or held.get("k", len(found)) != len(found):
                    raise EmotraceError(
                        f"{file}: layer {layer}, {listed}: {found} with k={held.get('k')} is no list of {kind}s."
                    )
                rows += [(name, kind, layer, index, rank) for rank, index in enumerate(found)]
    out = pd.DataFrame(rows, columns=pd.Index(["emotion", "kind", "layer", "index", "rank"])).assign(score=np.nan)
    out.attrs |= {"source": SOURCE, "emotions": about}
    return out


@typed
def write_circuit(
    components: pd.DataFrame, folder: str | Path, *, n_layers: int, about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Components as ``{emotion}.json``, every layer listed, in the order of ``rank``.

    Args:
        components: columns ``emotion, kind, layer, index, rank``.
        folder: created if absent.
        n_layers: layers of the model.
        about: entries that replace the computed ones (``K_total, ratio_mode, min_per_layer, cap_ratio …``).

    Raises:
        EmotraceError: for missing columns, another kind, a layer that the model lacks, or a component given twice.
    """
    missing = {"emotion", "kind", "layer", "index", "rank"} - set(components.columns)
    if missing:
        raise EmotraceError(f"write_circuit: the components lack the column(s) {', '.join(sorted(missing))}.")
    for kind in components["kind"].unique():
        if kind not in LISTED:
            raise unknown("kind", kind, LISTED, "write_circuit")
    if components.duplicated(["emotion", "kind", "layer", "index"]).any():
        raise EmotraceError("write_circuit: a component occurs twice.")
    if len(components) and not components["layer"].between(0, n_layers - 1).all():
        raise EmotraceError(f"write_circuit: a layer is not among the {n_layers} of the model.")
    filenames(components["emotion"].unique(), "write_circuit")
    written = []
    for name, mine in components.sort_values("rank", kind="stable").groupby("emotion", sort=False):
        found = {(str(k), int(i)): [int(u) for u in g["index"]] for (k, i), g in mine.groupby(["kind", "layer"])}  # type: ignore[misc]
        lists = {p: [found.get((kind, i), []) for i in range(n_layers)] for kind, (p, _) in LISTED.items()}
        used = {p: sum(map(len, lists[p])) for p in lists}
        content = {
            "emotion": name, "K_total": len(mine), "ratio_mode": "fixed",
            "ratio_fixed": ",".join(f"{used[p] / max(len(mine), 1):.4g}" for p in ("mlp", "attention")), "K_alloc": used,
            "min_per_layer": {p: min(map(len, lists[p])) for p in lists}, "cap_ratio": None,
            "summary": {p: {"planned": n, "used": n, "final_deficit": 0} for p, n in used.items()}, **(about or {}),
            "layers": [
                {"layer": i, **{p: {"k": len(lists[p][i]), listed: lists[p][i]} for p, listed in LISTED.values()}}
                for i in range(n_layers)
            ],
        }  # fmt: skip
        written.append(Path(folder) / f"{name}.json")
        write(written[-1], (json.dumps(content, indent=2) + "\n").encode())
    return written


def read_csv(file: Path) -> pd.DataFrame:
    """A CSV as it is.

    Raises:
        EmotraceError: for no file, or one that is no table.
    """
    try:
        return pd.read_csv(file)
    except FileNotFoundError:
        raise EmotraceError(f"{file}: no such file.") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise EmotraceError(f"{file} is no CSV table: {error}.") from error


def _csv(file: Path, columns: Iterable[str]) -> pd.DataFrame:
    table = read_csv(file)
    for name in columns:
        if name not in table:
            raise unknown("column", name, table.columns, str(file))
    return table


def _emotions(path: Paths, pattern: str, columns: list[str]) -> pd.DataFrame:
    """All files below one another, the emotion taken from the column, else from the file's name."""
    parts = []
    for file in files_of(path, pattern):
        table = _csv(file, columns)
        parts.append(table if "emotion" in table else table.assign(emotion=emotion_in(file)))
    return pd.concat(parts, ignore_index=True)


def _grid(table: pd.DataFrame, dims: tuple[str, ...], path: Paths, need: Iterable[str]) -> xr.Dataset:
    """The whole numeric columns as arrays over a full grid of ``dims``, emotions in the vocabulary's order."""
    table = table.assign(emotion=[emotion(e, EMOTIONS, str(path)) for e in table["emotion"]])
    if table.duplicated(list(dims)).any():
        twice = table.loc[table.duplicated(list(dims)), list(dims)].iloc[0].to_dict()
        raise EmotraceError(f"{path}: {twice} occurs twice.")
    values = {d: sorted(table[d].unique().tolist()) for d in dims} | {"emotion": list(ordered(table["emotion"]))}
    for dim in ("layer", "head", "unit"):
        if dim in dims and values[dim] != list(range(len(values[dim]))):
            raise EmotraceError(f"{path}: {dim}s {values[dim][:3]} … {values[dim][-1]} have a gap; they count from 0.")
    whole = pd.MultiIndex.from_product([values[d] for d in dims], names=list(dims))
    if len(table) != len(whole):
        absent = whole.difference(pd.MultiIndex.from_arrays([table[d] for d in dims]))[0]
        raise EmotraceError(
            f"{path}: {len(table)} rows where {len(whole)} are due; {dict(zip(dims, absent, strict=True))} is missing."
        )
    numbers = table.set_index(list(dims)).reindex(whole).select_dtypes("number")
    full = numbers.loc[:, numbers.notna().all()]
    for name in need:
        if name not in full:
            raise EmotraceError(f"{path}: column {name!r} has cells that are empty or no numbers.")
    shape = [len(values[d]) for d in dims]
    return xr.Dataset({str(c): (dims, full[c].to_numpy().reshape(shape)) for c in full}, {d: values[d] for d in dims})


def _constant(array: xr.DataArray, over: str | tuple[str, ...], path: Paths) -> xr.DataArray:
    """One value per cell of the other dims, after checking that it is the same all over ``over``."""
    first = array.isel(dict.fromkeys((over,) if isinstance(over, str) else over, 0), drop=True)
    if not bool((array == first).all()):
        raise EmotraceError(f"{path}: {array.name!r} differs along {over}, where it should be one figure.")
    return first


def _write(data: xr.Dataset, folder: str | Path, unit: str, columns: Mapping[str, str], name: str) -> list[Path]:
    missing = [v for v in columns.values() if v not in data]
    if missing:
        raise EmotraceError(
            f"{name.format('…')} needs the variables {', '.join(columns.values())}; {missing[0]!r} is missing."
        )
    from_zero(data, name.format("…"))
    filenames(data["emotion"].values.tolist(), name.format("…"))
    written = []
    for label in data["emotion"].values.tolist():
        mine = data[list(columns.values())].sel(emotion=label, drop=True).reset_coords(drop=True)
        table = mine.to_dataframe(dim_order=["layer", unit]).reset_index()
        table.insert(0, "emotion", label)
        table = table.rename(columns={ours: theirs for theirs, ours in columns.items()})
        written.append(Path(folder) / name.format(label))
        write(written[-1], as_bytes(table[["emotion", "layer", unit, *columns]].to_csv(index=False)))
    return written
