"""Batches: pairs as padded rows, what their components hold in the clean run, and what stands for them when they go.

Ablations: ``counterfactual`` puts the component's value at the aligned token of the counterfactual, ``mean`` its mean over
all prompts and counterfactuals at tokens of the same span (see `emotrace.discovery.aligned.SPANS`), ``zero`` nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from emotrace import arguments
from emotrace.arguments import BatchSize
from emotrace.discovery.aligned import SPANS, Pair, Pairs
from emotrace.discovery.nodes import Seen
from emotrace.forwards import beginnings, finite, rows
from emotrace.forwards.entering import enter, inputs
from emotrace.forwards.metrics import Metric
from emotrace.labels import unknown
from emotrace.sites import LanguageModel
from emotrace.traced import circuits

ABLATIONS: Final = ("counterfactual", "mean", "zero")
VALUES: Final = 4
"""Of every place: the clean and the other value, what stands for it, and its slope."""


UNMEASURED: Final = circuits.LoweredMetric(circuits.linear, ())
"""Of a batch that is not ready."""


class Columns(NamedTuple):
    """A column of each row, in both prompts of its pair."""

    clean: torch.Tensor
    counterfactual: torch.Tensor


class Repeated(NamedTuple):
    """Whole batches one after the other: inputs of the clean prompts, column of their last token, and the metric."""

    inputs: dict[str, Any]
    at: torch.Tensor
    metric: circuits.LoweredMetric


@dataclass
class PairBatch:
    """Some pairs, ready to run.

    Attributes:
        pairs: in order.
        inputs: of the clean prompts.
        other: of the counterfactuals.
        at: of the last prompt token.
        index: ``[row, token]``, column of the counterfactual that stands against a clean column.
        spans: ``[row, token]``, place in `SPANS`; −1 for padding.
        values: of every place in the clean run.
        others: what stands for them.
        clean: metric of the clean run, ``[row]``.
        counterfactual: metric of the counterfactual.
        metric: lowered.
    """

    pairs: Sequence[Pair]
    inputs: dict[str, Any]
    other: dict[str, Any]
    at: Columns
    index: torch.Tensor
    spans: torch.Tensor
    values: list[torch.Tensor] = field(default_factory=list)
    others: list[torch.Tensor] = field(default_factory=list)
    clean: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    counterfactual: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    metric: circuits.LoweredMetric = UNMEASURED

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def change(self) -> list[torch.Tensor]:
        """Clean values minus what stands for them; 0 at padding."""
        return [a - b for a, b in zip(self.values, self.others, strict=True)]

    def refuse_lost(self, model: LanguageModel, value: torch.Tensor, what: str) -> None:
        """Refuse what was made of the batch, ``[row, …]``, where it is not finite.

        Raises:
            EmotraceError: naming the pair, and site and layer where the model itself is at fault.
        """
        good = torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else torch.isfinite(value)
        if bool(good.all()):
            return
        pair = self.pairs[int((~good).nonzero()[0])]
        items = [finite.Item(pair.key, pair.clean), finite.Item(f"{pair.key} (counterfactual)", pair.counterfactual)]
        raise finite.refusal(f"{what} of {pair.key!r} is not a finite number", model, items)

    def repeated(self, times: int) -> Repeated:
        """Inputs, columns and metric of the batch several times over, whole batches one after the other."""
        if times == 1:
            return Repeated(self.inputs, self.at.clean, self.metric)
        again = tuple(_again(a, times, len(self)) for a in self.metric.args)
        fed = {k: _again(v, times, len(self)) for k, v in self.inputs.items()}
        return Repeated(fed, self.at.clean.repeat(times), self.metric._replace(args=again))


def rows_of(model: LanguageModel, batch_size: BatchSize, pairs: Pairs, seen: Seen) -> int:
    """Pairs at a time: what was asked for, or for ``auto`` what fits with what is held of both prompts to differentiate.

    Raises:
        EmotraceError: for what is neither.
    """
    arguments.batch("batch_size", batch_size)
    longest = max((max(len(p.clean), len(p.counterfactual)) for p in pairs), default=1)
    places, layers = sum(place.width for place in seen.places), model.sites.n_layers
    return rows.resolved(model, batch_size, longest, VALUES * places + layers * rows.LIVE * model.sites.d_model)


def ready(
    model: LanguageModel,
    pairs: Pairs,
    metric: Metric,
    seen: Seen,
    ablation: str,
    batch_size: int,
    means: list | None = None,
) -> Iterator[PairBatch]:
    """Batches with what their components hold, one at a time.

    Args:
        model: from `emotrace.load`.
        pairs: in order; rows of a batch are neighbours.
        metric: what is measured.
        seen: places.
        ablation: one of `ABLATIONS`.
        batch_size: pairs at a time.
        means: of `span_means`, needed by ``mean``.

    Raises:
        EmotraceError: for an unknown ablation, before anything runs; for a metric that is not finite.
    """
    if ablation not in ABLATIONS:
        raise unknown("ablation", ablation, ABLATIONS, "ablation=…")
    for some in _neighbours(model, pairs, batch_size):
        batch = _batch(model, pairs[some.start : some.stop])
        clean = run(model, batch.inputs, seen, batch.at.clean, None, wanted=("values",))
        lowered = circuits.LoweredMetric(*metric.lower(model, batch.pairs, clean["metric"]))
        batch.values, batch.metric = clean["values"], lowered
        batch.clean = lowered.function(clean["metric"], *lowered.args).detach()
        other = run(model, batch.other, seen, batch.at.counterfactual, None, wanted=("values",))
        batch.counterfactual = lowered.function(other["metric"], *lowered.args).detach()
        for value in (batch.clean, batch.counterfactual):
            batch.refuse_lost(model, value, "the metric")
        batch.others = [
            _stands(batch, i, value, aligned, ablation, means)
            for i, (value, aligned) in enumerate(zip(batch.values, other["values"], strict=True))
        ]
        yield batch


def span_means(model: LanguageModel, pairs: Pairs, seen: Seen, batch_size: int) -> list[torch.Tensor]:
    """``[span, width]`` of each place: means over prompts and counterfactuals, each as often as it occurs in the pairs."""
    sums: list[torch.Tensor] = []
    counts = torch.zeros(len(SPANS), dtype=torch.float64)
    for some in _neighbours(model, pairs, batch_size):
        batch = _batch(model, pairs[some.start : some.stop])
        theirs = torch.full_like(batch.other["attention_mask"].cpu(), -1)
        for row, spans in enumerate(batch.spans):  # a counterfactual token has the span of those that stand against it
            theirs[row, batch.index[row][spans >= 0]] = spans[spans >= 0]
        for ids, columns, spans in (
            (batch.inputs, batch.at.clean, batch.spans),
            (batch.other, batch.at.counterfactual, theirs),
        ):
            values = run(model, ids, seen, columns, None, wanted=("values",))["values"]
            member = torch.stack([(spans == s).double() for s in range(len(SPANS))])
            counts += member.sum((1, 2))
            parts = [torch.einsum("sbt,btw->sw", member, v.double()) for v in values]
            sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
    return [(s / counts.clamp(min=1)[:, None]).float() for s in sums]


def run(
    model: LanguageModel, inputs: dict[str, Any], seen: Seen, at: torch.Tensor, metric: circuits.LoweredMetric | None, *,
    sets: dict[int, torch.Tensor] | None = None, blends: dict[int, circuits.Blend] | None = None, wanted: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """`emotrace.traced.circuits.forward` at these places."""
    return enter(model, circuits.forward, inputs, seen.steps, at, metric, sets or {}, blends or {}, wanted)


def _stands(
    batch: PairBatch, i: int, value: torch.Tensor, other: torch.Tensor, ablation: str, means: list | None
) -> torch.Tensor:
    real = (batch.spans >= 0)[..., None]
    if ablation == "counterfactual":
        rows = torch.arange(len(batch))[:, None]
        return torch.where(real, other[rows, batch.index], value)
    if ablation == "zero":
        return torch.where(real, torch.zeros_like(value), value)
    assert means is not None
    return torch.where(real, means[i][batch.spans.clamp(min=0)], value)


def _neighbours(model: LanguageModel, pairs: Pairs, size: int) -> list[range]:
    """Pairs in order: their clean prompts run together, and so do their counterfactuals."""
    beginnings.refuse_coupled(model, "circuit discovery")
    return beginnings.neighbours(model, [(len(p.clean), len(p.counterfactual)) for p in pairs], size)


def _batch(model: LanguageModel, pairs: Sequence[Pair]) -> PairBatch:
    left = model.sites.encoder.causal
    clean, other = [list(p.clean) for p in pairs], [list(p.counterfactual) for p in pairs]
    widths = [max(map(len, s)) for s in (clean, other)]
    index = torch.zeros(len(pairs), widths[0], dtype=torch.long)
    spans = torch.full((len(pairs), widths[0]), -1)
    at = torch.zeros(2, len(pairs), dtype=torch.long)
    for row, p in enumerate(pairs):
        mine, theirs = (w - len(s) if left else 0 for w, s in zip(widths, (p.clean, p.counterfactual), strict=True))
        here = slice(mine, mine + len(p.clean))
        index[row, here] = torch.tensor(p.index) + theirs
        spans[row, here] = torch.tensor(p.spans)
        at[0, row], at[1, row] = mine + len(p.clean) - 1, theirs + len(p.counterfactual) - 1
    return PairBatch(pairs, inputs(model, clean), inputs(model, other), Columns(*at), index, spans)


def _again(value: object, times: int, rows: int) -> object:
    """Repeats whatever has one entry per row."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
        return value.repeat(times, *[1] * (value.ndim - 1))
    return value
