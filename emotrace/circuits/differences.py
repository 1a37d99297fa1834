"""Differences: how heads and neurons differ between emotions in the same context – what a circuit adds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xarray as xr

from emotrace import arguments
from emotrace.attribution.files import save
from emotrace.datasets import Prompts, PromptsLike
from emotrace.directions.estimate import centering_weights
from emotrace.directions.groups import Groups, Within, check_within, group
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.forwards.streams import dry, fitting, origin, reductions
from emotrace.forwards.sums import Sums
from emotrace.labels import COMPONENTS, EmotraceError, unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.traced import contributions

PLACE: Final = "difference_vectors"
SITES: Final = tuple(COMPONENTS[kind].site for kind in ("head", "neuron"))


@planned
@typed
def difference_vectors(
    model: LanguageModel,
    prompts: PromptsLike,
    *,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    complete: bool = True,
    sites: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    batch_size: int = 32,
    prompts_per_chunk: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryRows, xr.Dataset]:
    """Difference vectors of heads and neurons at the last prompt token: centred means that keep their length.

    With x = z (input of the attention's output projection) or x = a (input of the MLP's) and groups g that share
    scenario and valence::

        δ_e = mean_g ( x_{g,e} − mean_{e'} x_{g,e'} )

    as `emotrace.directions.centered_mean` of a whole capture with ``unit=False``; here the prompts stream by, since every
    δ is a weighted sum of them, so memory holds one chunk of activations. Positive: more of it than the other labels have
    in the same context. ``difference_vectors.plan(…)`` says what would be done (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: with the label asked for in their text.
        label: what is contrasted.
        within: the labels that make a group. (The original's code let the valences of a scenario overwrite each other.)
        accepted: keys of accepted replies; None for all.
        complete: only groups that hold every label; False takes all with at least two.
        sites: of ``z`` and ``neuron``; None for those that the model has.
        layers: 0-based; None for every layer that has the sites.
        batch_size: prompts per forward.
        prompts_per_chunk: prompts held at a time; None chooses by size.
        out: folder for running sums and the result; a killed run continues there and ends with the same bits.
        progress: show a bar on stderr.

    Returns:
        Dataset of float32 ``z[label, layer, head, head_dim]`` and ``neuron[label, layer, unit]``, with ``z_mean`` and
        ``neuron_mean`` (no label dim): the mean over labels of the mean over groups. attrs ``z_layers`` and
        ``neuron_layers`` name the layers that have the site; the others, if any, hold 0.

    Raises:
        EmotraceError: before anything runs, for sites, layers or labels that do not exist, or no group; for sums in ``out``
            of other prompts or settings.

    Source: arXiv 2510.11328.
    """
    arguments.whole("batch_size", batch_size, 1)
    if out is not None:
        to_folder(out)
    prompts = Prompts.of(prompts)
    sites_ = model.sites
    wanted = [s for s in SITES if sites_.has(s)] if sites is None else list(dict.fromkeys(sites))
    for site in wanted:
        if site not in SITES:
            raise unknown("site", site, SITES, f"{PLACE}(sites=…)")
    if not wanted:
        raise EmotraceError(f"{sites_.model_class} has neither {' nor '.join(SITES)}: nothing to take a difference of.")
    chosen = None if layers is None else sorted({int(layer) for layer in layers})
    at = {site: list(sites_.layers(site)) if chosen is None else chosen for site in wanted}
    for site, those in at.items():
        for layer in those:
            sites_.address(site, layer)
    groups = group(prompts.table, label, within, accepted, complete)
    used = Prompts([prompts[int(i)] for i in groups.rows])
    row_bytes = 4 * sum(len(at[s]) * int(np.prod([*sites_.size(s, at[s]).values()])) for s in wanted)
    per_chunk = fitting(row_bytes) if prompts_per_chunk is None else prompts_per_chunk
    yield lambda: dry(model, used, 2 * row_bytes * (len(groups.labels) + 1), per_chunk)
    source = origin(model, used)
    settings = {
        "label": label, "labels": list(groups.labels), "within": list(check_within(prompts.table, label, within)),
        "complete": bool(complete), **{f"{site}_layers": those for site, those in at.items()},
    }  # fmt: skip
    weights = _weights(groups)
    sums = Sums(out, {"method": PLACE, **source, **settings, "per_chunk": per_chunk, "batch_size": batch_size})

    def args(rows: range) -> tuple[Any, ...]:
        return (torch.from_numpy(np.ascontiguousarray(weights[:, rows.start : rows.stop])),)

    for rows, totals in reductions(
        model, used, wanted, contributions.weighted, args, layers=chosen, prompts_per_chunk=per_chunk,
        batch_size=batch_size, start=sums.done, progress=progress, desc="differences",
    ):  # fmt: skip
        for site, total in zip(wanted, totals, strict=True):
            sums.add(site, total.numpy())
        sums.commit(rows.stop)
    found = _dataset(model, {s: sums[s] for s in wanted}, at, groups, label).assign_attrs(
        plain(
            {
                "method": "difference vectors: mean over groups of (own mean − mean over labels), last prompt token",
                "sign": f"positive = more of it under this {label} than the mean of all in the same group",
                **settings, **groups.attrs(), **source,
            }
        )
    )  # fmt: skip
    if out is not None:
        save(found, out, "differences")
    return found


def _weights(groups: Groups) -> np.ndarray:
    """Weights ``[label + 1, row]`` of the differences and, in the last row, of the mean over labels of the group means."""
    counts = groups.counts
    per_label = np.maximum((counts > 0).sum(0), 1)
    mean = 1.0 / (counts[groups.group, groups.code] * per_label[groups.code] * len(groups.labels))
    return np.vstack([centering_weights(groups), mean])


def _dataset(
    model: LanguageModel, sums: dict[str, np.ndarray], at: dict[str, list[int]], groups: Groups, label: str
) -> xr.Dataset:
    layers = sorted(set().union(*at.values()))
    found = xr.Dataset(coords={label: list(groups.labels), "layer": layers})
    for site, total in sums.items():
        size = model.sites.size(site, at[site])
        whole = np.zeros((len(total), len(layers), *size.values()), dtype=np.float32)
        whole[:, [layers.index(layer) for layer in at[site]]] = total.reshape(len(total), -1, *size.values())
        found[site] = (label, "layer", *size), whole[:-1]
        found[f"{site}_mean"] = ("layer", *size), whole[-1]
        index = next(iter(size))
        found = found.assign_coords({index: np.arange(size[index])})
    return found
