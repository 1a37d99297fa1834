"""xarray's inner parts that `emotrace.store.laziness` uses: what they are relied on for, so that a change there has a name."""

import numpy as np
import xarray as xr
from xarray.backends import BackendArray

from emotrace.store import laziness


class Counted(BackendArray):
    """An array that keeps what it was asked for."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.asked = values, values.shape, values.dtype, []

    def __getitem__(self, key):
        return laziness.selection(key, self.shape, self.read)

    def read(self, key):
        self.asked.append(key)
        return self.values[np.ix_(*(np.arange(n)[k] for k, n in zip(key, self.shape, strict=True)))]


def test_nothing_is_read_before_it_is_asked_for_and_then_only_that():
    source = Counted(np.arange(24).reshape(4, 6))
    array = xr.DataArray(xr.Variable(("row", "column"), laziness.lazy(source)))
    part = array[1:4][:, [4, 0, 2]][1:]
    assert source.asked == [], "LazilyIndexedArray reads at once"
    assert (part.values == source.values[2:4][:, [4, 0, 2]]).all()
    assert len(source.asked) == 1, "explicit_indexing_adapter reads more than once for one selection"
    rows, columns = source.asked[0]
    assert (np.arange(4)[rows].tolist(), sorted(columns)) == ([2, 3], [0, 2, 4]), "it reads more than was asked"


def test_what_is_kept_is_read_once_and_is_nobody_elses():
    source = Counted(np.arange(6.0).reshape(2, 3))
    array = xr.DataArray(xr.Variable(("row", "column"), laziness.lazy(source)))
    kept = array.copy(deep=False, data=laziness.cached(array.variable))
    assert source.asked == [], "Variable._data is no longer the lazy array"
    assert (kept.values == source.values).all()
    assert (kept.values == source.values).all()
    assert len(source.asked) == 1, "MemoryCachedArray reads again"
    kept[0, 0] = 7.0
    assert source.values[0, 0] == 0.0, "CopyOnWriteArray writes into the source"
