"""Similarity: cosines between directions, labelled."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr

from emotrace.labels import SUBLAYERS, EmotraceError
from emotrace.signatures import typed

SHORT: Final = {"resid_mid": "attn", "resid_post": "mlp"}
"""How the published matrices name the two sublayers whose directions they compare."""


@typed
def similarity(a: xr.DataArray, b: xr.DataArray | None = None, dim: str = "dim") -> xr.DataArray:
    """Cosine ⟨a, b⟩ / (‖a‖ ‖b‖) over ``dim``.

    Args:
        a: directions ``[…, dim]``.
        b: directions to compare with: shared dims are matched by their coordinates (those in both), others broadcast.
            None compares the labels of ``a`` with each other at the same layer and sublayer: ``emotion`` ×
            ``emotion_other``.
        dim: the dim of one vector.

    Raises:
        EmotraceError: for a missing dim, widths that differ, no shared coordinate, or a vector of zero.
    """
    for x in (a, b):
        if x is not None and dim not in x.dims:
            raise EmotraceError(f"similarity: no dim {dim!r} in {tuple(map(str, x.dims))}.")
    if b is None:
        first = [d for d in a.dims if d not in ("layer", "sublayer", dim)]
        b = _bare(a, dim).rename({d: f"{d}_other" for d in first})
    elif a.sizes[dim] != b.sizes[dim]:
        raise EmotraceError(f"similarity: width {a.sizes[dim]} against {b.sizes[dim]}; not the same model?")
    left, right = xr.align(_unit(_bare(a, dim), dim), _unit(_bare(b, dim), dim), join="inner", exclude=[dim])
    if 0 in left.shape or 0 in right.shape:
        raise EmotraceError("similarity: the two share no layer, sublayer or label.")
    return xr.dot(left, right, dim=dim).clip(-1.0, 1.0).rename("cosine").assign_attrs(method="cosine")


@typed
def sublayer_similarity(directions: xr.DataArray) -> xr.DataArray:
    """Cosines between all sublayers of each label, in the order attn0, mlp0, attn1, mlp1, ….

    Args:
        directions: ``[emotion, layer, sublayer, dim]`` (without ``emotion`` for one direction).

    Returns:
        ``cosine[emotion, place, place_other]``; ``resid_mid`` is named attn, ``resid_post`` mlp, as in arXiv 2510.11328.
    """
    missing = {"layer", "sublayer", "dim"} - set(map(str, directions.dims))
    if missing:
        raise EmotraceError(f"sublayer_similarity: the directions lack the dim(s) {', '.join(sorted(missing))}.")
    subs = sorted((str(s) for s in directions["sublayer"].values), key=SUBLAYERS.index)
    units = _unit(_bare(directions.sel(sublayer=subs).sortby("layer"), "dim"), "dim")
    outer = [d for d in units.dims if d not in ("layer", "sublayer", "dim")]
    units = units.transpose(*outer, "layer", "sublayer", "dim")
    names = [f"{SHORT.get(s, s)}{layer}" for layer in units["layer"].values for s in subs]
    flat = units.values.reshape(*units.shape[: len(outer)], len(names), units.sizes["dim"])
    cosines = np.clip(flat @ flat.swapaxes(-1, -2), -1.0, 1.0)
    coords = {d: units[d].values for d in outer if d in units.coords}
    return xr.DataArray(
        cosines,
        dims=(*outer, "place", "place_other"),
        coords={**coords, "place": names, "place_other": names},
        name="cosine",
        attrs={"method": "cosine"},
    )


def _bare(x: xr.DataArray, dim: str) -> xr.DataArray:
    """The array with nothing but the coordinates of its own dims, in float64."""
    own = {c for c in x.coords if c in x.dims and c != dim}
    return x.reset_coords([c for c in x.coords if c not in x.dims], drop=True).drop_vars(
        [c for c in x.coords if c in x.dims and c not in own]
    ).astype(np.float64)  # fmt: skip


def _unit(x: xr.DataArray, dim: str) -> xr.DataArray:
    norm = np.sqrt((x * x).sum(dim))
    if bool((norm == 0).any()) or not bool(np.isfinite(norm).all()):
        raise EmotraceError("similarity: a vector is zero or not finite, so it has no direction.")
    return x / norm
