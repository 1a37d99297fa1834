"""Table: a model's proven sites, where each is and how large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from numbers import Integral
from typing import Any, NamedTuple

import pandas as pd

from emotrace.labels import SITE_DIMS, SITES, EmotraceError, unknown
from emotrace.sites.address import Address
from emotrace.sites.equations import LayerProof


class Moment(NamedTuple):
    """When a module was called in a forward, and when it returned."""

    called: int
    returned: int


@dataclass(repr=False)
class SiteTable:
    """What a model has, where it is, and how well that was proven.

    Attributes:
        model_class: class of the transformers model.
        form: ``sequential``, ``parallel``, ``post-ln`` or ``mixed``: how a layer adds attention and MLP; ``stream`` where that
            is not known, and only what goes from layer to layer is.
        scale: c in ``resid_pre + c·(attn_out + mlp_out) == resid_post``.
        closure_error: largest relative deviation of that equation over the layers.
        n_layers: number of blocks.
        n_heads: query heads, as the configuration says; what a layer has is `heads`.
        n_kv_heads: key-value heads, likewise.
        vocab_size: rows of the input embedding: token ids are below it.
        addresses: site → layer (None for global sites) → address.
        unproven: layer → reason, where the residual stream could not be closed.
        overwritten: (path, side) of every tensor that the model changes in place after a module had it.
        cached: paths of modules that are given a key-value cache beside their input.
        moments: path → when a module was called in the probe, and when it returned, at its first call.
        attn_implementation: of the model that was probed; ``attn_pattern`` exists under ``eager`` only.
        proofs: layer → the equations that were shown in it.
        identity: what manifests say of the model (see `emotrace.identity`).
        beginnings: which prompts may share a forward and its first tokens (`emotrace.forwards.beginnings`).
    """

    model_class: str
    form: str
    scale: float
    closure_error: float
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    addresses: dict[str, dict[int | None, Address]]
    unproven: dict[int, str] = field(default_factory=dict)
    overwritten: frozenset[tuple[str, str]] = frozenset()
    cached: frozenset[str] = frozenset()
    moments: dict[str, Moment] = field(default_factory=dict, repr=False, compare=False)
    attn_implementation: str = ""
    proofs: dict[int, LayerProof] = field(default_factory=dict, repr=False, compare=False)
    identity: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    beginnings: Any = field(default=None, repr=False, compare=False)

    # -- what there is ------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites that some layer has, in the order of `emotrace.labels.SITES`."""
        return tuple(s for s in SITES if s in self.addresses)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return next(iter(self.addresses["resid_post"].values())).width

    @property
    def d_ff(self) -> int | None:
        """Width of the MLP (``neuron``); None where no layer has neurons, or layers differ (see `size`)."""
        widths = {a.width for a in self.addresses.get("neuron", {}).values()}
        return widths.pop() if len(widths) == 1 else None

    @property
    def head_dim(self) -> int | None:
        """Width of one head's z; None where no layer has z with known heads, or layers differ (see `size`)."""
        widths = {a.width // a.heads for a in self.addresses.get("z", {}).values() if a.heads}
        return widths.pop() if len(widths) == 1 else None

    def heads(self, layer: int, site: str = "z") -> int:
        """Number of heads of one layer: of its ``z``, or of ``attn_pattern``.

        Head h is the h-th of so many equal parts of z; in a layer of linear attention these are its value heads.

        Raises:
            EmotraceError: for a layer without the site, or whose heads are not known.
        """
        found = self.address(site, layer).heads
        if not found:
            known = [i for i in self.layers(site) if self.addresses[site][i].heads]
            others = f" They are known in layers {_spans(known)}." if known else ""
            raise EmotraceError(
                f"the heads of layer {layer} of {self.model_class} are not known: no equal parts of its {site} "
                f"({self.addresses[site][layer].width} wide) were shown to be computed apart from each other.{others} "
                "Edit whole layers, or units of z."
            )
        return found

    def layers(self, site: str) -> tuple[int, ...]:
        """Layers that have a site; empty for global sites."""
        self._known(site)
        return tuple(sorted(k for k in self.addresses[site] if k is not None))

    def has(self, site: str, layer: int | None = None) -> bool:
        """Whether the model has a site (in a layer, if one is given)."""
        by_layer = self.addresses.get(site, {})
        return bool(by_layer) and (layer is None or layer in by_layer)

    def size(self, site: str, layers: Iterable[int] | int | None = None) -> dict[str, int]:
        """Dims and sizes of one token's value: ``{"dim": d}``, ``{"head": h, "head_dim": k}`` or ``{"unit": m}``.

        Args:
            site: one of `names`.
            layers: that are meant; None for all that have it.

        Raises:
            EmotraceError: if these layers are not of one size, with the sizes and their layers; if heads are not known.
        """
        self._known(site)
        by_layer = self.addresses[site]
        if None in by_layer:
            return {"dim": by_layer[None].width}
        asked: Iterable[int] = self.layers(site)
        if layers is not None:
            asked = [int(layers)] if isinstance(layers, Integral) else [int(i) for i in layers]  # type: ignore[union-attr]
        sizes: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for layer in asked:
            sizes.setdefault(tuple(self._size(site, layer).items()), []).append(layer)
        if len(sizes) != 1:
            listed = "; ".join(f"{_shape(size)} in layers {_spans(those)}" for size, those in sizes.items())
            choices = " or ".join(f"layers={those}" for those in sizes.values())
            raise EmotraceError(
                f"the layers of {self.model_class} differ in {site!r}: {listed}. One array has one size: take layers of the "
                f"same, {choices}."
            )
        return dict(next(iter(sizes)))

    def _size(self, site: str, layer: int) -> dict[str, int]:
        width, dims = self.address(site, layer).width, SITE_DIMS[site]
        n = self.heads(layer) if len(dims) > 1 else width
        return dict(zip(dims, (n, width // n), strict=False))

    def address(self, site: str, layer: int | None = None) -> Address:
        """The address of a site.

        Args:
            site: one of `names`.
            layer: 0-based; None only for global sites.

        Raises:
            EmotraceError: if the model lacks the site, the layer does not exist, or that layer lacks the site.
        """
        self._known(site)
        by_layer = self.addresses[site]
        if None in by_layer:
            if layer is not None:
                raise EmotraceError(f"site {site!r} belongs to the whole model, not to layer {layer}.")
            return by_layer[None]
        if layer is None:
            raise EmotraceError(f"site {site!r} needs a layer: 0 to {self.n_layers - 1}.")
        if not isinstance(layer, Integral) or isinstance(layer, bool):
            raise EmotraceError(f"layer {layer!r} of site {site!r} is no whole number.")
        if not 0 <= layer < self.n_layers:
            raise EmotraceError(
                f"{self.model_class} has no layer {layer} for site {site!r}: layers are 0 to {self.n_layers - 1}."
            )
        if layer not in by_layer:
            proof = self.proofs.get(int(layer))
            why = self.unproven.get(int(layer)) or (None if proof is None else proof.lacking.get(site))
            has = ", ".join(s for s in self.names if layer in self.addresses[s]) or "none"
            raise EmotraceError(
                f"layer {layer} of {self.model_class} has no site {site!r}: it exists in layers {_spans(self.layers(site))}. "
                f"Layer {layer} has: {has}{f' ({why})' if why else ''}."
            )
        return by_layer[layer]

    def table(self) -> pd.DataFrame:
        """One row per site: layers, module path of the first, side, shape of one token's value, proof's error."""
        rows = []
        for site in self.names:
            by_layer = self.addresses[site]
            first = next(iter(by_layer.values()))
            rows.append(
                {
                    "site": site,
                    "layers": "–" if None in by_layer else _spans(self.layers(site)),
                    "path": first.path,
                    "side": first.side + ("" if first.index is None else f"[{first.index}]"),
                    "shape": self._shapes(site),
                    "error": max(a.error for a in by_layer.values()),
                    "writable": all(a.writable for a in by_layer.values()),
                }
            )
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return f"{self.describe()}\nsites: {', '.join(self.names)}"

    def __repr__(self) -> str:
        return f"<Sites of {self.describe()}>"

    def _repr_html_(self) -> str:
        return f"<div><p>{escape(self.describe())}</p>{self.table().to_html(border=0, index=False)}</div>"

    def describe(self) -> str:
        """One line on the form and its proof."""
        scale = "" if self.scale == 1.0 else f", residual scale {self.scale:.6g}"
        heads = f"{self.n_heads} heads ({self.n_kv_heads} KV)" if self.n_heads else "no heads"
        return (
            f"{self.model_class}: {self.n_layers} layers, d_model {self.d_model}, {heads}, "
            f"{self.form}{scale}, closure error {self.closure_error:.1e}"
            f"{'' if self.beginnings is None else f'; {self.beginnings}'}"
        )

    # -- helpers ------------------------------------------------------------------------------------------------

    def _known(self, site: str) -> None:
        if site in self.addresses:
            return
        if site not in SITES:
            raise unknown("site", site, self.names, self.model_class)
        raise EmotraceError(
            f"{self.model_class} has no site {site!r}{self._why(site)} It has: {', '.join(self.names)}."
        )

    def _why(self, site: str) -> str:
        """Why a site of the vocabulary is missing, and the closest that there is."""
        kind = {"parallel": "parallel residual: attention and MLP read the same state", "mixed": "layers differ"}
        if self.form == "stream" and site not in ("attn_pattern", "final_norm", "logits"):
            return (
                f" (its layers were not shown to add attention and MLP to the residual stream: {self.unproven[0]}). The "
                "closest is 'resid_post'."
            )
        pattern = (
            " (no attention module returns one row of weights per head and token)"
            if self.attn_implementation == "eager"
            else f" under attn_implementation={self.attn_implementation!r}: load it with attn_implementation='eager'"
        )
        reasons: Mapping[str, tuple[str, tuple[str, ...]]] = {
            "resid_mid": (f" ({kind.get(self.form, 'no module takes it')})", ("attn_out", "resid_pre")),
            "neuron": (
                " (no projection whose output is the whole MLP branch, as in mixtures of experts)",
                ("mlp_out",),
            ),
            "neuron_pre": (" (no activation module that makes the neurons was found)", ("neuron", "mlp_out")),
            "attn_pattern": (pattern, ("z", "attn_out")),
            "z": (" (no output projection of whole heads was proven)", ("attn_out",)),
            "o_proj_out": (" (no output projection of whole heads was proven)", ("attn_out",)),
            "final_norm": (" (no norm is applied to the last layer's output)", ("resid_post",)),
            "logits": (" (no output embedding runs in its forward)", ("final_norm", "resid_post")),
        }
        reason, near = reasons.get(site, ("", ()))
        close = [repr(s) for s in near if s in self.addresses]
        return f"{reason}.{f' The closest is {close[0]}.' if close else ''}"

    def _shapes(self, site: str) -> str:
        """The shape of one token's value in words; of several shapes each with its layers."""
        if site == "attn_pattern":
            return "heads × tokens × tokens"
        sizes: dict[str, list[int]] = {}
        for layer, a in self.addresses[site].items():
            known = layer is not None and (site != "z" or a.heads)
            shape = _shape(self._size(site, layer).items()) if known and layer is not None else f"dim {a.width}"
            sizes.setdefault(shape, []).append(-1 if layer is None else layer)
        if len(sizes) == 1:
            return next(iter(sizes))
        return "; ".join(f"{shape} (layers {_spans(those)})" for shape, those in sizes.items())


def _shape(size: Iterable[tuple[str, int]]) -> str:
    return " × ".join(f"{name} {n}" for name, n in size)


def _spans(layers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in spans)
