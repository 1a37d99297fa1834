"""Files: scores, masks of circuits and curves as ``NAME.safetensors`` and ``NAME.json``; nothing is pickled."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from emotrace.attribution import files
from emotrace.discovery.selection import component
from emotrace.labels import EmotraceError
from emotrace.signatures import typed

CIRCUIT = "circuit"


@typed
def save_discovery(found: xr.Dataset | xr.DataArray, folder: str | Path, name: str = "scores") -> Path:
    """Write any Dataset of this room, or the mask of a circuit.

    Args:
        found: Dataset of scores, or the mask of a circuit.
        folder: made where it is not there.
        name: of the files, without their endings.

    Returns:
        The path of the manifest.
    """
    if isinstance(found, xr.DataArray):
        component(found)
        found = xr.Dataset({CIRCUIT: found.drop_attrs()}, attrs={**found.attrs, "content": CIRCUIT})
    return files.save_scores(found, folder, name)


@typed
def load_discovery(folder: str | Path, name: str = "scores") -> xr.Dataset | xr.DataArray:
    """What `save_discovery` wrote: a Dataset, or the mask of a circuit.

    Raises:
        EmotraceError: for missing or damaged files.
    """
    found = files.load_scores(folder, name)
    if found.attrs.get("content") != CIRCUIT:
        return found
    if CIRCUIT not in found:
        raise EmotraceError(f"{folder}/{name}.json says that it holds a circuit, but there is none in it.")
    attrs = {k: v for k, v in found.attrs.items() if k != "content"}
    return found[CIRCUIT].assign_attrs(attrs)
