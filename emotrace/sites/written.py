"""Written: the proven sites of a model as JSON values, and back."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Final

from emotrace.sites.address import Address
from emotrace.sites.attached import Sites
from emotrace.sites.equations import LayerProof
from emotrace.sites.table import Moment

OF_A_RUN: Final = frozenset(
    {"identity", "remote", "beginnings", "twin", "again", "kept_bytes", "_model", "_encoder", "_places"}
)  # fmt: skip
"""What is set once a table is attached, and no part of the proof."""


def written(sites: Sites) -> dict[str, Any]:
    """A table as JSON values."""
    found = {f.name: getattr(sites, f.name) for f in fields(sites) if f.name not in OF_A_RUN}
    return found | {
        "addresses": [[s, k, asdict(a)] for s, by_layer in sites.addresses.items() for k, a in by_layer.items()],
        "unproven": list(map(list, sites.unproven.items())),
        "overwritten": sorted(map(list, sites.overwritten)),
        "cached": sorted(sites.cached),
        "proofs": [[layer, asdict(proof)] for layer, proof in sites.proofs.items()],
    }


def read(found: dict[str, Any]) -> Sites:
    """The table that was written."""
    addresses: dict[str, dict[int | None, Address]] = {}
    for site, layer, address in found["addresses"]:
        addresses.setdefault(site, {})[layer] = _address(address)
    rest: dict[str, Any] = {
        "addresses": addresses,
        "unproven": dict(found["unproven"]),
        "overwritten": frozenset(map(tuple, found["overwritten"])),
        "cached": frozenset(found["cached"]),
        "moments": {path: Moment(*moment) for path, moment in found["moments"].items()},
        "proofs": {layer: _proof(proof) for layer, proof in found["proofs"]},
    }
    return Sites(**(found | rest))


def _address(found: dict[str, Any]) -> Address:
    inner: dict[str, Any] = {
        name: None if found[name] is None else _address(found[name]) for name in ("base", "mirror")
    }
    return Address(**(found | inner))


def _proof(found: dict[str, Any]) -> LayerProof:
    rest: dict[str, Any] = {name: None if found[name] is None else tuple(found[name]) for name in ("norms", "gate")}
    rest["sites"] = {site: _address(a) for site, a in found["sites"].items()}
    return LayerProof(**(found | rest))
