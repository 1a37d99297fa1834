"""Laziness: all that emotrace uses of xarray's inner parts, which its own backends are made of and no release promises.

A change there shows in ``tests/store/test_laziness.py``, and is mended here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

Key: TypeAlias = indexing.ExplicitIndexer


def lazy(array: BackendArray | np.ndarray) -> Any:
    """The array as xarray data whose indexing is put off until it is read."""
    return indexing.LazilyIndexedArray(array)


def cached(variable: xr.Variable) -> Any:
    """The lazy data of a variable, read once when asked for, then kept with it; changing it leaves the store alone."""
    data: Any = variable._data
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(data))


def selection(key: Key, shape: tuple[int, ...], read: Callable[[tuple[Any, ...]], np.ndarray]) -> np.ndarray:
    """What ``read`` gives for a key of xarray's.

    Args:
        key: as it comes to ``__getitem__``.
        shape: of the whole array.
        read: takes one int, slice or 1-D integer array per dim, and applies each to its dim by itself.
    """
    return indexing.explicit_indexing_adapter(key, shape, indexing.IndexingSupport.OUTER, read)
