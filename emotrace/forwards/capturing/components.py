"""Components: what the norms behind heads and neurons divide by, stored beside what these hold.

A norm takes all components of a layer together, so what one of them adds behind it follows from its own activation only if what
the norm divides by is known: ρ(x) with all of them, and ρ(x − what head h writes) without each head. Both are made of the
captured rows, where the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from emotrace.forwards.entering import enter
from emotrace.forwards.projections import head_layer, spec
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.store import Variable
from emotrace.traced import contributions
from emotrace.traced.contributions import HeadLayer
from emotrace.traced.weights import Spec, follows

BYTES = 32 << 20
"""Of rows that are looked at together."""


class LayerHeads(NamedTuple):
    """The heads of one layer.

    Attributes:
        layer: how they are read; its norm and residual are None where the residual is not captured.
        z: its place in ``z``.
        residual: the cell of ``residual`` that is read with them, or None.
        after: whether a norm follows W_O.
    """

    layer: HeadLayer
    z: int
    residual: tuple[int, int] | None
    after: bool


class Neurons(NamedTuple):
    """The neurons of one layer behind which a norm stands, and their place in ``neuron``."""

    spec: Spec
    place: int


class Components:
    """What a capture stores beside ``z`` and ``neuron``.

    Args:
        model: from `emotrace.load`.
        captured: variables of the capture.

    Attributes:
        variables: in layers with a norm after W_O ``z_norm[layer, token]``, ρ of that norm, and ``z_norm_without[layer, token,
            head]``, ρ without each head; in layers whose ``resid_mid`` (post-LN: ``resid_pre``) is captured ``mid_norm`` and
            ``mid_norm_without`` likewise, of the norm that reads ``resid_mid`` (post-LN: that makes it); in layers with a norm
            after W_down ``neuron_norm[layer, token]``.

    Raises:
        EmotraceError: where neither ``z`` nor ``neuron`` is captured.
    """

    def __init__(self, model: LanguageModel, captured: Sequence[Variable]) -> None:
        self.model = model
        by_name = {v.name: v for v in captured}
        if not {"z", "neuron"} & by_name.keys():
            raise EmotraceError(
                "capture(components=True) stores what belongs to 'z' and 'neuron': capture one of them."
            )
        self.heads: list[LayerHeads] = []
        self.neurons: list[Neurons] = []
        if "z" in by_name:
            self.heads = [
                self._heads(i, layer, by_name.get("residual")) for i, layer in enumerate(by_name["z"].coords["layer"])
            ]
        if "neuron" in by_name:
            for i, layer in enumerate(by_name["neuron"].coords["layer"]):
                found = spec(model, "neuron", layer)
                if follows(found):
                    self.neurons.append(Neurons(found, i))
        self.variables: list[Variable] = []
        for name, chosen in (
            ("z_norm", [h.layer.spec.layer for h in self.heads if h.after]),
            ("mid_norm", [h.layer.spec.layer for h in self.heads if h.layer.norm is not None]),
            ("neuron_norm", [n.spec.layer for n in self.neurons]),
        ):
            if chosen:
                self.variables.append(Variable(name, ("layer",), {"layer": chosen}))
                if name != "neuron_norm":
                    size = {"head": by_name["z"].sizes["head"]}
                    self.variables.append(Variable(f"{name}_without", ("layer", "head"), {"layer": chosen}, size))

    def _heads(self, i: int, layer: int, residual: Variable | None) -> LayerHeads:
        has_mid = self.model.sites.has("resid_mid", layer)
        found = head_layer(self.model, layer, "normed" if has_mid else "residual", None)
        cell = None
        if residual is not None and found.residual in residual.coords["sublayer"] and layer in residual.coords["layer"]:
            cell = (residual.coords["layer"].index(layer), residual.coords["sublayer"].index(found.residual))
        if cell is None:
            found = found._replace(residual=None, norm=None)
        return LayerHeads(found, i, cell, follows(found.spec))

    def fill(self, arrays: dict[str, np.ndarray]) -> None:
        """Make the variables of a row group out of the others."""
        if not self.variables:
            return
        rows = next(iter(arrays[v.name].shape[1] for v in self.variables))
        row_bytes = sum(a.nbytes for n, a in arrays.items() if n in ("z", "neuron", "residual")) // max(rows, 1)
        step = max(1, BYTES // max(row_bytes, 1))
        for at in range(0, rows, step):
            part = slice(at, min(at + step, rows))
            heads, neurons = enter(
                self.model, contributions.sizes,
                [(h.layer, _rows(arrays["z"][h.z, part]), _rows(arrays["residual"][(*h.residual, part)]) if h.residual else None)
                 for h in self.heads if h.after or h.layer.norm is not None],
                [(n.spec, _rows(arrays["neuron"][n.place, part])) for n in self.neurons],
            )  # fmt: skip
            for name, values in (*heads.items(), ("neuron_norm", neurons)):
                for i, value in enumerate(values):
                    arrays[name][i, part] = value.numpy()


def _rows(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
