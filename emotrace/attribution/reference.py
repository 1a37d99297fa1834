"""Reference: one direction per label that the stack agrees on, and the local direction of every sublayer.

Places are ``(layer, sublayer)`` in the order mid0, post0, mid1, post1, …; ``resid_mid`` is the residual after
attention, ``resid_post`` after the MLP. Parallel models have ``resid_post`` only. Pure: nothing here touches a model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import xarray as xr

from emotrace import provenance
from emotrace.labels import AFTER, EmotraceError, unknown
from emotrace.signatures import typed

Block = Sequence[tuple[int, str]]
"""Places ``(layer, "resid_mid" | "resid_post")``."""


@typed
def stable_block(directions: xr.DataArray, threshold: float = 0.9) -> list[tuple[int, str]]:
    """The longest run of neighbouring places whose directions agree; ties go to the later one.

    Two neighbours agree where their cosine, averaged over the labels, is at least ``threshold``: one block for all labels.
    Layers that the directions leave out end a run. Where no two neighbours agree, the block is the last place alone.

    Args:
        directions: ``[(label,) layer, sublayer, dim]``.
        threshold: smallest mean cosine of neighbours.

    Returns:
        ``[(layer, "resid_mid" | "resid_post"), …]`` in order of execution.

    Raises:
        EmotraceError: for missing dims or sublayers, a zero vector, or a threshold outside −1 to 1.

    Source: arXiv 2510.11328, which fixes layers 21 to 25 of one model; this is the rule behind it.
    """
    if not -1 <= threshold <= 1:
        raise EmotraceError(f"stable_block(threshold={threshold}): a cosine lies between −1 and 1.")
    places, units = _stacked(directions, "stable_block")
    cosines = np.einsum("epd,epd->ep", units[:, :-1], units[:, 1:]).mean(0)
    best, run = [places[0]], [places[0]]
    for (before, place), cosine in zip(itertools.pairwise(places), cosines, strict=True):
        run = [*run, place] if cosine >= threshold and place[0] - before[0] <= 1 else [place]
        if len(run) >= len(best):
            best = run
    return best


@typed
def layer_block(directions: xr.DataArray, layers: Collection[int]) -> list[tuple[int, str]]:
    """Every place of the given layers, in order: ``layer_block(d, range(21, 26))`` is the original's block.

    Raises:
        EmotraceError: for no layer, or one without directions.
    """
    places, _ = _stacked(directions, "layer_block")
    known = {layer for layer, _ in places}
    for layer in layers:
        if layer not in known:
            raise unknown("layer", layer, sorted(known), "layer_block")
    if not layers:
        raise EmotraceError("layer_block(layers=()): a block has at least one layer.")
    return [place for place in places if place[0] in layers]


@typed
def reference_direction(directions: xr.DataArray, block: Block) -> xr.DataArray:
    """One unit vector per label: the sum of the block's directions, each with the sign that agrees with the first.

    With v_p the unit direction at place p and p₀ the block's first place::

        r = Σ_{p in block} sgn⟨v_p, v_{p₀}⟩ · v_p        v_ref = r / ‖r‖₂

    Args:
        directions: ``[(label,) layer, sublayer, dim]``.
        block: places, e.g. of `stable_block` or `layer_block`; the order of the first one only matters.

    Returns:
        ``direction[(label,) dim]`` float32; attrs name the block.

    Raises:
        EmotraceError: for an empty block, a place without directions, or directions that cancel out.

    Source: arXiv 2510.11328 (global reference).
    """
    places, units = _stacked(directions, "reference_direction")
    wanted = [(int(layer), str(site)) for layer, site in block]
    if not wanted:
        raise EmotraceError("reference_direction(block=[]): a block has at least one place.")
    for place in wanted:
        if place not in places:
            raise unknown("place", place, places, "reference_direction(block=…)")
    chosen = units[:, [places.index(place) for place in wanted]]
    signs = np.where(np.einsum("epd,ed->ep", chosen, chosen[:, 0]) < 0, -1.0, 1.0)
    total = np.einsum("ep,epd->ed", signs, chosen)
    norms = np.linalg.norm(total, axis=-1, keepdims=True)
    if not (norms > 1e-6).all():
        raise EmotraceError("reference_direction: the directions of the block cancel out.")
    outer = _outer(directions)
    values = (total / norms).astype(np.float32).reshape(*(directions.sizes[d] for d in outer), -1)
    coords = {d: directions[d].values for d in outer if d in directions.coords}
    attrs = {"method": "reference_direction", "sign": directions.attrs.get("sign", "that of the directions"),
             "block": json.dumps(wanted), "unit": 1, **provenance.of(directions)}  # fmt: skip
    return xr.DataArray(values, dims=(*outer, "dim"), coords=coords, name="direction", attrs=attrs)


@typed
def local_directions(
    directions: xr.DataArray,
    layers: Sequence[int],
    without_mid: Collection[int] = (),
    align_to: xr.DataArray | None = None,
) -> xr.DataArray:
    """The unit direction along which each sublayer's output is shifted: that of the residual right after it.

    ``attn_out`` takes the direction of ``resid_mid``, ``mlp_out`` that of ``resid_post``, of the same layer. In layers
    without ``resid_mid`` (parallel residuals) both take that of ``resid_post``.

    Args:
        directions: ``[label, layer, sublayer, dim]``.
        layers: layers wanted.
        without_mid: those of them that have no ``resid_mid``.
        align_to: a reference ``[label, dim]``: directions with a negative inner product with it change their sign, as
            in the original. Not done by default: it makes the influence of early layers, whose directions have nothing to
            do with the reference, look positive, and a flipped vector is not the one that other stages rank and inject.

    Returns:
        ``direction[label, layer, sublayer, dim]`` float32, sublayers ``attn_out, mlp_out``, with the coordinates
        ``read_at[layer, sublayer]`` (whose direction it is) and ``flipped[label, layer, sublayer]``.

    Raises:
        EmotraceError: for a layer or sublayer without directions, or labels of the reference that differ.
    """
    places, units = _stacked(directions, "local_directions")
    (label,) = _one_label(directions, "local_directions")
    sources = [["resid_post" if layer in without_mid else AFTER["attn_out"], AFTER["mlp_out"]] for layer in layers]
    wanted = [(int(layer), site) for layer, row in zip(layers, sources, strict=True) for site in row]
    for place in wanted:
        if place not in places:
            raise unknown("place of a direction", place, places, "local_directions")
    local = units[:, [places.index(place) for place in wanted]]
    flipped = np.zeros(local.shape[:2], dtype=bool)
    if align_to is not None:
        reference = matched(align_to, directions, label, "local_directions(align_to=…)")
        flipped = np.einsum("epd,ed->ep", local, reference) < 0
    local = np.where(flipped[..., None], -local, local)
    shape = (local.shape[0], len(layers), 2)
    names = directions[label].values if label in directions.coords else np.arange(shape[0])
    return xr.DataArray(
        local.reshape(*shape, -1).astype(np.float32),
        dims=(label, "layer", "sublayer", "dim"),
        coords={
            label: names,
            "layer": list(layers),
            "sublayer": list(AFTER),
            "read_at": (("layer", "sublayer"), np.array(sources)),
            "flipped": ((label, "layer", "sublayer"), flipped.reshape(shape)),
        },
        name="direction",
        attrs=provenance.of(directions),
    )


def matched(reference: xr.DataArray, directions: xr.DataArray, label: str, place: str) -> np.ndarray:
    """A reference's unit vectors ``[label, dim]`` in float64, in the order of the directions' labels.

    Raises:
        EmotraceError: for other dims, a label that the reference lacks, another width, or a zero vector.
    """
    if not isinstance(reference, xr.DataArray) or set(reference.dims) != {label, "dim"}:
        got = getattr(reference, "dims", type(reference).__name__)
        raise EmotraceError(f"{place}: a reference has the dims ({label}, dim), not {got}.")
    if label in directions.coords and label in reference.coords:
        for value in directions[label].values.tolist():
            if value not in reference[label].values.tolist():
                raise unknown(label, value, reference[label].values.tolist(), place)
        reference = reference.sel({label: directions[label].values})
    if reference.sizes["dim"] != directions.sizes["dim"] or reference.sizes[label] != directions.sizes[label]:
        raise EmotraceError(
            f"{place}: {dict(reference.sizes)} against directions of {directions.sizes[label]} labels and width "
            f"{directions.sizes['dim']}."
        )
    return _unit(np.asarray(reference.transpose(label, "dim").values, dtype=np.float64), place)


def _stacked(directions: xr.DataArray, place: str) -> tuple[list[tuple[int, str]], np.ndarray]:
    """Places in order, and unit directions ``[labels, place, dim]`` in float64."""
    if not isinstance(directions, xr.DataArray):
        raise EmotraceError(f"{place} takes directions as a DataArray, not {type(directions).__name__}.")
    missing = {"layer", "sublayer", "dim"} - set(map(str, directions.dims))
    if missing:
        raise EmotraceError(f"{place}: the directions lack the dim(s) {', '.join(sorted(missing))}.")
    found = [str(s) for s in directions["sublayer"].values]
    subs = [s for s in AFTER.values() if s in found]
    if not subs or "layer" not in directions.coords:
        raise EmotraceError(
            f"{place}: directions of resid_mid or resid_post of named layers are needed, not of {found}."
        )
    ordered = directions.sortby("layer").sel(sublayer=subs)
    array = ordered.transpose(*_outer(directions), "layer", "sublayer", "dim")
    values = np.asarray(array.values, dtype=np.float64).reshape(
        -1, array.sizes["layer"] * array.sizes["sublayer"], array.sizes["dim"]
    )
    layers, names = array["layer"].values.tolist(), array["sublayer"].values.tolist()
    return [(int(layer), str(sub)) for layer in layers for sub in names], _unit(values, place)


def _outer(directions: xr.DataArray) -> list[str]:
    return [str(d) for d in directions.dims if d not in ("layer", "sublayer", "dim")]


def _one_label(directions: xr.DataArray, place: str) -> list[Any]:
    outer = _outer(directions)
    if len(outer) != 1:
        raise EmotraceError(f"{place}: directions of one label are needed, not of {outer or 'none'}.")
    return outer


def _unit(values: np.ndarray, place: str) -> np.ndarray:
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or not (norms > 0).all():
        raise EmotraceError(f"{place}: a vector is zero or not finite, so it has no direction.")
    return values / norms
