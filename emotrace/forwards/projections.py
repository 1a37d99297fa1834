"""Projections: where the last linear maps of heads and neurons are, and the norms behind them."""

from __future__ import annotations

from typing import Any

from emotrace.labels import PROJECTED, unknown
from emotrace.sites import LanguageModel, envoy
from emotrace.traced.contributions import HeadLayer
from emotrace.traced.weights import Spec


def spec(model: LanguageModel, site: str, layer: int) -> Spec:
    """What `emotrace.traced.weights.output_projection` takes.

    Args:
        model: from `emotrace.load`.
        site: ``z`` (the output projection of attention) or ``neuron`` (the down projection).
        layer: 0-based.

    Raises:
        EmotraceError: for another site, or a layer without it (as in mixtures of experts).
    """
    if site not in PROJECTED:
        raise unknown("site", site, PROJECTED, "output_projection")
    component = PROJECTED[site]
    sites = model.sites
    address = sites.address(site, layer)
    here, end = (envoy(model, sites.address(s, layer).path) for s in (component.projection, component.sublayer))
    proof = sites.proofs.get(layer)
    scale = sites.scale if proof is None else proof.scale
    return Spec(site, layer, here, end, address.width, sites.d_model, scale)


def reading_norm_path(model: LanguageModel, layer: int) -> str | None:
    """Module path of the norm that is given ``resid_mid`` of a sequential layer, or None."""
    address = model.sites.address("resid_mid", layer)
    if address.mirror is None:
        return None
    module = model._module.get_submodule(address.mirror.path)
    return None if any(p.ndim > 1 for p in module.parameters()) else address.mirror.path


def head_layer(model: LanguageModel, layer: int, readout: str, v: Any) -> HeadLayer:
    """How the heads of one layer are read, as `emotrace.traced.contributions.heads` takes it.

    The residual site read beside z is ``resid_mid``, ``resid_pre`` (post-LN), or none (parallel); the norm is that of the
    normed read-out, or LN1 of a post-LN layer.
    """
    found = spec(model, "z", layer)
    if not model.sites.has("resid_mid", layer):
        return HeadLayer(found, v, None, None)
    address = model.sites.address("resid_mid", layer)
    if address.kind != "mid":
        return HeadLayer(found, v, "resid_pre", envoy(model, address.path))
    path = reading_norm_path(model, layer) if readout == "normed" else None
    return HeadLayer(found, v, "resid_mid", None if path is None else envoy(model, path))
