"""Files: directions as ``directions.safetensors`` and ``directions.json``; nothing is pickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from emotrace.labels import EmotraceError

FORMAT = 1


def save(directions: xr.DataArray, path: str | Path, name: str = "directions") -> Path:
    """Write directions into a folder: numbers as safetensors, dims, labels and attrs as JSON.

    Each file is written beside its place, synced and renamed; the manifest, which carries the digest of the numbers, comes last.

    Args:
        directions: any labelled array, e.g. ``direction[emotion, layer, sublayer, dim]`` with the coordinate ``norm``.
        path: folder.
        name: stem of the two files.

    Returns:
        The path of the manifest.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"values": np.ascontiguousarray(directions.values)}
    labels: dict[str, Any] = {}
    beside: dict[str, list[str]] = {}
    for key, coord in directions.coords.items():
        if coord.ndim > 1 or (coord.ndim == 1 and coord.dims != (key,) and coord.dtype.kind == "f"):
            tensors[f"coord.{key}"] = np.ascontiguousarray(coord.values)
            beside[str(key)] = [str(d) for d in coord.dims]
        else:
            labels[str(key)] = {"dims": [str(d) for d in coord.dims], "values": coord.values.tolist()}
    blob = save_tensors(tensors)
    manifest = {
        "format": FORMAT,
        "name": directions.name,
        "dims": [str(d) for d in directions.dims],
        "coords": labels,
        "tensors": beside,
        "attrs": {str(k): _plain(v) for k, v in directions.attrs.items()},
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    replace_file(folder / f"{name}.safetensors", blob)
    replace_file(folder / f"{name}.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return folder / f"{name}.json"


def load(path: str | Path, name: str = "directions") -> xr.DataArray:
    """The array that `save` wrote.

    Raises:
        EmotraceError: where a file is missing, of another format, or the numbers are not those of the manifest.
    """
    folder = Path(path)
    described, numbers = folder / f"{name}.json", folder / f"{name}.safetensors"
    for file in (described, numbers):
        if not file.is_file():
            raise EmotraceError(f"{file} does not exist; directions are a folder with {name}.json and its safetensors.")
    try:
        manifest = json.loads(described.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise EmotraceError(f"{described} is no manifest of directions ({error!r}).") from error
    if version != FORMAT:
        raise EmotraceError(f"{described} has format {version!r}; this version reads {FORMAT}.")
    blob = numbers.read_bytes()
    if hashlib.sha256(blob).hexdigest() != manifest["sha256"]:
        raise EmotraceError(
            f"{numbers} is not the file that {described.name} describes (sha256 differs): write it again."
        )
    try:
        tensors = load_tensors(blob)
    except SafetensorError as error:
        raise EmotraceError(f"{numbers} cannot be read: {error}.") from error
    coords: dict[str, Any] = {k: (tuple(c["dims"]), np.array(c["values"])) for k, c in manifest["coords"].items()}
    coords |= {k: (tuple(dims), tensors[f"coord.{k}"]) for k, dims in manifest["tensors"].items()}
    return xr.DataArray(
        tensors["values"], dims=manifest["dims"], coords=coords, name=manifest["name"], attrs=manifest["attrs"]
    )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is at any moment either the old one or the new one, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise EmotraceError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
