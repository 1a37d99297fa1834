"""Files: a labelled Dataset as ``NAME.safetensors`` and ``NAME.json``; nothing is pickled.

Each file is written beside its place, synced and renamed. The manifest, which carries the digest of the numbers, comes
last, so a pair is whole or refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from emotrace.directions.files import replace_file
from emotrace.labels import EmotraceError

FORMAT = 1


def save(dataset: xr.Dataset, folder: str | Path, name: str = "dataset") -> Path:
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
        where = f"save({str(key)!r})"
        values = np.asarray(variable.values)
        entry: dict[str, Any] = {"dims": [str(d) for d in variable.dims], "attrs": _attrs(variable.attrs, where)}
        if values.dtype.kind in "biuf":
            tensors[str(key)] = np.array(values, order="C")
        elif values.dtype.kind in "UO" and all(isinstance(v, str) for v in values.ravel().tolist()):
            entry["values"] = values.tolist()
        else:
            raise EmotraceError(f"{where}: files hold numbers, booleans and texts, not {values.dtype}.")
        described[str(key)] = entry
    blob = save_tensors(tensors)
    manifest = {
        "format": FORMAT,
        "data": [str(v) for v in dataset.data_vars],
        "variables": described,
        "attrs": _attrs(dataset.attrs, "save"),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    folder = Path(folder)
    replace_file(folder / f"{name}.safetensors", blob)
    replace_file(folder / f"{name}.json", (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return folder / f"{name}.json"


def load(folder: str | Path, name: str = "dataset") -> xr.Dataset:
    """The Dataset that `save` wrote.

    Raises:
        EmotraceError: where a file is missing, damaged, of another format, or not the one the manifest describes.
    """
    manifest, tensors = read_pair(Path(folder) / f"{name}.json", Path(folder) / f"{name}.safetensors")
    try:
        if manifest["format"] != FORMAT:
            raise EmotraceError(f"{folder}/{name}.json has format {manifest['format']!r}; this version reads {FORMAT}.")
        variables = {
            key: (tuple(v["dims"]), tensors[key] if "values" not in v else _texts(v["values"]), v["attrs"])
            for key, v in manifest["variables"].items()
        }
        data = manifest["data"]
        return xr.Dataset(
            {k: variables[k] for k in data}, {k: v for k, v in variables.items() if k not in data}, manifest["attrs"]
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, EmotraceError):
            raise
        raise EmotraceError(f"{folder}/{name}.json is no manifest of a Dataset ({error!r}).") from error


def read_pair(described: Path, numbers: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A manifest and its tensors, after checking that one describes the other.

    Raises:
        EmotraceError: where one is missing, cannot be read, or the sha256 differs.
    """
    for file in (described, numbers):
        if not file.is_file():
            raise EmotraceError(f"{file} does not exist; {described.name} and {numbers.name} belong together.")
    try:
        manifest = json.loads(described.read_text(encoding="utf-8"))
        wanted = manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise EmotraceError(f"{described} is damaged or no manifest ({error!r}).") from error
    blob = numbers.read_bytes()
    if hashlib.sha256(blob).hexdigest() != wanted:
        raise EmotraceError(f"{numbers} is not the file that {described.name} describes (sha256 differs).")
    try:
        return manifest, load_tensors(blob)
    except SafetensorError as error:
        raise EmotraceError(f"{numbers} cannot be read: {error}.") from error


def digest(array: xr.DataArray) -> str:
    """Hash of an array's numbers, dims and labels, not of its attrs."""
    sha = hashlib.sha256(np.ascontiguousarray(array.values).tobytes())
    labels = {str(d): array[d].values.tolist() for d in array.dims if d in array.coords}
    sha.update(json.dumps([[str(d) for d in array.dims], array.shape, labels], sort_keys=True).encode())
    return sha.hexdigest()[:16]


def plain(value: Any) -> Any:
    """A value as JSON holds it: arrays as lists, numpy numbers as Python's, tuples as lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple, range)) else value


def _attrs(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    out = {str(k): plain(v) for k, v in attrs.items()}
    for key, value in out.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise EmotraceError(f"{where}: attr {key!r} is {value!r}, which JSON cannot hold.") from None
    return out


def _texts(values: Any) -> np.ndarray:
    return np.array(values) if np.size(values) else np.array(values, dtype=object)
