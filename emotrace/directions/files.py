"""Files: directions as ``directions.safetensors`` and ``directions.json``; nothing is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from emotrace import bundles
from emotrace.labels import EmotraceError
from emotrace.signatures import typed


@typed
def save(directions: xr.DataArray, path: str | Path, name: str = "directions") -> Path:
    """Write directions into a folder: numbers as safetensors, dims, labels and attrs as JSON.

    Args:
        directions: any labelled array, e.g. ``direction[emotion, layer, sublayer, dim]`` with the coordinate ``norm``.
        path: folder.
        name: stem of the two files.

    Returns:
        The path of the manifest.
    """
    tensors = {"values": np.ascontiguousarray(directions.values)}
    labels: dict[str, Any] = {}
    beside: dict[str, list[str]] = {}
    for key, coord in directions.coords.items():
        if coord.ndim > 1 or (coord.ndim == 1 and coord.dims != (key,) and coord.dtype.kind == "f"):
            tensors[f"coord.{key}"] = np.ascontiguousarray(coord.values)
            beside[str(key)] = [str(d) for d in coord.dims]
        else:
            labels[str(key)] = {"dims": [str(d) for d in coord.dims], "values": coord.values.tolist()}
    about = {
        "name": directions.name,
        "dims": [str(d) for d in directions.dims],
        "coords": labels,
        "tensors": beside,
        "attrs": {str(k): _plain(v) for k, v in directions.attrs.items()},
    }
    return bundles.write(path, name, tensors, about)


@typed
def load(path: str | Path, name: str = "directions") -> xr.DataArray:
    """The array that `save` wrote.

    Raises:
        EmotraceError: where a file is missing, of another format, or the numbers are not those of the manifest.
    """
    manifest, tensors = bundles.read(path, name, "directions")
    try:
        coords: dict[str, Any] = {k: (tuple(c["dims"]), np.array(c["values"])) for k, c in manifest["coords"].items()}
        coords |= {k: (tuple(dims), tensors[f"coord.{k}"]) for k, dims in manifest["tensors"].items()}
        return xr.DataArray(
            tensors["values"], dims=manifest["dims"], coords=coords, name=manifest["name"], attrs=manifest["attrs"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EmotraceError(f"{path}/{name}.json does not describe its numbers ({error!r}).") from error


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
