"""Frames: labelled arrays of a store as one Dataset, and as a long table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.labels import EmotraceError, unknown


def merged(arrays: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Variables as one lazy Dataset.

    Raises:
        EmotraceError: if their coordinates differ, since xarray would fill the gaps with NaN.
    """
    named = [array.rename(name) for name, array in arrays.items()]
    try:
        return xr.merge(named, join="exact", compat="override", combine_attrs="drop")
    except ValueError as error:
        raise EmotraceError(
            f"{', '.join(arrays)} are stored for different layers, so one Dataset cannot hold them without gaps; "
            "name one: dataset('residual')."
        ) from error


def chunked(found: xr.Dataset, chunks: Mapping[str, int]) -> xr.Dataset:
    """A lazy Dataset as Dask arrays.

    Raises:
        EmotraceError: where Dask is not installed, or for a dim that it does not have.
    """
    dims = {dim: size for dim, size in chunks.items() if dim in found.dims}
    other = [dim for dim in chunks if dim not in found.dims and dim not in ("layer", "sublayer")]
    if other:
        raise unknown("dim", other[0], [*map(str, found.dims)], "dataset(chunks=…)")
    try:
        return found.chunk(dims)
    except ImportError as error:
        raise EmotraceError("dataset(chunks=…) gives Dask arrays: pip install emotrace[dask].") from error


def long_table(x: xr.DataArray, variable: str, max_rows: int) -> pd.DataFrame:
    """A selection as a table: array dims, token labels, and the value in a column named after the variable.

    Raises:
        EmotraceError: if the table would have more than ``max_rows`` rows.
    """
    if x.size > max_rows:
        raise EmotraceError(f"the table would have {x.size:,} rows; select less, or raise max_rows={max_rows:,}.")
    index = np.indices(x.shape, sparse=True)
    dims = x.dims
    out: dict[Hashable, Any] = {}
    for axis, dim in enumerate(dims):
        if dim != "token":
            values = x[dim].values if dim in x.coords else np.arange(x.shape[axis])
            out[dim] = np.broadcast_to(values[index[axis]], x.shape).ravel()
    for name, coord in x.coords.items():
        if coord.dims == ("token",):
            out[name] = np.broadcast_to(coord.values[index[dims.index("token")]], x.shape).ravel()
        elif not coord.dims:
            out[name] = coord.item()
    out[variable] = x.values.ravel()
    return pd.DataFrame(out)
