"""Prepare: a capture checked against the model and planned, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emotrace import arguments, disk, store
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.edits import Edit
from emotrace.forwards import rows as rows_
from emotrace.forwards.capturing.components import Components
from emotrace.forwards.capturing.groups import fitted
from emotrace.forwards.capturing.job import CapturedMetric, CaptureJob
from emotrace.forwards.capturing.reads import Reads
from emotrace.forwards.entering import backend, enter, inputs
from emotrace.forwards.metrics import Metric, digest
from emotrace.identity import versions
from emotrace.labels import EmotraceError, Positions, check_positions, positions_in
from emotrace.secrets import command_line
from emotrace.sites import LanguageModel, Site
from emotrace.traced import requests
from emotrace.traced.steps import Measure

AVERAGED = "averaged"
"""Label of a row that is a mean: over how many positions."""


def prepared(
    model: LanguageModel, prompts: PromptsLike, sites: Sequence[str | Site] | str | Site, *, layers: Iterable[int] | int | None,
    positions: Positions, edits: Sequence[Edit] | None, batch_size: BatchSize, row_group_bytes: int, share_prefixes: bool = True,
    codec: str = "none", seed: int = 0, gradients: Metric | None = None, components: bool = False, mean: bool = False,
) -> tuple[CaptureJob, store.Plan]:  # fmt: skip
    """Everything that `capture` was given checked, and nothing run yet."""
    prompts = Prompts.of(prompts)
    table, encoder = model.sites, model.sites.encoder
    positions = check_positions(positions, "capture(positions=…)")
    arguments.batch("capture(batch_size)", batch_size)
    wanted = [sites] if isinstance(sites, (str, Site)) else list(sites)
    for site in wanted:
        if isinstance(site, Site):
            site.refuse_whole("capture(sites=…)")
    edits = [] if edits is None else edits
    edits_.check(edits, table, [p.about for p in prompts])
    edits = list(edits)
    ids = encoder.ids(prompts)
    prompt_lengths = [len(i) for i in ids]
    sequences = [i + list(p.reply_ids or ()) for i, p in zip(ids, prompts, strict=True)]
    edits_.refuse_unreached(edits, prompt_lengths, list(map(len, sequences)))
    if positions == "generated" and not any(p.reply_ids for p in prompts):
        raise EmotraceError(
            "capture(positions='generated') needs prompts that carry replies: capture never generates. "
            "Use generate, then prompts.with_replies(rows)."
        )
    batch_size = rows_.resolved(model, batch_size, max(map(len, sequences)))
    chosen = [positions_in(positions, p, len(s)) for p, s in zip(prompt_lengths, sequences, strict=True)]
    if backend(model).copies:
        share_prefixes = False  # keys and values would be sent to and fro
    dtype = "float32" if mean else str(model._module.dtype).removeprefix("torch.")
    own = _own_widths(model, [s for s in wanted if isinstance(s, Site)], sequences[0])
    reads = Reads(table, wanted, layers, dtype, own, codec)
    rows = store.Rows.of(
        prompts.keys,
        sequences,
        prompt_lengths,
        [c[-1:] for c in chosen] if mean else chosen,
        lambda i: encoder.token_texts([i])[0],
        [_averaged(p.labels, len(c)) if mean else p.labels for p, c in zip(prompts, chosen, strict=True)],
    )
    attrs = {
        **table.identity, **encoder.record, "versions": versions(), "prompts_digest": prompts.digest, "seed": seed,
        "tokens_digest": disk.digest([ids, [p.reply_ids or () for p in prompts]]),
        "command": command_line(), "sites": [s.name if isinstance(s, Site) else s for s in wanted],
        "positions": list(positions) if isinstance(positions, tuple) else positions,
        "batch_size": batch_size, "share_prefixes": share_prefixes, "edits": edits_.edits_digest(edits),
    }  # fmt: skip
    attrs |= {"reduce": "mean"} if mean else {}
    differentiated = None
    if gradients is not None:
        differentiated = _differentiated(model, reads, gradients, prompts, prompt_lengths, chosen)
        attrs |= {
            "gradients": gradients.name, "metric_digest": digest(gradients),
            "metric_reads": [list(read) for read in gradients.reads(model)],
            "layers_without_resid_mid": [k for k in range(table.n_layers) if not table.has("resid_mid", k)],
        }  # fmt: skip
    beside = None
    if components:
        beside = Components(model, reads.variables)
        attrs |= {"components": True}
    variables = [*reads.variables, *(() if beside is None else beside.variables)]
    plan = fitted(store.Plan.make(rows, variables, attrs, row_group_bytes), row_group_bytes)
    job = CaptureJob(
        model, reads, edits, prompts, prompt_lengths=prompt_lengths, sequences=sequences, chosen=chosen, batch_size=batch_size,
        share=share_prefixes, differentiated=differentiated, components=beside, mean=mean,
    )  # fmt: skip
    return job, plan


def _averaged(labels: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Labels of a prompt, and of how many positions its row is the mean."""
    if AVERAGED in labels:
        raise EmotraceError(f'capture(reduce="mean") has a label {AVERAGED!r} of its own: rename that of the prompts.')
    return {**labels, AVERAGED: n}


