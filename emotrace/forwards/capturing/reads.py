"""Reads: which sites a capture stores, as variables of the store and as steps of a trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from emotrace import arguments
from emotrace.labels import GRADIENT, METRIC, SUBLAYERS, EmotraceError
from emotrace.sites import Address, Site, Sites
from emotrace.store import Variable
from emotrace.traced import programs
from emotrace.traced.model import TracedModel
from emotrace.traced.programs import Span
from emotrace.traced.steps import Leaf, Read, ordered


class ReadCell(NamedTuple):
    """What is read at one place, or differentiated to.

    Attributes:
        address: where; None for what the metric is.
        variable: of the store.
        cell: of that variable.
        leaf: whether it is the gradient at this place.
    """

    address: Address | None
    variable: str
    cell: tuple[int, ...]
    leaf: bool = False

    @property
    def order(self) -> float:
        """When it happens in a forward; what follows from the others comes last."""
        if self.address is None:
            return math.inf
        return (self.address if self.leaf else self.address.seen).order

    def steps(self, model: TracedModel, number: int) -> list[Read | Leaf]:
        """What a trace does for it; nothing where it follows from the others."""
        if self.address is None:
            return []
        if self.leaf:
            return [Leaf(self.address.order, self.address.lower(model), number)]
        return [self.address.seen.read(model, number)]


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
        self._cells: list[ReadCell] = []
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
        self._cells.sort(key=lambda cell: cell.order)
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
        self._cells.append(ReadCell(self.sites.resolve(site, layer), variable, cell))

    def program(self) -> list[Read | Leaf]:
        """The steps of a trace: one read per cell, in execution order."""
        return ordered(step for number, cell in enumerate(self._cells) for step in cell.steps(self.sites.model, number))

    def with_gradients(self, last: float, metric: str) -> int:
        """Beside every variable the gradient at it, in layers all of whose sites come before a metric is read; and the metric.

        Args:
            last: when the metric reads its last place.
            metric: its name, for the message.

        Returns:
            The number of the metric's cell.

        Raises:
            EmotraceError: where the metric is read before every site.
        """
        for v in tuple(self.variables):
            leaves = [
                cell._replace(variable=f"{v.name}{GRADIENT}", leaf=True)
                for cell in self._cells
                if cell.variable == v.name
            ]
            late = {cell.cell[:1] for cell in leaves if cell.order > last}  # by layer; () for what has none
            layers = v.coords.get("layer", ())
            kept = [i for i in range(len(layers)) if (i,) not in late]
            if () in late or (layers and not kept):
                continue
            coords = {**v.coords, "layer": [layers[i] for i in kept]} if layers else v.coords
            self.variables.append(replace(v, name=f"{v.name}{GRADIENT}", coords=coords))
            for cell in leaves:
                if not layers:
                    self._cells.append(cell)
                elif cell.cell[0] in kept:
                    self._cells.append(cell._replace(cell=(kept.index(cell.cell[0]), *cell.cell[1:])))
        if not any(cell.leaf for cell in self._cells):
            raise EmotraceError(
                f"capture(gradients={metric}): it is read before every captured site, so none of them changes it. Capture "
                "earlier layers, or read the metric later."
            )
        self.variables.append(Variable(METRIC, (), {}, {}))
        self._cells.sort(key=lambda cell: cell.order)
        self._cells.append(ReadCell(None, METRIC, ()))
        return len(self._cells) - 1

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


def rows_of(spans: Iterable[Span], firsts: Iterable[int], mean: bool = False) -> torch.Tensor:
    """Rows in which spans are kept whose first rows are given, in the order of the spans; of their means, these alone."""
    if mean:
        return torch.tensor(list(firsts), dtype=torch.long)
    return torch.cat([torch.arange(f, f + span.stop - span.start) for span, f in zip(spans, firsts, strict=True)])


class Sink:
    """Copies what a trace reads into buffers: only the wanted rows, each once.

    Args:
        targets: per read, ``[token, width]``.
        spans: what is wanted of this forward.
        rows: for each span, its first row in the target.
        mean: keep the mean over each span, in that row.
    """

    def __init__(
        self, targets: list[torch.Tensor], spans: Sequence[Span], rows: Sequence[int], mean: bool = False
    ) -> None:
        self.targets, self.spans, self.firsts, self.mean = targets, tuple(spans), rows, mean
        self.single = programs.single(self.spans)
        self.rows = rows_of(spans, rows, mean)

    def __call__(self, number: int, value: torch.Tensor) -> None:
        """Copy one read; a loop of slices on the CPU (one copy), one gather elsewhere (one transfer)."""
        target = self.targets[number]
        if self.mean:
            target[self.rows] = programs.means(value, self.spans).to("cpu", target.dtype)
            return
        if self.single is None and value.device.type == "cpu":
            for (row, start, stop), first in zip(self.spans, self.firsts, strict=True):
                target[first : first + stop - start].copy_(value[row, start:stop])
            return
        picked = programs.gather(value, self.spans, self.single)
        target[self.rows] = picked.to("cpu", target.dtype)
