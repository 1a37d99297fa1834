"""Runs: the few with-blocks in which emotrace enters a model."""

from __future__ import annotations

from typing import Any

import nnsight
import torch

from emotrace.traced import programs


def session(model: Any, function: Any, args: tuple, backend: Any) -> Any:
    """Call a function of this package where a model lives, as one job: ``function(model, *args)``.

    Args:
        model: an nnsight model.
        function: enters the model as often as it likes, and returns plain values.
        args: plain values, and places of this model.
        backend: what carries the job.

    Returns:
        A list of the one value that was returned; None where the backend only packs the job.
    """
    found = None
    with model.session(backend=backend):
        found = nnsight.save([function(model, *args)])
    return found  # noqa: RET504 - the block's value comes back by its name


def capture(model: Any, inputs: dict, program: list, batch: int, columns: tuple, n_edits: int, sink: Any) -> list:
    """One forward that reads and edits, and computes nothing after its last step.

    Args:
        model: an nnsight model.
        inputs: ids, mask and whatever else the forward takes.
        program: sorted steps, see `programs`.
        batch: rows.
        columns: ``(start, stop)`` of the columns that this forward computes.
        n_edits: how many edits to count.
        sink: called with ``(number, value)`` at each read.

    Returns:
        How often each edit was carried out.
    """
    with torch.no_grad(), model.trace(inputs) as tracer:
        fired = [0] * n_edits
        programs.forward(program, batch, columns[0], columns[1], fired, sink)
        counts = nnsight.save(list(fired))
        tracer.stop()
    return counts


def generate(
    model: Any, inputs: dict, program: list, steps: int, batch: int, n_edits: int, options: dict, seed: int | None
) -> tuple:
    """Generate with edits in the prefill and at every decoding step.

    Args:
        model: an nnsight model.
        inputs: ids and mask.
        program: sorted steps, see `programs`.
        steps: how many forwards the edits reach into (1 = the prefill only).
        batch: rows.
        n_edits: how many edits to count.
        options: for the model's own ``generate``.
        seed: of the sampling; None where nothing is drawn.

    Returns:
        ``(ids, counts)``: ids with the prompt in front, and how often each edit was carried out.
    """
    width = inputs["input_ids"].shape[1]
    options = dict(options)
    cached = options.pop("use_cache", True)  # the generation configuration says it to the model
    if seed is not None:
        torch.manual_seed(seed)
    with torch.no_grad(), model.generate(**options) as tracer:
        counts = nnsight.save([0] * n_edits)
        with tracer.invoke(inputs):
            for step in tracer.iter[:steps]:
                start = 0 if step == 0 or not cached else width + step - 1
                programs.forward(program, batch, start, width + step, counts, None)
        with tracer.invoke():
            ids = nnsight.save(tracer.result)
    return ids, counts
