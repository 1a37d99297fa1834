"""Vectors in published files: the JSON of Emotion Vectors (arXiv 2502.04075) and the ``.npy`` of the GoEmotions pipeline.

A file's layers count from 0 in both. What is read is float32 and keeps every bit; written and read again it is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from emotrace.interop.files import load_json, load_npy, save_npy, write
from emotrace.interop.layout import from_zero
from emotrace.labels import EMOTIONS_EV, EmotraceError, filename, filenames, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

SOURCE = "Emotion Vectors, arXiv 2502.04075"


@typed
def read_emotion_vectors(
    path: str | Path | Sequence[str | Path], *, site: str = "o_proj_out", model: LanguageModel | None = None
) -> xr.DataArray:
    """Emotion Vectors from ``{prefix}_{emotion}.json`` or ``{emotion}.json``: a JSON object layer → ``[[D numbers]]``.

    Args:
        path: a folder of such files of one model, some of them, or one.
        site: where they belong; the authors add to the attention's output projection.
        model: a model of `emotrace.load` whose layers and width must fit.

    Returns:
        ``vector[emotion, layer, dim]`` float32 with the coordinate ``norm``; published emotions in the published order, others
        behind them in the order of the files.

    Raises:
        EmotraceError: for a file that is missing or of another layout, emotions that occur twice, shapes that disagree,
            or a model that they do not fit.
    """
    found: dict[str, np.ndarray] = {}
    for file in _files(path):
        name = re.split(r"[_\s]", file.stem)[-1].lower()
        if name in found:
            raise EmotraceError(f"{file}: a second file for {name!r}; give those of one model.")
        found[name] = _layers(load_json(file), file)
    shapes = {name: array.shape for name, array in found.items()}
    if len(set(shapes.values())) > 1:
        raise EmotraceError(f"{path}: the vectors have different shapes [layer, dim]: {shapes}.")
    names = [e for e in EMOTIONS_EV if e in found] + [e for e in found if e not in EMOTIONS_EV]
    values = np.stack([found[name] for name in names])
    return checked(values, names, range(values.shape[1]), site, model, str(path), SOURCE)


@typed
def write_emotion_vectors(vectors: xr.DataArray, folder: str | Path, prefix: str) -> list[Path]:
    """Vectors in the published JSON, one file per emotion: ``{prefix}_{emotion}.json``, four spaces, one number a line.

    Args:
        vectors: ``[emotion, layer, dim]`` of every layer from 0 on.
        folder: created if absent.
        prefix: the model, e.g. ``qwen2.5``.

    Raises:
        EmotraceError: for other dims or layers that do not count from 0.
    """
    _dims(vectors, ("emotion", "layer", "dim"), "write_emotion_vectors")
    from_zero(vectors, "write_emotion_vectors")
    names = filenames(vectors["emotion"].values.tolist(), "write_emotion_vectors")
    filename(prefix, "write_emotion_vectors(prefix=…)")
    out = []
    for name in names:
        rows = vectors.sel(emotion=name).transpose("layer", "dim").values.astype(np.float32)
        held = {str(i): [row.astype(np.float64).tolist()] for i, row in enumerate(rows)}
        out.append(Path(folder) / f"{prefix}_{name}.json")
        write(out[-1], json.dumps(held, indent=4).encode())
    return out


@typed
def read_difference_matrix(
    path: str | Path,
    emotion: str,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    after_final_norm: bool = True,
    model: LanguageModel | None = None,
) -> xr.DataArray:
    """The steering matrix ``[layer, dim]`` of the GoEmotions pipeline (``…_diffmatrix.npy``), which has no labels of its own.

    Args:
        path: the ``.npy`` file.
        emotion: whose it is.
        site: where it belongs; the pipeline adds to the block's output.
        layers: the 0-based layers of its rows, where only some were recorded; None: every layer from 0 on.
        after_final_norm: the pipeline takes its last row after the model's final norm (``hidden_states[-1]``), a space in
            which it cannot be added: said in ``attrs["after_final_norm"]``, as by `emotrace.interop.read_directions`.
        model: a model of `emotrace.load` whose layers and width must fit.

    Raises:
        EmotraceError: for a file of another shape, rows that are not as many as the layers, or a model that it does not
            fit.
    """
    array = load_npy(path)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise EmotraceError(f"{path}: shape {array.shape}; a matrix [layer, dim] of finite numbers is due.")
    rows = range(array.shape[0]) if layers is None else list(layers)
    if len(rows) != array.shape[0] or sorted(set(rows)) != list(rows):
        raise EmotraceError(f"{path}: {array.shape[0]} rows for the layers {list(rows)}; one each, ascending.")
    out = checked(array[None], [emotion], rows, site, model, str(path), "GoEmotions steering pipeline")
    last = int(max(rows))
    leaks = after_final_norm and layers is None
    return out.assign_attrs(after_final_norm=[{"layer": last, "sublayer": site}] if leaks else [])


@typed
def write_difference_matrix(vectors: xr.DataArray, path: str | Path) -> Path:
    """One emotion's vectors as a float32 ``.npy`` ``[layer, dim]``, every layer from 0 on.

    Raises:
        EmotraceError: for several emotions, or layers that do not count from 0.
    """
    one = vectors
    if "emotion" in vectors.dims:
        if vectors.sizes["emotion"] != 1:
            raise EmotraceError(f"{path}: a matrix holds one emotion, not {vectors['emotion'].values.tolist()}.")
        one = vectors.isel(emotion=0)
    _dims(one, ("layer", "dim"), "write_difference_matrix")
    from_zero(one, "write_difference_matrix")
    save_npy(one.transpose("layer", "dim").values.astype(np.float32), path)
    return Path(path)


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [path] if isinstance(path, (str, Path)) else list(path)
    files = []
    for item in map(Path, given):
        files += sorted(item.glob("*.json")) if item.is_dir() else [item]
    if not files:
        raise EmotraceError(f"{path} holds no .json file.")
    return files


def _layers(held: Mapping[str, Any], file: Path) -> np.ndarray:
    """``[layer, dim]`` of a file's object."""
    if list(held) != [str(i) for i in range(len(held))] or not held:
        raise EmotraceError(f"{file}: keys {list(held)[:4]}…; the layers are '0', '1', … in this order.")
    rows = []
    for key, value in held.items():
        try:
            row = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            row = np.empty(0)
        if row.ndim != 2 or row.shape[0] != 1 or not np.isfinite(row).all():
            raise EmotraceError(f"{file}: layer {key} is no [[numbers]] of shape [1, D] (it has {row.shape}).")
        rows.append(row[0])
    if len({len(row) for row in rows}) > 1:
        raise EmotraceError(f"{file}: layers of different width: {sorted({len(row) for row in rows})}.")
    return np.stack(rows)


