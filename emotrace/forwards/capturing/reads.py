"""Reads: which sites a capture stores, as variables of the store and as steps of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from emotrace import arguments
from emotrace.labels import SUBLAYERS, EmotraceError
from emotrace.sites import Address, Site, Sites
from emotrace.store import Variable
from emotrace.traced import programs
from emotrace.traced.programs import Span
from emotrace.traced.steps import Read


class Cell(NamedTuple):
    """What is read at one place.

    Attributes:
        address: where.
        variable: of the store.
        cell: of that variable.
    """

    address: Address
    variable: str
    cell: tuple[int, ...]


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
        self._cells: list[Cell] = []
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
        self._cells.sort(key=lambda cell: cell.address.order)
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
        self._cells.append(Cell(self.sites.resolve(site, layer).seen, variable, cell))

    def program(self) -> list[Read]:
        """The steps of a trace: one read per cell, in execution order."""
        return [cell.address.read(self.sites.model, number) for number, cell in enumerate(self._cells)]

    def cells(self) -> list[list[int]]:
        """Of each variable, the numbers of its reads, in the order of its cells."""
        order = sorted(range(len(self._cells)), key=lambda number: self._cells[number].cell)
        return [[n for n in order if self._cells[n].variable == v.name] for v in self.variables]

    def targets(self, buffers: dict[str, np.ndarray]) -> list[torch.Tensor]:
        """For every read, the slice ``[token, width]`` of the buffers that it fills."""
        views = []
        for read in self._cells:
            array = torch.from_numpy(buffers[read.variable][read.cell])
            views.append(array.reshape(array.shape[0], -1) if array.ndim != 2 else array)
        return views


def rows_of(spans: Iterable[Span], firsts: Iterable[int]) -> torch.Tensor:
    """Rows in which spans are kept whose first rows are given, in the order of the spans."""
    return torch.cat([torch.arange(f, f + span.stop - span.start) for span, f in zip(spans, firsts, strict=True)])


class Sink:
    """Copies what a trace reads into buffers: only the wanted rows, each once.

    Args:
        targets: per read, ``[token, width]``.
        spans: what is wanted of this forward.
        rows: for each span, its first row in the target.
    """

    def __init__(self, targets: list[torch.Tensor], spans: Sequence[Span], rows: Sequence[int]) -> None:
        self.targets, self.spans, self.firsts = targets, tuple(spans), rows
        self.single = programs.single(self.spans)
        self.rows = rows_of(spans, rows)

    def __call__(self, number: int, value: torch.Tensor) -> None:
        """Copy one read; a loop of slices on the CPU (one copy), one gather elsewhere (one transfer)."""
        target = self.targets[number]
        if self.single is None and value.device.type == "cpu":
            for (row, start, stop), first in zip(self.spans, self.firsts, strict=True):
                target[first : first + stop - start].copy_(value[row, start:stop])
            return
        picked = programs.gather(value, self.spans, self.single)
        target[self.rows] = picked.to("cpu", target.dtype)
