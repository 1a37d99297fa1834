"""Differences: how heads and neurons differ between emotions in the same context – what a circuit adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments
from emotrace.arguments import BatchSize
from emotrace.attribution.chunked import require_whole
from emotrace.attribution.files import kept
from emotrace.datasets import Prompts, PromptsLike
from emotrace.directions.estimate import centering_weights, weighted_sums
from emotrace.directions.groups import Groups, Within, group
from emotrace.directions.source import provenance_of, source
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.labels import COMPONENTS, KINDS, RUN_ORDER, SITE_DIMS, EmotraceError, unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations
from emotrace.store.asked import of_acts

if TYPE_CHECKING:  # it imports torch, which differences of stored activations do without
    from emotrace.forwards.passes import Reduction

PLACE: Final = "difference_vectors"
METHOD: Final = "difference vectors: mean over groups of (own mean − mean over labels)"
SITES: Final = tuple(COMPONENTS[kind].site for kind in RUN_ORDER if kind in KINDS)


def _stored(
    acts: Activations,
    *,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    complete: bool = True,
    sites: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    out: str | Path | None = None,
) -> xr.Dataset:
    """`difference_vectors` of stored activations."""
    if out is not None:
        to_folder(out)
    wanted = _wanted(
        sites, [s for s in SITES if s in acts.variables], f"{acts.path} holds {', '.join(acts.variables)}:"
    )
    for site in wanted:
        if site not in acts.variables:
            raise unknown("variable", site, acts.variables, f"{PLACE}, of {acts.path}")
        require_whole(acts, site, SITE_DIMS[site][1:], PLACE)
    narrowed = acts
    if layers is not None:
        asked = sorted(arguments.wholes(f"{PLACE}(layers)", layers))
        for site in wanted:
            for layer in asked:
                if layer not in (known := acts[site]["layer"].values.tolist()):
                    raise unknown("layer", layer, known, f"{PLACE}, of {site!r} in {acts.path}")
        narrowed = acts.where(layer=asked)
    table = acts.tokens
    starts = np.flatnonzero(np.append(True, np.diff(table["prompt"]) != 0))
    prompts = table.iloc[starts].reset_index(drop=True)
    groups = group(prompts, label, within, accepted, complete)
    counts = np.diff(np.append(starts, len(table)))
    used = np.concatenate([np.arange(int(starts[i]), int(starts[i] + counts[i])) for i in groups.rows])
    of_prompt = _weights(groups) / counts[groups.rows]
    weights = np.repeat(of_prompt, counts[groups.rows], axis=1)
    sums, at, sizes = {}, {}, {}
    for site in wanted:
        rows = source(narrowed, site, "all")
        sums[site] = weighted_sums(rows, used, weights)[0][:, :, 0]
        at[site] = rows.array["layer"].values.tolist()
        sizes[site] = {d: int(rows.array.sizes[d]) for d in SITE_DIMS[site]}
    settings = _settings(groups, at)
    about = {
        "method": f"{METHOD}, mean over a prompt's rows", **settings, **groups.attrs(), "n_token_rows": len(used),
        **provenance_of(acts),
    }  # fmt: skip
    names = {site: acts.sel(site)[SITE_DIMS[site][0]].values for site in wanted}
    found = _described(_dataset(sums, at, sizes, groups, names), about, label)
    return kept(found, out, "differences")


@of_acts(_stored)
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
    batch_size: BatchSize = 32,
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
    in the same context.
    ``difference_vectors(acts, …)`` are those of stored activations, without a model; a prompt with several rows counts as their
    mean. ``difference_vectors.plan(…)`` says what would be done (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: with the label asked for in their text.
        label: what is contrasted.
        within: the labels that make a group. (The original's code let the valences of a scenario overwrite each other.)
        accepted: keys of accepted replies; None for all.
        complete: only groups that hold every label; False takes all with at least two.
        sites: of ``z`` and ``neuron``; None for those that the model has.
        layers: 0-based; None for every layer that has the sites.
        batch_size: prompts per forward, or ``auto`` for what fits.
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
    from emotrace.forwards.passes import one_pass

    prompts = Prompts.of(prompts)
    groups = group(prompts.table, label, within, accepted, complete)
    used = Prompts([prompts[int(i)] for i in groups.rows])
    reduction = differences_reduced(model, used, groups, np.arange(len(used)), sites, layers)
    found = yield from one_pass(
        model,
        used,
        reduction,
        method=PLACE,
        batch_size=batch_size,
        per_chunk=prompts_per_chunk,
        out=out,
        progress=progress,
    )
    return kept(found, out, "differences")


def differences_reduced(
    model: LanguageModel,
    prompts: Prompts,
    groups: Groups,
    rows: np.ndarray,
    sites: Sequence[str] | None,
    layers: Iterable[int] | None,
) -> Reduction:
    """The sums of a pass that `difference_vectors` is made of.

    Args:
        model: from `emotrace.load`.
        prompts: that pass; those that no group has weigh 0.
        groups: of some of them.
        rows: of every row of the groups, which of the prompts it is.
        sites: before the projections, ``z`` and ``neuron``; None for those that the model has.
        layers: None for all.
    """
    import torch

    from emotrace.forwards.passes import Reduction
    from emotrace.forwards.streams import origin
    from emotrace.traced import contributions

    sites_ = model.sites
    wanted = _wanted(sites, [s for s in SITES if sites_.has(s)], f"{sites_.model_class}:")
    chosen = None if layers is None else sorted(arguments.wholes(f"{PLACE}(layers)", layers))
    at = {site: list(sites_.layers(site)) if chosen is None else chosen for site in wanted}
    for site, those in at.items():
        for layer in those:
            sites_.address(site, layer)
    sizes = {site: sites_.size(site, at[site]) for site in wanted}
    row_bytes = {s: 4 * len(at[s]) * int(np.prod([*sizes[s].values()])) for s in wanted}
    weights = np.zeros((len(groups.labels) + 1, len(prompts)))
    weights[:, rows] = _weights(groups)
    source_ = origin(model, Prompts([prompts[int(i)] for i in rows]))
    settings = _settings(groups, at)

    def args(part: range) -> tuple[Any, ...]:
        return wanted, torch.from_numpy(np.ascontiguousarray(weights[:, part.start : part.stop]))

    def finish(sums: Mapping[str, np.ndarray]) -> xr.Dataset:
        about = {"method": f"{METHOD}, last prompt token", **settings, **groups.attrs(), **source_}
        return _described(_dataset(sums, at, sizes, groups), about, groups.label)

    return Reduction(
        name="differences",
        at=at,
        function=contributions.weighted,
        args=args,
        row_bytes=row_bytes,
        size=2 * sum(row_bytes.values()) * (len(groups.labels) + 1),
        settings={**source_, **settings},
        begin=lambda: finish,
    )


def _wanted(sites: Sequence[str] | None, there: list[str], of: str) -> list[str]:
    """The sites asked for, or those that are there."""
    wanted = there if sites is None else list(dict.fromkeys(sites))
    for site in wanted:
        if site not in SITES:
            raise unknown("site", site, SITES, f"{PLACE}(sites=…)")
    if not wanted:
        raise EmotraceError(f"{of} there is neither {' nor '.join(SITES)}: nothing to take a difference of.")
    return wanted


def _settings(groups: Groups, at: Mapping[str, list[int]]) -> dict[str, Any]:
    return {
        "label": groups.label, "labels": list(groups.labels), "within": list(groups.within), "complete": bool(groups.complete),
        **{f"{site}_layers": those for site, those in at.items()},
    }  # fmt: skip


def _described(found: xr.Dataset, about: Mapping[str, Any], label: str) -> xr.Dataset:
    sign = f"positive = more of it under this {label} than the mean of all in the same group"
    return found.assign_attrs(plain({"sign": sign, **about}))


def _weights(groups: Groups) -> np.ndarray:
    """Weights ``[label + 1, row]`` of the differences and, in the last row, of the mean over labels of the group means."""
    counts = groups.counts
    per_label = np.maximum((counts > 0).sum(0), 1)
    mean = 1.0 / (counts[groups.group, groups.code] * per_label[groups.code] * len(groups.labels))
    return np.vstack([centering_weights(groups), mean])


def _dataset(
    sums: Mapping[str, np.ndarray], at: Mapping[str, list[int]], sizes: Mapping[str, Mapping[str, int]], groups: Groups,
    names: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:  # fmt: skip
    """Sums ``[label + 1, layer, …]`` of each site as differences and mean; layers without the site hold 0."""
    layers = sorted(set().union(*at.values()))
    label = groups.label
    found = xr.Dataset(coords={label: list(groups.labels), "layer": layers})
    for site, those in at.items():
        size = sizes[site]
        whole = np.zeros((len(groups.labels) + 1, len(layers), *size.values()), dtype=np.float32)
        whole[:, [layers.index(layer) for layer in those]] = sums[site].reshape(len(whole), -1, *size.values())
        found[site] = (label, "layer", *size), whole[:-1]
        found[f"{site}_mean"] = ("layer", *size), whole[-1]
        index = next(iter(size))
        found = found.assign_coords({index: np.arange(size[index]) if names is None else names[site]})
    return found
