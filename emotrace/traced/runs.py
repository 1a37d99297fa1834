"""Runs: the few with-blocks in which emotrace enters a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import nnsight
import torch

from emotrace.traced import alike, called, inner, passing, places, programs
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
from emotrace.traced.steps import Sink, ordered


def session(model: TracedModel, function: Callable, args: tuple, backend: object) -> Any:
    """Call a function of this package where a model lives, as one job: ``function(model, *args)``.

    Args:
        model: an nnsight model.
        function: enters the model as often as it likes, and returns plain values.
        args: plain values, and places of this model.
        backend: what carries the job.

    Returns:
        A list of the one value that was returned, and of how many bytes of weights came by calls; None where the backend only
        packs the job.
    """
    found = None
    with model.session(backend=backend):
        found = nnsight.save([function(model, *args), called.taken(model)])
    return found  # noqa: RET504 - the block's value comes back by its name


def capture(
    model: TracedModel,
    inputs: dict,
    program: list,
    sink: Sink | None = None,
    n_edits: int = 0,
    columns: tuple | None = None,
) -> list:
    """One forward that reads and edits, and computes nothing after its last step where the block runs beside the model.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        program: steps (`traced.steps`) in the order of execution.
        sink: called with ``(number, value)`` at each read.
        n_edits: how many edits to count.
        columns: ``(start, stop)`` of the columns that this forward computes; None where it computes all.

    Returns:
        How often each edit was carried out.
    """
    batch, width = inputs["input_ids"].shape
    start, stop = (0, width) if columns is None else columns
    with torch.no_grad(), model.trace(inputs) as tracer:
        fired = [0] * n_edits
        programs.forward(program, batch, start, stop, fired, sink)
        counts = nnsight.save(list(fired))
        inner.stop(model, tracer)
    return counts


SEEDLESS = (
    "tokens would be drawn where the model is, and a block that runs apart from it (an ordinary key) cannot seed that: generate "
    "greedily, or with a trusted key"
)


class Seed:
    """Called by transformers with scores: before the first token is drawn, it seeds the random state of where tokens are drawn.

    A block may run apart from that place; its own random state is another.

    Args:
        seed: of the sampling.
    """

    def __init__(self, seed: int) -> None:
        self.seed: int | None = seed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores as they are."""
        if self.seed is not None:
            torch.manual_seed(self.seed)
            self.seed = None
        return scores


class Generation(NamedTuple):
    """What is to be generated from one batch.

    Attributes:
        inputs: ids and mask.
        program: steps (`traced.steps`) in the order of execution.
        counter: place before all others, of which the columns are counted that arrive in a forward.
        steps: most new tokens.
        n_edits: how many edits to count.
        options: for the model's own ``generate``.
        seed: of the sampling; None where nothing is drawn.
        before: columns whose keys and values are in a cache among the options.
        ends: tokens that end a reply, where rows that ended leave; empty where they stay.
        here: whether the block runs in the process that asks, and the modules of its model may be hooked.
        last: `Read` of the last stream, by which a block that runs apart from its model watches for numbers that are none.
    """

    inputs: dict
    program: list
    counter: Place
    steps: int
    n_edits: int
    options: dict
    seed: Any = None
    before: int = 0
    ends: tuple = ()
    here: bool = False
    last: Any = None


def generate(model: TracedModel, one: Generation) -> tuple:
    """Generate with edits in every forward, at the columns that it computes.

    With a cache each column passes once; where a forward computes everything again, so does everything that is edited in it.
    What is edited alike at all of them is left to the modules (`alike`).

    Args:
        model: an nnsight model.
        one: what is to be generated.

    Returns:
        ``(ids, counts)``: ids with the prompt in front, and how often each edit was carried out.
    """
    last = one.inputs["input_ids"].shape[1] + one.steps - 1
    if not (one.here and alike.whole(model, one.program, one.before, last)):
        return _entered(model, one)
    fired = [0] * one.n_edits
    with alike.Hooked(one.program, one.before, fired):
        ids, _ = _entered(model, one._replace(program=[]))
    return ids, fired


def _entered(model: TracedModel, one: Generation) -> tuple:
    """`generate`, all of it by a trace."""
    batch, width = one.inputs["input_ids"].shape
    program, last = one.program, width + one.steps - 1
    options, apart = one.options, inner.weightless(model)
    watches = options.get("logits_processor", ())
    if apart:  # what transformers calls with scores is code, and none of ours crosses to where the model is
        if one.seed is not None:
            raise ValueError(SEEDLESS)
        options = {name: value for name, value in options.items() if name != "logits_processor"}
        program = ordered([*program, *([] if one.last is None else [one.last])])
    elif one.seed is not None:
        options = options | {"logits_processor": [Seed(one.seed), *watches]}
    seen: list = []
    with torch.no_grad(), model.generate(**options) as tracer:
        counts = nnsight.save([0] * one.n_edits)
        with tracer.invoke(one.inputs):
            done = one.before
            for _ in tracer.iter[:] if program else ():
                arrived = places.columns(one.counter, batch)
                start = passing.first(arrived, done, width)
                done = start + arrived
                programs.forward(program, batch, start, done, counts, lambda _, value: seen.append(_finite(value)))
                kept = done > width and start > 0  # a cache: what has passed does not pass again
                if done >= last or (kept and not apart and not programs.reaches(program, done)):
                    break
        with tracer.invoke():
            ids = nnsight.save(tracer.result)
    for watch in watches if apart else ():
        watch.looked(ids, seen)
    return ids, counts


def _finite(value: torch.Tensor) -> list:
    """Of each row, whether the numbers of its last column are finite."""
    return torch.isfinite(value[:, -1]).all(-1).tolist()
