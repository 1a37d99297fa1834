"""Centred: directions of a label out of prompts that pass through a model once, of which only sums are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from emotrace import arguments, disk
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.directions.estimate import centering_weights, labelled, weighted_sums
from emotrace.directions.groups import Within, group
from emotrace.directions.source import Source, source
from emotrace.edits import Edit
from emotrace.files import to_folder
from emotrace.forwards.capturing import capture
from emotrace.forwards.rows import asked
from emotrace.forwards.streams import origin
from emotrace.forwards.sums import Sums
from emotrace.labels import EmotraceError, Positions, check_positions, positions_in
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site

PER_CHUNK = 256
"""Prompts whose means are held at a time."""


@typed
def stream_directions(
    model: LanguageModel,
    prompts: PromptsLike,
    sites: Sequence[str | Site] | str | Site = ("resid_mid", "resid_post"),
    *,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    complete: bool = True,
    positions: Positions = "generated",
    layers: Iterable[int] | int | None = None,
    edits: Sequence[Edit] | None = None,
    batch_size: BatchSize = 32,
    unit: bool = True,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """What `emotrace.directions.centered_mean` gives of activations that were averaged over positions, without storing any.

    With m_p the mean of prompt p over its positions, and w_{e,p} its weight in the centred mean (a function of labels alone)::

        c_e = Σ_p w_{e,p} m_p,    v_e = c_e / ‖c_e‖₂

    The sums (float64, ``[label, layer, sublayer, dim]``) are all that is kept, whatever the number of tokens. They are committed
    after every `PER_CHUNK` prompts, and shared by ranks (`emotrace.ranks.taking`, SLURM, torchrun): the bits are those of one
    process.

    Args:
        model: from `emotrace.load`.
        prompts: with the labels; ``generated`` takes replies that they carry.
        sites: of one variable: sublayers, or one other site.
        label: what the directions are of.
        within: the labels that make a group; None for one group of all prompts.
        accepted: keys of the accepted replies; None for all.
        complete: only groups that hold every label; False takes all with at least two.
        positions: over which a prompt is averaged: policy or span.
        layers: 0-based; None for every layer that has the sites.
        edits: applied in the same forwards.
        batch_size: prompts per forward, or ``auto`` for what fits.
        unit: unit vectors; False keeps c_e itself.
        out: folder of the running sums; a killed run continues there.
        progress: show a bar.

    Returns:
        ``direction[label, layer, sublayer, dim]`` float32 with the coordinate ``norm``.

    Raises:
        EmotraceError: for unknown labels, no group, sites of several variables, no position of any prompt, or an ``out`` that
            holds sums of another run.
    """
    arguments.batch("batch_size", batch_size)
    positions = check_positions(positions, "stream_directions(positions=…)")
    if out is not None:
        to_folder(out)
    prompts = Prompts.of(prompts)
    batch_size = asked(model, batch_size, prompts, begun=None if out is None else Path(out, "direction_sums.json"))
    ids = model.sites.encoder.ids(prompts)
    spans = [
        positions_in(positions, len(i), len(i) + len(p.reply_ids or ())) for p, i in zip(prompts, ids, strict=True)
    ]
    there = [i for i, span in enumerate(spans) if len(span)]
    if not there:
        raise EmotraceError(f"stream_directions(positions={positions!r}): no prompt has such a position.")
    table = prompts.table.iloc[there].reset_index(drop=True)
    groups = group(table, label, within, accepted, complete)
    used = np.sort(groups.rows)
    weights = np.zeros((len(groups.labels), len(there)))
    weights[:, groups.rows] = centering_weights(groups)
    weights = weights[:, used]
    coded = Prompts(
        replace(prompts[there[row]], messages=None, text=None, token_ids=tuple(ids[there[row]]))
        for row in used.tolist()
    )
    where = {"layers": layers if layers is None or isinstance(layers, int) else [*layers], "positions": positions}
    edits = [] if edits is None else [*edits]

    def means(some: range) -> Source:
        acts = capture(
            model,
            coded[some.start : some.stop],
            sites,
            **where,
            edits=edits,
            reduce="mean",
            batch_size=batch_size,
            progress=False,
        )
        if len(acts.variables) > 1:
            raise EmotraceError(
                f"stream_directions(sites=…): {', '.join(acts.variables)} are several variables; stream one after the other."
            )
        variable = next(iter(acts.variables))
        return source(acts[variable], variable, "all")

    example = means(range(1))
    settings = {
        **origin(model, prompts), **where, "method": "centered_mean", "sites": example.place(0, 0), "label": label,
        "shape": example.shape, "weights": disk.digest(weights), "prompts": coded.digest, "edits": edits_.edits_digest(edits),
        "per_chunk": PER_CHUNK, "batch_size": batch_size,
    }  # fmt: skip
    sums = Sums(out, settings, "direction_sums")
    with progress_bar(total=len(coded), desc="directions", unit="prompt", enabled=progress) as bar:
        bar.update(sums.done)
        for some in sums.left(range(at, min(at + PER_CHUNK, len(coded))) for at in range(0, len(coded), PER_CHUNK)):
            found, scale = weighted_sums(means(some), np.arange(len(some)), weights[:, some.start : some.stop])
            sums.add("weighted", found)
            sums.add("squares", scale**2 * len(some))
            sums.commit(some.stop)
            bar.update(len(some))
    attrs = {name: value for name, value in example.attrs.items() if name not in ("plan_digest", "source", "selection")}
    whole = replace(example, attrs={**attrs, **origin(model, prompts)})
    sign = f"positive = more of this {label} than the mean of all" + (" in the same group" if within else "")
    return labelled(
        whole, sums["weighted"], np.sqrt(sums["squares"] / len(coded)), (label, groups.labels), unit,
        {
            "method": "centered_mean", "sign": sign, "label": label, "within": list(groups.within),
            "complete": int(complete), "reduce": "mean", **groups.attrs(),
        },
        positions,
    )  # fmt: skip
