"""Soft prompts inside a trace: vectors in place of embeddings, and the scores of a few answers at one token per row."""

from __future__ import annotations

from typing import Any, NamedTuple

import nnsight
import torch

from emotrace.traced import places, programs
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place


class Stations(NamedTuple):
    """Where vectors go in and logits come out.

    Attributes:
        embedding: place of the token embedding.
        head: place of the input of the unembedding; None where it computes every column.
        output: place of the model's own output.
    """

    embedding: Place
    head: Any
    output: Place


def scores(
    model: TracedModel, inputs: dict, stations: Stations, vectors: torch.Tensor, columns: torch.Tensor, at: torch.Tensor,
    answers: list, program: list, n_edits: int,
) -> tuple:  # fmt: skip
    """One forward with vectors in place of embeddings; differentiable in the vectors where gradients are enabled.

    Args:
        model: an nnsight model.
        inputs: ids (anything but padding where the vectors go), mask and whatever else the forward takes.
        stations: where vectors go in and logits come out.
        vectors: ``[prompt, width]``, or ``[batch, prompt, width]``: one prompt for each row.
        columns: ``[batch, prompt]``, where they go.
        at: ``[batch]``, the column that is read.
        answers: token ids whose logits are returned.
        program: steps of edits (`traced.steps`) in the order of execution.
        n_edits: how many edits to count.

    Returns:
        Logits ``[batch, answer]`` in at least float32, and how often each edit was carried out.
    """
    batch, width = inputs["input_ids"].shape
    with model.trace(inputs):
        fired = [0] * n_edits
        _insert(stations.embedding, vectors, columns, batch)
        programs.forward(program, batch, 0, width, fired, None)
        head = stations.head
        if head is not None:  # the unembedding acts on each column alone: the others need not be computed
            head.envoy.input = _picked(places.fetch(head, None, batch), at)[:, None]
        whole: Any = places.fetch(stations.output, None, batch)
        logits = whole.logits
        chosen = logits[:, 0] if head is not None else _picked(logits, at)
        chosen = chosen[:, torch.tensor(answers, device=chosen.device)]
        chosen = nnsight.save(chosen if chosen.dtype == torch.float64 else chosen.float())
        counts = nnsight.save(list(fired))
    return chosen, counts


def _insert(place: Place, vectors: torch.Tensor, columns: torch.Tensor, batch: int) -> None:
    """Vectors in place of the embeddings at their columns; the other embeddings are constants."""
    h = places.fetch(place, None, batch).detach()
    index = columns.to(h.device)[:, :, None].expand(-1, -1, h.shape[-1])
    places.put(place, h.scatter(1, index, vectors.to(h.device, h.dtype).expand(batch, -1, -1)))


def _picked(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """One column of each row of ``[batch, token, width]``."""
    return value[torch.arange(len(at), device=value.device), at.to(value.device)]
