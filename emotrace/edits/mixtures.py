"""Mixtures as edits: vectors weighted by name, as one addition at each layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
import xarray as xr

from emotrace.directions.mixtures import Mix, mixed
from emotrace.edits.kinds import Add, Edit
from emotrace.labels import EmotraceError, Positions, unknown
from emotrace.signatures import typed

Size = Literal["raw", "unit", "rms", "share"]
SIZES: Final = ("raw", "unit", "rms", "share")


@typed
def mixture(
    vectors: xr.DataArray,
    mix: Mix | None,
    *,
    strength: float = 1.0,
    scale: Size = "raw",
    site: str | None = None,
    layers: Iterable[int] | None = None,
    positions: Positions = "steer",
    label: str = "emotion",
) -> list[Edit]:
    """Add a mixture of vectors: h + s·m with m = Σ_e w_e v_e, fused before the run into one vector a layer.

    The vectors stay as they were made; ``strength`` is applied here, and only here.

    Args:
        vectors: ``[emotion, layer, (sublayer), dim]``.
        mix: ``"anger=0.5,joy=-0.5"``, a mapping or the published five-tuple (`emotrace.directions.parse_mix`); None
            adds to each prompt the vector of its own label.
        strength: s.
        scale: ``raw`` s·m; ``unit`` s·m/‖m‖; ``rms`` s·RMS(h)·m/‖m‖; ``share`` s·‖h‖·m/‖m‖, so that 0.1 adds a tenth of
            the activation's own length at every layer (h: before the edit, at each token).
        site: where; None for the site that the vectors say they belong to.
        layers: some of the vectors' layers; None for all.
        positions: policy or span; ``steer`` is the published rule: the last prompt token and every generated one.
        label: the dim of the emotions.

    Returns:
        One `Add`, or nothing where it would add zero (strength or all weights 0). Layers where the mixture is zero are
        left out.

    Raises:
        EmotraceError: as `emotrace.directions.parse_mix`; for an unknown scale or layer, vectors without a site, or a
            mixture that is not finite.
    """
    if scale not in SIZES:
        raise unknown("scale", scale, SIZES, "mixture(scale=…)")
    where = site or vectors.attrs.get("site") or vectors.attrs.get("variable")
    where = "" if where == "residual" else str(where or "")
    if not where:
        raise EmotraceError("mixture(site=None): the vectors do not say where they belong; name a site.")
    if "sublayer" in vectors.dims:
        if where not in vectors["sublayer"].values:
            raise unknown("sublayer", where, vectors["sublayer"].values.tolist(), "mixture(site=…)")
        vectors = vectors.sel(sublayer=where)
    payload = vectors if mix is None else mixed(vectors, mix, label)
    if mix is None and label not in vectors.dims:
        raise EmotraceError(f"mixture(mix=None): no dim {label!r} in {tuple(map(str, vectors.dims))}.")
    payload = payload.drop_vars([str(c) for c in payload.coords if c not in payload.dims])
    known = payload["layer"].values.tolist()
    wanted = known if layers is None else list(layers)
    for layer in wanted:
        if layer not in known:
            raise unknown("layer", layer, known, "mixture(layers=…)")
    part = payload.sel(layer=wanted).transpose("layer", ...)
    lost = [layer for layer, x in zip(wanted, part.values, strict=True) if not np.isfinite(x).all()]
    if lost:
        raise EmotraceError(f"mixture: the vectors have NaN or infinite values at layer {lost[0]}.")
    some = np.abs(part.values).reshape(len(wanted), -1).max(1) > 0
    chosen = [int(layer) for layer, there in zip(wanted, some, strict=True) if there]
    if not chosen or strength == 0:
        return []
    if scale == "share":
        strength, scale = strength * float(np.sqrt(payload.sizes["dim"])), "rms"
    return [
        Add(where, layers=chosen, positions=positions, vector=payload.sel(layer=chosen), strength=strength, scale=scale)
    ]