def _differentiated(
    model: LanguageModel, reads: Reads, metric: Metric, prompts: Prompts, prompt_lengths: Sequence[int], chosen: Sequence[range]
) -> CapturedMetric:  # fmt: skip
    """The metric's own reads, and variables for its gradients.

    Raises:
        EmotraceError: for what is no metric, one whose slope is zero, rows after its token in a causal model, or a metric
            that is read before every captured site.
    """
    if not isinstance(metric, Metric):
        raise EmotraceError(
            f"capture(gradients=…): {type(metric).__name__} is no metric: it needs name, reads(model) and lower(…)."
        )
    if getattr(metric, "flat_at_clean", False):
        raise EmotraceError(
            f"capture(gradients=…): the slope of {metric.name!r} is zero at every place of the un-edited run."
        )
    if model.sites.encoder.causal:
        for prompt, length, rows in zip(prompts, prompt_lengths, chosen, strict=True):
            if len(rows) and rows.stop > length:
                raise EmotraceError(
                    f"capture(gradients={metric.name}): the metric is read at the last prompt token, position {length - 1} of "
                    f"{prompt.key!r}, and no later token changes it: the gradient at position {rows.stop - 1} is 0. Choose "
                    "positions of the prompt (positions='last', 'prompt' or a span), and capture the reply without gradients."
                )
    places = [model.sites.address(site, layer).seen for site, layer in metric.reads(model)]
    number = reads.with_gradients(max(place.order for place in places), metric.name)
    steps = [Measure(place.order, place.lower(model), number + 1 + i) for i, place in enumerate(places)]
    return CapturedMetric(metric, steps, number)


def _own_widths(model: LanguageModel, own: list[Site], ids: list[int]) -> dict[str, int]:
    """Width of each place of the user's own, from one small forward.

    Raises:
        EmotraceError: if a place holds no ``[batch, token, width]`` tensor, or its module does not run.
    """
    widths: dict[str, int] = {}
    probe = ids[:4]
    fed = inputs(model, [probe])
    for site in own:
        read = model.sites.resolve(site).read(model)
        try:
            shape = tuple(enter(model, requests.shape, fed, [read]))
        except Exception as error:  # nnsight's or the model's own words, of whatever class
            raise EmotraceError(f"{site.name} cannot be read: {(str(error).splitlines() or [''])[0]}") from error
        if len(shape) != 3 or shape[:2] != (1, len(probe)):
            raise EmotraceError(f"{site.name} holds shape {shape}; capture stores [batch, token, width] tensors.")
        widths[site.name] = shape[2]
    return widths
