"""Reads: which sites a capture stores, as variables of the store and as steps of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from emotrace import arguments
from emotrace.labels import SUBLAYERS, EmotraceError
from emotrace.sites import Address, Site, Sites
from emotrace.store import Variable
from emotrace.traced import programs


class Reads:
    """The sites of one capture.

    Args:
        sites: of the model.
        wanted: names of sites, and places of the user's own.
        layers: layers to store; None for every layer that has all wanted sites of a variable.
        dtype: of the model's activations, as `emotrace.store.Variable.source_dtype` says.
        own_widths: width of each place of the user's own.
        codec: of the store.

    Raises:
        EmotraceError: for no site, a site twice, one that the model lacks or that is not stored, or a layer without it.
    """

    def __init__(
        self, sites: Sites, wanted: Sequence[str | Site], layers: Iterable[int] | int | None, dtype: str,
        own_widths: dict[str, int], codec: str = "none",
    ) -> None:  # fmt: skip
        self.sites = sites
        self.variables: list[Variable] = []
        self._steps: list[tuple[Address, str | Site, int | None, str, tuple[int, ...]]] = []
        names = [s.name if isinstance(s, Site) else s for s in wanted]
        if not names:
            raise EmotraceError("capture(sites=()) stores nothing: name at least one site.")
        for i, name in enumerate(names):
            if name in names[:i]:
                raise EmotraceError(f"capture(sites=…) names {name!r} twice.")
        if "attn_pattern" in names:
            raise EmotraceError("attn_pattern is shown, not stored: read it in a trace with model.sites.read.")
        explicit = None if layers is None else sorted(arguments.wholes("capture(layers)", layers))
        residual = [s for s in SUBLAYERS if s in names]
        if residual:
            chosen = self._layers(residual, explicit)
            coords = {"layer": chosen, "sublayer": residual}
            size = {"dim": sites.address(residual[0], chosen[0]).width}
            self.variables.append(Variable("residual", ("layer", "sublayer", "dim"), coords, size, dtype, codec))
            for i, layer in enumerate(chosen):
                for j, site in enumerate(residual):
                    self._add(site, layer, "residual", (i, j))
        for item, name in zip(wanted, names, strict=True):
            if name in SUBLAYERS:
                continue
            if isinstance(item, Site):
                size = {"dim": own_widths[name]}
                self.variables.append(Variable(name.replace("/", "|"), tuple(size), {}, size, dtype, codec))
                self._add(item, None, name, ())
            elif not sites.layers(name):
                size = sites.size(name)
                self.variables.append(Variable(name, tuple(size), {}, size, dtype, codec))
                self._add(item, None, name, ())
            else:
                chosen = self._layers([name], explicit)
                size = sites.size(name, chosen)
                self.variables.append(Variable(name, ("layer", *size), {"layer": chosen}, size, dtype, codec))
                for i, layer in enumerate(chosen):
                    self._add(name, layer, name, (i,))
        self._steps.sort(key=lambda step: step[0].order)
        self.free = {v.name for v in self.variables if v.name == "logits"} | {
            name.replace("/", "|") for item, name in zip(wanted, names, strict=True) if isinstance(item, Site)
        }  # where a model may say −∞

    def _layers(self, names: Sequence[str], explicit: list[int] | None) -> list[int]:
        if explicit is not None:
            for name in names:
                for layer in explicit:
                    self.sites.address(name, layer)  # refuses what is not there
            return explicit
        common = sorted(set.intersection(*(set(self.sites.layers(name)) for name in names)))
        if not common:
            spans = "; ".join(f"{name}: {self.sites.layers(name)}" for name in names)
            raise EmotraceError(f"no layer has all of {', '.join(names)} ({spans}). Capture them separately.")
        return common

    def _add(self, site: str | Site, layer: int | None, variable: str, cell: tuple[int, ...]) -> None:
        address = self.sites.resolve(site, layer)
        if address.mirror is not None:  # resid_mid is read where the next norm is given it: the same value, no sum
            address = address.mirror
        self._steps.append((address, site, layer, variable, cell))

    def program(self) -> list[tuple]:
        """The steps of a trace: one read per cell, in execution order."""
        return [
            ("read", address.order, address.lower(self.sites._model), number)
            for number, (address, *_) in enumerate(self._steps)
        ]

    def cells(self) -> list[list[int]]:
        """Of each variable, the numbers of its reads, in the order of its cells."""
        numbered = enumerate(self._steps)
        order = sorted(numbered, key=lambda pair: pair[1][4])
        return [[number for number, step in order if step[3] == v.name] for v in self.variables]

    def targets(self, buffers: dict[str, np.ndarray]) -> list[torch.Tensor]:
        """For every read, the slice ``[token, width]`` of the buffers that it fills."""
        views = []
        for _, _, _, variable, cell in self._steps:
            array = torch.from_numpy(buffers[variable][cell])
            views.append(array.reshape(array.shape[0], -1) if array.ndim != 2 else array)
        return views


class Sink:
    """Copies what a trace reads into buffers: only the wanted rows, each once.

    Args:
        targets: per read, ``[token, width]``.
        spans: ``(batch row, first column, one past the last, first row of the target)`` in this forward.
    """

    def __init__(self, targets: list[torch.Tensor], spans: Sequence[tuple[int, int, int, int]]) -> None:
        self.targets, self.spans = targets, spans
        self.uniform: Any = None
        self.rows = torch.cat([torch.arange(r, r + t1 - t0) for _, t0, t1, r in spans])
        if all(t1 - t0 == 1 for _, t0, t1, _ in spans):
            self.uniform = (torch.tensor([b for b, *_ in spans]), torch.tensor([t for _, t, _, _ in spans]))

    def __call__(self, number: int, value: torch.Tensor) -> None:
        """Copy one read; a loop of slices on the CPU (one copy), one gather elsewhere (one transfer)."""
        target = self.targets[number]
        if self.uniform is None and value.device.type == "cpu":
            for b, t0, t1, row in self.spans:
                target[row : row + t1 - t0].copy_(value[b, t0:t1])
            return
        picked = programs.gather(value, tuple((b, t0, t1) for b, t0, t1, _ in self.spans), self.uniform)
        target[self.rows] = picked.to("cpu", target.dtype)