def checked(
    values: np.ndarray, names: Sequence[str], layers: Sequence[int], site: str, model: LanguageModel | None,
    place: str, origin: str, whole: bool = True,
) -> xr.DataArray:  # fmt: skip
    """Vectors as emotrace labels them, after a look at the model; ``whole``: a file from layer 0 on holds all its layers."""
    numbers = values.astype(np.float32)
    if model is not None:
        _fits(model, site, list(layers), numbers.shape[-1], place, whole)
    norm = np.linalg.norm(values.astype(np.float64), axis=-1).astype(np.float32)
    return xr.DataArray(
        numbers,
        dims=("emotion", "layer", "dim"),
        coords={"emotion": list(names), "layer": list(layers), "norm": (("emotion", "layer"), norm)},
        name="vector",
        attrs={"method": "published", "site": site, "source": origin, "unit": 0},
    )


def _fits(model: LanguageModel, site: str, layers: list[int], width: int, place: str, whole: bool) -> None:
    has = list(model.sites.layers(site)) if site in model.sites.addresses else []
    if not has:
        raise unknown("site", site, model.sites.names, place)
    if set(layers) - set(has):
        raise EmotraceError(
            f"{place}: vectors of {len(layers)} layers (up to {max(layers)}); the model has {len(has)}."
        )
    if whole and set(has) - set(layers) and layers == list(range(len(layers))):
        raise EmotraceError(f"{place}: vectors of {len(layers)} layers; the model has {len(has)}. Not the same model?")
    own = model.sites.address(site, layers[0]).width
    if own != width:
        raise EmotraceError(f"{place}: vectors of width {width}; {site!r} of the model is {own} wide.")


def _dims(vectors: xr.DataArray, dims: tuple[str, ...], place: str) -> None:
    if set(vectors.dims) != set(dims):
        raise EmotraceError(f"{place}: dims {tuple(map(str, vectors.dims))}, not {dims}.")
