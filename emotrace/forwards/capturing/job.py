"""Job: the forwards of a capture: which prompts go together, what they share, and where their rows belong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from emotrace import edits as edits_
from emotrace.datasets import Prompts
from emotrace.edits import Edit
from emotrace.forwards import beginnings, caches, finite
from emotrace.forwards.capturing.components import Components
from emotrace.forwards.capturing.prefixes import Prefix, PrefixBatch, prefix_batches, prefixes
from emotrace.forwards.capturing.reads import Reads, Sink
from emotrace.forwards.entering import enter, inputs
from emotrace.forwards.metrics import Captured, Clean, Metric
from emotrace.sites import LanguageModel
from emotrace.store.plan import RowGroup
from emotrace.traced import derivatives, requests
from emotrace.traced.caches import BeginningRecipe, Level
from emotrace.traced.circuits import LoweredMetric
from emotrace.traced.programs import Span
from emotrace.traced.requests import Forward
from emotrace.traced.steps import Measure, ordered


class Filling(NamedTuple):
    """One forward, and where its rows go.

    Attributes:
        forward: as `emotrace.traced.requests` takes it.
        rows: for each of its spans, its first row in the row group.
        prompts: of its rows.
        last: column of the last token of each prompt, which a metric is read at.
    """

    forward: Forward
    rows: tuple[int, ...]
    prompts: tuple[int, ...]
    last: tuple[int, ...]


class _Wants(NamedTuple):
    """Which rows of the store are wanted of each prompt, ``(start, stop)``, and the first of the row group."""

    wants: dict[int, tuple[int, int]]
    offset: int


class Start(NamedTuple):
    """What a prompt begins with: a row of the last level, and how many of its tokens that holds."""

    row: int
    length: int


class CapturedMetric(NamedTuple):
    """A metric whose gradients are captured.

    Attributes:
        metric: read at the last token of each prompt.
        steps: its reads, with numbers behind those of the cells.
        number: of the cell that holds what it is.
    """

    metric: Metric
    steps: list[Measure]
    number: int


class CaptureJob:
    """Everything that fills the buffers of one row group."""

    def __init__(
        self, model: LanguageModel, reads: Reads, edits: list[Edit], prompts: Prompts, *, prompt_lengths: list[int],
        sequences: list[list[int]], chosen: list[range], batch_size: int, share: bool,
        differentiated: CapturedMetric | None = None, components: Components | None = None, mean: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.reads, self.edits, self.prompts = model, reads, edits, prompts
        self.prompt_lengths, self.sequences, self.chosen = prompt_lengths, sequences, chosen
        self.batch_size, self.mean = batch_size, mean
        self.fired = [0] * len(edits)
        self.row_starts = np.concatenate([[0], np.cumsum([bool(c) if mean else len(c) for c in chosen])])
        self.differentiated, self.components = differentiated, components
        self.steps = ordered([*reads.program(), *(differentiated.steps if differentiated else ())])
        self.setup, self.options, self.memo = caches.setup(model, self.steps), caches.options(model), {}
        self.share = share and not edits and model.sites.encoder.causal
        self.exact: bool | None = None  # asked only where prompts begin alike

    def refuse_lost(self, group: RowGroup, buffers: dict[str, np.ndarray]) -> None:
        """Refuse a row group with numbers that are not finite.

        Raises:
            EmotraceError: naming site, layer and prompt.
        """
        lost = finite.lost(self.reads.variables, buffers, self.reads.free)
        if lost is None:
            return
        variable, cell, row = lost
        at = dict(zip(variable.cell_dims, variable.labels(cell), strict=True))
        site = at.get("sublayer", variable.name)
        what = f"capture of {site}" + (f" of layer {at['layer']}" if "layer" in at else "")
        of = next(p.prompt for p in group.prompts if p.start <= group.start + row < p.stop)
        raise finite.refusal(what, self.model, [self.item(of)], self.edits)

    def item(self, i: int) -> finite.Item:
        """A prompt with its reply."""
        n, ids = self.prompt_lengths[i], self.sequences[i]
        return finite.Item(self.prompts[i].key, ids[:n], ids[n:], self.prompts[i].about)

    def forwards(self, group: RowGroup) -> Iterator[Filling]:
        """The forwards of one row group: its prompts by what they share, then by length, in batches."""
        wants = {p.prompt: (p.start, p.stop) for p in group.prompts}
        members = list(wants)
        place = _Wants(wants, group.start)
        shared: list[Prefix] = []
        sequences, firsts = [self.sequences[i] for i in members], [self._span(i, *wants[i])[0] for i in members]
        if self.share and self.exact is not False:
            shared = prefixes(sequences, firsts)
            if self.exact is None and any(prefix.length for prefix in shared):  # padding behind both levels
                self.exact = 3 * max(map(len, self.sequences)) <= beginnings.shared_up_to(self.model)
        if not self.share or not self.exact:
            yield from self._batches(members, place)
            return
        for one in prefix_batches(shared, sequences, firsts, self.batch_size):
            yield from self._behind(one, members, place)

    def _behind(self, one: PrefixBatch, members: list[int], place: _Wants) -> Iterator[Filling]:
        """Those of some prefixes: first the prompts that share more, in blocks of branches, then the others."""
        starts = [prefix.length for prefix in one.prefixes]
        ids = [self.sequences[members[prefix.members[0]]][: prefix.length] for prefix in one.prefixes]
        prefix = (Level(inputs(self.model, ids)),) if starts[0] else ()
        for at in range(0, len(one.several), self.batch_size):
            block = one.several[at : at + self.batch_size]
            own = [self.sequences[members[b.members[0]]][starts[row] : b.length] for row, b in block]
            level = Level(inputs(self.model, own), tuple(row for row, _ in block) if prefix else ())
            begun = {members[m]: Start(n, b.length) for n, (_, b) in enumerate(block) for m in b.members}
            yield from self._batches(list(begun), place, (*prefix, level), begun)
        begun = {members[m]: Start(row, starts[row]) for row, m in one.alone}
        yield from self._batches(list(begun), place, prefix, begun)

    def _batches(
        self, inside: list[int], place: _Wants, levels: tuple[Level, ...] = (), begun: dict[int, Start] | None = None
    ) -> Iterator[Filling]:
        """Prompts behind the rows of some levels, by the length of what is left of them."""
        skips = [begun[i].length if begun else 0 for i in inside]
        rest = [len(self.sequences[i]) - skip for i, skip in zip(inside, skips, strict=True)]
        for batch in beginnings.batches(self.model, rest, self.batch_size):
            rows = [inside[n] for n in batch]
            recipe = BeginningRecipe(levels, tuple(begun[i].row for i in rows)) if levels and begun else None
            yield self._forward(rows, place, [skips[n] for n in batch], recipe)

    def _span(self, prompt: int, start: int, stop: int) -> tuple[int, int]:
        """Positions of a prompt that some of its rows stand for (rows of one prompt are consecutive positions; a mean all)."""
        if self.mean:
            return self.chosen[prompt].start, self.chosen[prompt].stop
        first = self.chosen[prompt].start + start - int(self.row_starts[prompt])
        return first, first + stop - start

    def _forward(self, batch: list[int], place: _Wants, skips: list[int], recipe: BeginningRecipe | None) -> Filling:
        """One forward: of each prompt what follows its first ``skips`` tokens, which the recipe holds."""
        encoder = self.model.sites.encoder
        fed = inputs(self.model, [self.sequences[i][skip:] for i, skip in zip(batch, skips, strict=True)])
        width = fed["input_ids"].shape[1]
        spans, firsts, read = [], [], []
        for row, (i, skip) in enumerate(zip(batch, skips, strict=True)):
            start, stop = place.wants[i]
            pad = width - (len(self.sequences[i]) - skip) if encoder.causal else 0
            first, last = self._span(i, start, stop)
            spans.append(Span(row, first - skip + pad, last - skip + pad))
            firsts.append(start - place.offset)
            read.append(self.prompt_lengths[i] - 1 - skip + pad)
        program, count = None, 0
        if self.edits:
            lengths = [len(self.sequences[i]) for i in batch]
            lowered = edits_.lower(
                self.edits, self.model.sites, [self.prompts[i].about for i in batch],
                [self.prompt_lengths[i] for i in batch], lengths, width, encoder.causal,
            )  # fmt: skip
            program, count = lowered.program(self.steps), lowered.count
        fed = fed | self.options if recipe is None else fed
        forward = Forward(fed, tuple(spans), recipe, None, program, count, mean=self.mean)
        return Filling(forward, tuple(firsts), tuple(batch), tuple(read))

    def _ready(self, filling: Filling) -> Forward:
        """A forward with the metric that it differentiates, lowered for its prompts."""
        if self.differentiated is None:
            return filling.forward
        metric, steps, number = self.differentiated
        about = [Captured.of(self.prompts[i].key, self.prompts[i].labels) for i in filling.prompts]
        clean = Clean(lambda: self._clean(filling, [step.number for step in steps]), len(steps))
        lowered = LoweredMetric(*metric.lower(self.model, about, clean))
        what = derivatives.Differentiated(lowered, torch.tensor(filling.last), number)
        return filling.forward._replace(differentiated=what)

    def _clean(self, filling: Filling, numbers: list[int]) -> list[torch.Tensor]:
        """What the metric's places hold at its token, ``[row, width]`` each, from a forward of its own."""
        program = [s for s in filling.forward.program or self.steps if s.kind not in ("read", "leaf")]
        spans = tuple(Span(row, column, column + 1) for row, column in enumerate(filling.last))
        one = filling.forward._replace(program=program, spans=spans)
        values, _ = enter(self.model, requests.captured, [], [one], [[n] for n in numbers], self.setup, {})
        return [value[0] for value in values]

    def carry_out(self, fillings: Iterable[Filling], targets: list[torch.Tensor]) -> list[list[int]]:
        """Forwards, here, whose rows are copied to where they belong; per forward how often each edit fired."""
        return [
            requests.forward(
                self.model,
                self.steps,
                self._ready(f),
                self.setup,
                self.memo,
                Sink(targets, f.forward.spans, f.rows, self.mean),
            )
            for f in fillings
        ]

    def count(self, fired: Sequence[int]) -> None:
        """Add how often each edit fired in a forward."""
        self.fired = [a + b for a, b in zip(self.fired, fired, strict=True)]

    def arguments(self, fillings: Sequence[Filling]) -> tuple:
        """What `requests.captured` takes."""
        return self.steps, [self._ready(filling) for filling in fillings], self.reads.cells(), self.setup, self.memo
