"""Files: a labelled Dataset as a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from emotrace import bundles
from emotrace.disk import plain
from emotrace.labels import EmotraceError
from emotrace.signatures import typed


@typed
def save_scores(dataset: xr.Dataset, folder: str | Path, name: str = "dataset") -> Path:
    """Write a Dataset into a folder: numbers as safetensors; dims, texts and attrs as JSON.

    Args:
        dataset: any Dataset of numbers, booleans and texts without a MultiIndex.
        folder: made where it does not exist.
        name: stem of the two files.

    Returns:
        The path of the manifest.

    Raises:
        EmotraceError: for a value or attr that neither format holds, before anything is written.
    """
    tensors: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for key, variable in dataset.variables.items():
        where = f"save_scores({str(key)!r})"
        values = np.asarray(variable.values)
        entry: dict[str, Any] = {"dims": [str(d) for d in variable.dims], "attrs": _attrs(variable.attrs, where)}
        if values.dtype.kind in "biuf":
            tensors[str(key)] = np.array(values, order="C")
        elif values.dtype.kind in "UO" and all(isinstance(v, str) for v in values.ravel().tolist()):
            entry["values"] = values.tolist()
        else:
            raise EmotraceError(f"{where}: files hold numbers, booleans and texts, not {values.dtype}.")
        described[str(key)] = entry
    about = {
        "data": [str(v) for v in dataset.data_vars],
        "variables": described,
        "attrs": _attrs(dataset.attrs, "save"),
    }
    return bundles.write(folder, name, tensors, about)


def kept(scores: xr.Dataset, out: str | Path | None, name: str) -> xr.Dataset:
    """The scores, saved under a name where there is a folder for them."""
    if out is not None:
        save_scores(scores, out, name)
    return scores


@typed
def load_scores(folder: str | Path, name: str = "dataset") -> xr.Dataset:
    """The Dataset that `save_scores` wrote.

    Raises:
        EmotraceError: where a file is missing, damaged, of another format, or not the one the manifest describes.
    """
    manifest, tensors = bundles.read(folder, name, "a Dataset")
    try:
        variables = {
            key: (tuple(v["dims"]), tensors[key] if "values" not in v else _texts(v["values"]), v["attrs"])
            for key, v in manifest["variables"].items()
        }
        data = manifest["data"]
        return xr.Dataset(
            {k: variables[k] for k in data}, {k: v for k, v in variables.items() if k not in data}, manifest["attrs"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EmotraceError(f"{folder}/{name}.json is no manifest of a Dataset ({error!r}).") from error


def _attrs(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    out = {str(k): plain(v) for k, v in attrs.items()}
    for key, value in out.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise EmotraceError(f"{where}: attr {key!r} is {value!r}, which JSON cannot hold.") from None
    return out


def _texts(values: ArrayLike) -> np.ndarray:
    return np.array(values) if np.size(values) else np.array(values, dtype=object)
