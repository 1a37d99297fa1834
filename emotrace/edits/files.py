"""Files: a list of edits as ``edits.safetensors`` and ``edits.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import bundles, provenance
from emotrace.edits.kinds import EDITS, Edit
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.sites import Site

NAME: Final = "edits"


@typed
def save_edits(edits: Sequence[Edit], path: str | Path) -> None:
    """Write edits as ``edits.safetensors`` (payloads) and ``edits.json`` (the rest) into a folder.

    Raises:
        EmotraceError: for a class that is not listed in `EDITS`.
    """
    tensors: dict[str, np.ndarray] = {}
    described = []
    for i, edit in enumerate(edits):
        if EDITS.get(type(edit).__name__) is not type(edit):
            raise unknown("edit", type(edit).__name__, EDITS, f"save_edits(edits[{i}])")
        row: dict[str, Any] = {"edit": type(edit).__name__}
        for f in fields(edit):
            value = getattr(edit, f.name)
            if f.name == "vector" and value is not None:
                array = value if isinstance(value, xr.DataArray) else xr.DataArray(array_of(value))
                tensors[str(i)] = np.ascontiguousarray(array.values)
                row["dims"] = [str(d) for d in array.dims]
                row |= {} if isinstance(value, xr.DataArray) else {"plain": True}
                row["coords"] = {str(d): array[d].values.tolist() for d in array.dims if d in array.coords}
            elif isinstance(value, Site):
                row[f.name] = {"path": value.path, "side": value.side, "index": value.index}
            elif f.name != "vector":
                row[f.name] = value.item() if isinstance(value, np.generic) else value
        row["origin"] = {**provenance.of(edit), **provenance.rows_of(edit)} or None
        described.append(row)
    bundles.write(path, NAME, tensors, {"edits": described})


@typed
def load_edits(path: str | Path) -> list[Edit]:
    """The edits that `save` wrote.

    Raises:
        EmotraceError: for a missing or damaged file, or an edit that this version does not know.
    """
    about, tensors = bundles.read(path, NAME, "edits")
    described = about.get("edits")
    if not isinstance(described, list):
        raise EmotraceError(f"{path}/{NAME}.json is no manifest of edits.")
    edits = []
    for i, row in enumerate(described):
        cls = EDITS.get(row.pop("edit", "")) if isinstance(row, dict) else None
        if cls is None:
            raise EmotraceError(f"{path}/edits.json: entry {i} is no edit of this version ({', '.join(EDITS)}).")
        dims, coords, plain = row.pop("dims", None), row.pop("coords", {}), row.pop("plain", False)
        try:
            if dims is not None:
                numbers = tensors[str(i)]
                row["vector"] = numbers if plain else xr.DataArray(numbers, dims=dims, coords=coords)
            if isinstance(row["site"], dict):
                row["site"] = Site(**row["site"])
            if isinstance(row.get("positions"), list):
                row["positions"] = tuple(row["positions"])
            edits.append(cls(**row))
        except EmotraceError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise EmotraceError(f"{path}/edits.json: entry {i} is damaged ({error!r}).") from error
    return edits


@typed
def edits_digest(edits: Sequence[Edit]) -> str:
    """Hash of what edits would do; ``none`` for no edits."""
    if not edits:
        return "none"
    sha = hashlib.sha256()
    for edit in edits:
        payload = edit.payload
        described = {k: v for k, v in vars(edit).items() if k not in ("vector", "origin")}
        if isinstance(payload, xr.DataArray):  # the same numbers under other labels are another edit
            described["dims"] = [
                [str(d), payload[d].values.tolist() if d in payload.coords else None] for d in payload.dims
            ]
        sha.update(json.dumps([type(edit).__name__, described], sort_keys=True, default=_plain).encode())
        sha.update(b"" if payload is None else array_of(payload).astype(np.float32).tobytes())
    return sha.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Of numpy's numbers what a file gives back, of anything else its name."""
    return value.item() if isinstance(value, np.generic) else str(value)


def array_of(values: Any) -> np.ndarray:
    """Numbers as numpy has them: those of a tensor, wherever it is, as float32."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
