"""Approximate: scores of all nodes or edges at once, from a handful of passes forwards and backwards.

With a the value of a component, a′ what stands for it, m the metric, α_k = k/K for k = 0 … K and w_k the weights of the
trapezoid rule (½, 1, …, 1, ½)/K, summed over tokens and columns; the slope of an edge is that of its reader's stream:

* ``eap``: (a − a′)·∂m/∂a at the clean run (attribution patching);
* ``eap_ig_inputs``: (a − a′)·Σ_k w_k ∂m/∂a, in runs whose input is x′ + α_k (x − x′);
* ``ceap``: Σ_k (a_k − a_{k−1})·½(∂m/∂a_k + ∂m/∂a_{k−1}) in the same runs: the gradient at each step is weighted by what
  the component itself changes there, its conductance, not by the whole of a − a′;
* ``eap_ig_activations``: (a − a′)·Σ_k w_k ∂m/∂a, in clean runs in which the component's own place holds a′ + α_k (a − a′):
  all heads of a layer, or all its neurons, move together, one place after the other.

Sources: Nanda 2023 and Syed et al. 2310.10348 (eap); Hanna et al. 2403.17806 (inputs); Mueller et al. 2504.13151
(activations); 2606.16920 (conductance). The published sums take the right ends of the intervals; the trapezoid costs one
pass more and converges faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch

from emotrace.discovery.aligned import SPANS
from emotrace.discovery.batches import PairBatch, run
from emotrace.discovery.nodes import Seen
from emotrace.sites import LanguageModel

APPROXIMATE: Final[tuple[str, ...]] = ("eap", "eap_ig_inputs", "ceap", "eap_ig_activations")


class Slopes(NamedTuple):
    """What the places held in one pass, and their slopes."""

    values: list[torch.Tensor]
    gradients: list[torch.Tensor]


class Term(NamedTuple):
    """The change of every place that takes part (None elsewhere), and what the places held in one pass and their slopes."""

    change: list[torch.Tensor | None]
    values: list[torch.Tensor]
    gradients: list[torch.Tensor]


def terms(
    model: LanguageModel, batch: PairBatch, seen: Seen, method: str, steps: int, writes: Sequence[int]
) -> Iterator[Term]:
    """The passes of a method; its score is ``Σ change · slope`` over all of them.

    Args:
        model: from `emotrace.load`.
        batch: ready at the places of ``seen``.
        seen: places of writers and readers.
        method: one of `APPROXIMATE`.
        steps: K.
        writes: numbers of the places that write.
    """

    def passed(sets: dict[int, torch.Tensor]) -> Slopes:
        wanted = ("values", "gradients")
        found = run(model, batch.inputs, seen, batch.at.clean, batch.metric, sets=sets, wanted=wanted)
        return Slopes(found["values"], found["gradients"])

    def at(i: int, k: int) -> dict[int, torch.Tensor]:
        return {i: batch.others[i] + (k / steps) * (batch.values[i] - batch.others[i])}

    def only(which: Sequence[int], weight: float) -> list[torch.Tensor | None]:
        return [weight * d if i in which else None for i, d in enumerate(batch.change)]

    def weight(k: int) -> float:
        return (0.5 if k in (0, steps) else 1.0) / steps

    if method == "eap":
        yield Term(only(writes, 1.0), *passed({}))
    elif method == "eap_ig_inputs":
        for k in range(steps + 1):
            yield Term(only(writes, weight(k)), *passed(at(0, k)))
    elif method == "ceap":
        before = passed(at(0, 0))
        carried: list[torch.Tensor | None] = [None] * len(batch.values)
        for k in range(1, steps + 1):
            now = passed(at(0, k))
            half = [
                (a - b) / 2 if i in writes else None
                for i, (a, b) in enumerate(zip(now.values, before.values, strict=True))
            ]
            yield Term([h if c is None or h is None else c + h for c, h in zip(carried, half, strict=True)], *before)
            before, carried = now, half
        yield Term(carried, *before)
    else:
        for i in writes:
            for k in range(steps + 1):
                yield Term(only([i], weight(k)), *passed(at(i, k)))


def passes(method: str, steps: int, writes: int) -> int:
    """Passes of `terms`, forward and back.

    Args:
        method: one of `APPROXIMATE`.
        steps: K.
        writes: places that write.
    """
    return {"eap": 1, "eap_ig_activations": writes * (steps + 1)}.get(method, steps + 1)


def node_scores(model: LanguageModel, batch: PairBatch, seen: Seen, method: str, steps: int) -> torch.Tensor:
    """Scores by span, ``[row, span, node]``; their sum over spans is the score."""
    member = torch.stack([(batch.spans == s).float() for s in range(len(SPANS))])
    total = torch.zeros(len(batch), len(SPANS), sum(p.n for p in seen.nodes))
    for term in terms(model, batch, seen, method, steps, range(1, len(seen.places))):
        parts = []
        for p, d, g in zip(seen.nodes, term.change[1:], term.gradients[1:], strict=True):
            if d is None:
                parts.append(torch.zeros(len(batch), len(SPANS), p.n))
            else:
                parts.append(torch.einsum("sbt,btn->bsn", member, p.summed(d * g)))
        total += torch.cat(parts, -1)
    return total


def node_magnitudes(batch: PairBatch, seen: Seen) -> torch.Tensor:
    """``[row, node]``: ‖a − a′‖ of each token, summed over tokens: how much a node changes, whatever the metric."""
    found = [
        d.square().unflatten(-1, (p.n, -1)).sum(-1).sqrt().sum(1)
        for p, d in zip(seen.nodes, batch.change[1:], strict=True)
    ]
    return torch.cat(found, -1)
