"""Aligned: a labelled array in the order of another, or of a model's numbers: taken by name, never by place.

An array that was sorted or narrowed has the same shape as one that was not, and other numbers at every place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from emotrace.labels import EmotraceError, unknown

if TYPE_CHECKING:
    import xarray as xr


def like(other: xr.DataArray, to: xr.DataArray, whole: bool = True) -> xr.DataArray:
    """``other`` at the coordinates of ``to``, without further coordinates; where one of them has none, sizes must agree.

    Args:
        other: the dims that both have are matched.
        to: whose order is taken.
        whole: whether both have the same dims.

    Raises:
        EmotraceError: for other dims, a coordinate that ``other`` lacks, or another size.
    """
    name = "the array" if other.name is None else str(other.name)
    found = other.drop_vars([str(c) for c in other.coords if c not in other.dims])
    if whole and set(other.dims) != set(to.dims):
        raise EmotraceError(f"{name}: dims {tuple(map(str, other.dims))}, not {tuple(map(str, to.dims))}.")
    for dim in to.dims:
        if dim not in found.dims:
            continue
        if dim in to.coords and dim in found.coords:
            lost = [v for v in to[dim].values.tolist() if v not in found[dim].values]
            if lost:
                raise unknown(str(dim), lost[0], found[dim].values.tolist(), name)
            found = found.sel({dim: to[dim].values})
        elif found.sizes[dim] != to.sizes[dim]:
            raise EmotraceError(f"{name}: {found.sizes[dim]} along {dim!r}, not {to.sizes[dim]}.")
    return found


def numbered(array: xr.DataArray, dim: str, wanted: Iterable[int], place: str) -> xr.DataArray:
    """An array with these numbers of heads, units or columns, in this order; as it is where no coordinate numbers them.

    Args:
        array: with the dim.
        dim: that counts.
        wanted: numbers.
        place: of the array, for messages.

    Raises:
        EmotraceError: for an array that lacks one, or has one twice.
    """
    if dim not in array.coords or array[dim].dtype.kind not in "iu":
        return array
    have, numbers = array[dim].values.tolist(), list(wanted)
    if have == numbers:
        return array
    if len(set(have)) < len(have):
        raise EmotraceError(f"{place} has a {dim} twice: {next(i for i in have if have.count(i) > 1)}.")
    for number in numbers:
        if number not in have:
            raise unknown(dim, number, have, place)
    return array.sel({dim: numbers})
