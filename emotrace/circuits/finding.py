"""Discover: rank neurons and heads, decide how many each layer gives, and attach what is added there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments, disk, presets, provenance
from emotrace.arguments import BatchSize
from emotrace.attribution.chunked import check, layers_of
from emotrace.attribution.files import kept
from emotrace.attribution.heads import head_contributions, heads_reduced
from emotrace.attribution.neurons import neuron_contributions, neurons_reduced
from emotrace.circuits.allocation import even_allocation, published_allocation
from emotrace.circuits.assembly import assemble, check_allocation
from emotrace.circuits.circuit import Circuit
from emotrace.circuits.differences import difference_vectors, differences_reduced
from emotrace.datasets import Prompts, PromptsLike
from emotrace.defaults import HEADS_PER_LAYER, NEURONS_PER_LAYER
from emotrace.directions.groups import Within, counting, group
from emotrace.files import to_folder
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations
from emotrace.store.asked import of_acts

FILES: Final = {**{kind: f"{kind}s" for kind in KINDS}, "differences": "differences"}
"""Stems of what is saved of each part."""
PRESETS: Final = {name: found["circuit"] for name, found in presets.PRESETS.items() if "circuit" in found}
"""Published rankings; with them the allocation follows the influence of sublayers."""


def _stored(
    acts: Activations,
    covectors: xr.Dataset,
    *,
    neurons_per_layer: float = NEURONS_PER_LAYER,
    heads_per_layer: float = HEADS_PER_LAYER,
    by: str | None = None,
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    preset: str | None = None,
    influence: xr.Dataset | xr.DataArray | None = None,
    allocation: xr.DataArray | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Circuit:
    """`discover` of stored activations."""
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    check(acts, covectors, "discover")
    by, head_readout = _ranking(preset, by, covectors.attrs["readout"], influence, allocation)
    if preset is not None and head_readout != PRESETS[preset]["readout"]:
        raise EmotraceError(
            f"discover(preset={preset!r}) reads heads in the space {PRESETS[preset]['readout']!r}; the covectors are those of "
            f"{head_readout!r}: make them with covectors(…, head_readout={PRESETS[preset]['readout']!r})."
        )
    known = {"activations": acts, "influence": influence, "allocation": allocation}
    provenance.together("discover", **{name: thing for name, thing in known.items() if thing is not None})
    wanted = None if layers is None else sorted(arguments.wholes("discover(layers)", layers))
    at = {kind: _both(acts, covectors, COMPONENTS[kind].site, wanted) for kind in KINDS}
    at = {kind: those for kind, those in at.items() if those}
    if not at:
        raise EmotraceError(f"discover: no layer of neurons or heads (z) is both in {acts.path} and in the covectors.")
    for kind in at:
        dim, site = COMPONENTS[kind].dim, COMPONENTS[kind].site
        if acts.sel(site).sizes[dim] != covectors.sizes[dim]:
            raise EmotraceError(
                f"discover: {site!r} is narrowed to some of its {kind}s; a circuit is chosen among all of them."
            )
    missing = [
        f"there are no {k}s in these layers of the activations: the circuit has none." for k in KINDS if k not in at
    ]
    label = covectors.attrs["label"]
    values = covectors[label].values.tolist()
    if allocation is None:
        sizes = {k: int(acts.sel(COMPONENTS[k].site).sizes[COMPONENTS[k].dim]) for k in at}
        available = {k: [sizes[k] if layer in at[k] else 0 for layer in _all(at)] for k in at}
        allocation = _shared_out(influence, values, at, available, neurons_per_layer, heads_per_layer, label)
    check_allocation(allocation, label, values, at)
    here = _folders(out)
    if accepted is not None and not isinstance(accepted, str):
        accepted = list(accepted)  # read three times
    scores: dict[str, xr.Dataset] = {}
    if "neuron" in at:
        scores["neuron"] = neuron_contributions(
            acts, covectors, accepted=accepted, layers=at["neuron"], out=here["neuron"]
        )
    if "head" in at:
        scores["head"] = head_contributions(acts, covectors, accepted=accepted, layers=at["head"], out=here["head"])
    differences = difference_vectors(
        acts,
        label=label,
        within=within,
        accepted=accepted,
        sites=_sites(list(at)),
        layers=_same(at),
        out=here["differences"],
    )
    meta = {
        "preset": preset,
        "readout": head_readout,
        "seed": seed,
        "directions_digest": covectors.attrs["directions_digest"],
    }
    return _kept(assemble(scores, differences, allocation, by=by, label=label, meta={**meta, "warnings": missing}), out)


def _both(acts: Activations, covectors: xr.Dataset, site: str, wanted: list[int] | None) -> list[int]:
    """Layers of a site that activations and covectors have, of those wanted."""
    if site not in acts.variables:
        return []
    stored = acts.sel(site)["layer"].values.tolist()
    return [i for i in layers_of(covectors, site) if i in stored and (wanted is None or i in wanted)]


@of_acts(_stored)
@planned
@typed
def discover(
    model: LanguageModel,
    prompts: PromptsLike,
    directions: xr.DataArray,
    *,
    neurons_per_layer: float = NEURONS_PER_LAYER,
    heads_per_layer: float = HEADS_PER_LAYER,
    by: str | None = None,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    head_readout: str | None = None,
    preset: str | None = None,
    influence: xr.Dataset | xr.DataArray | None = None,
    allocation: xr.DataArray | None = None,
    batch_size: BatchSize = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryRows, Circuit]:
    """The circuit of every label: its highest-ranked neurons and heads in each layer, and their difference vectors.

    One pass over the accepted prompts, from which `neuron_contributions`, `head_contributions` and `difference_vectors` are made
    (a prompt outside the complete groups weighs 0 in the last); then `assemble`. Called alone, these give the same bits where
    their chunks hold the same prompts, else the same within the rounding of the forwards.
    ``discover(acts, covectors, …)`` asks stored activations (``z`` and ``neuron``) instead, and runs nothing: label and read-out
    are those of `attribution.covectors`. By default
    components are ranked by the contrast between the label and the others, and every layer gives the same number. The
    preset ``emotion_circuits`` ranks by the un-contrasted mean, reads heads in the normed space, and shares out
    components by the influence of sublayers. ``discover.plan(…)`` says what the pass would do (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: with the emotion asked (`datasets.sev`); each carries ``label``.
        directions: ``[label, layer, sublayer, dim]`` of `directions.centered_mean`, at ``resid_post`` and, where the model has
            it, ``resid_mid``.
        neurons_per_layer: an int, or below 1 a share of what each layer has.
        heads_per_layer: likewise.
        by: ``contrast`` or ``mean``; None for the preset's.
        label: what is contrasted.
        within: labels that make a group of the difference vectors.
        accepted: keys of accepted replies; None for all.
        layers: 0-based layers of the circuit; None for every layer that has directions.
        head_readout: of the heads, ``residual`` or ``normed``; None for the preset's.
        preset: ``emotion_circuits``, or None.
        influence: of `attribution.sublayer_influence`; what the preset's allocation is made of.
        allocation: ``k[label, kind, layer]`` of `even_allocation` or `published_allocation`; overrides the numbers per layer.
        batch_size: prompts per forward, or ``auto`` for what fits.
        seed: recorded only; nothing is drawn here.
        out: folder; a killed run continues there, and scores and circuit are saved in it.
        progress: show bars on stderr.

    Returns:
        `Circuit`; ``meta`` says what it came from, and warns of layers of which it takes more than half.

    Raises:
        EmotraceError: before anything runs, for what does not fit the model, a preset without influence, or a model with
            neither neurons nor heads.

    Source: arXiv 2510.11328.
    """
    from emotrace.forwards.passes import passed, planned_pass

    arguments.batch("batch_size", batch_size)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    by, head_readout = _ranking(preset, by, head_readout, influence, allocation)
    provenance.check(influence, model.sites, "discover(influence=…)")
    provenance.check(allocation, model.sites, "discover(allocation=…)")
    kinds = [k for k in KINDS if model.sites.has(COMPONENTS[k].site)]
    if not kinds:
        raise EmotraceError(f"{model.sites.model_class} has neither neurons nor heads (z), so no circuit can be found.")
    at = _layers(model, kinds, directions, layers)
    missing = [
        f"{model.sites.model_class} has no {k}s in these layers: the circuit has none." for k in KINDS if k not in at
    ]
    kinds = list(at)
    if allocation is None:
        available = {k: [_available(model, k, layer) if layer in at[k] else 0 for layer in _all(at)] for k in kinds}
        values = directions[label].values.tolist() if label in directions.coords else []
        allocation = _shared_out(influence, values, at, available, neurons_per_layer, heads_per_layer, label)
    if accepted is not None and not isinstance(accepted, str):
        accepted = list(accepted)  # read twice
    prompts = Prompts.of(prompts)
    counted = np.flatnonzero(counting(prompts.table, accepted))
    some = Prompts([prompts[int(i)] for i in counted])
    groups = group(prompts.table, label, within, accepted, True)
    wanted = []
    if "neuron" in kinds:
        wanted.append(neurons_reduced(model, some, directions, label, at["neuron"]))
    if "head" in kinds:
        wanted.append(heads_reduced(model, some, directions, label, head_readout, at["head"]))
    rows = np.searchsorted(counted, groups.rows)
    wanted.append(differences_reduced(model, some, groups, rows, _sites(kinds), _same(at)))
    yield lambda: planned_pass(model, some, wanted)
    check_allocation(allocation, label, directions[label].values.tolist(), at)
    made = passed(model, some, wanted, method="discover", batch_size=batch_size, out=out, progress=progress)
    here = _folders(out)
    for name, scores in made.items():
        kept(scores, here[name], FILES[name])
    vectors = made.pop("differences")
    meta = {"preset": preset, "readout": head_readout, "seed": seed, "directions_digest": disk.digest(directions)}
    found = assemble(made, vectors, allocation, by=by, label=label, meta={**meta, "warnings": missing})
    found.check(model)
    return _kept(found, out)


def _kept(circuit: Circuit, out: str | Path | None) -> Circuit:
    """The circuit, saved where there is a folder."""
    if out is not None:
        circuit.save(out)
    return circuit


def _ranking(
    preset: str | None, by: str | None, head_readout: str | None, influence: Any, allocation: Any
) -> tuple[str, str]:
    """What components are ranked by, and how heads are read: as said, or as the preset does.

    Raises:
        EmotraceError: for an unknown preset or score, or a preset without influence.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, "discover")
    chosen = PRESETS[preset] if preset is not None else {"by": "contrast", "readout": "residual"}
    by, head_readout = str(by or chosen["by"]), str(head_readout or chosen["readout"])
    if by not in ("contrast", "mean"):
        raise unknown("score", by, ("contrast", "mean"), "discover(by=…)")
    if preset is not None and influence is None and allocation is None:
        raise EmotraceError(
            f"discover(preset={preset!r}) shares out components by the influence of sublayers: give influence= of "
            "attribution.sublayer_influence(model, plain, directions), or an allocation."
        )
    if influence is not None and (preset is None or allocation is not None):
        raise EmotraceError("discover(influence=…) shares out components where there is a preset, and no allocation.")
    return by, head_readout


def _shared_out(
    influence: xr.Dataset | xr.DataArray | None, values: Sequence[Any], at: Mapping[str, list[int]],
    available: Mapping[str, list[int]], neurons_per_layer: float, heads_per_layer: float, label: str,
) -> xr.DataArray:  # fmt: skip
    """How many components each layer gives: by influence, or as many in each."""
    if influence is None:
        return even_allocation(values, _all(at), available, neurons_per_layer, heads_per_layer, label=label)
    table = influence["influence"] if isinstance(influence, xr.Dataset) else influence
    return published_allocation(_within(table, _all(at)), available=available, label=label)


def _folders(out: str | Path | None) -> dict[str, Path | None]:
    return {name: None if out is None else Path(out) / name for name in (*KINDS, "differences")}


def _sites(kinds: Sequence[str]) -> list[str]:
    return [COMPONENTS[k].site for k in kinds]


def _same(at: Mapping[str, list[int]]) -> list[int] | None:
    """The layers, where all kinds have the same; else None, for each kind's own."""
    first = next(iter(at.values()))
    return first if all(those == first for those in at.values()) else None


def _layers(
    model: LanguageModel, kinds: Sequence[str], directions: xr.DataArray, layers: Iterable[int] | None
) -> dict[str, list[int]]:
    """Layers of each kind: those asked for, or those with directions, as far as they have the kind's site."""
    if "layer" not in getattr(directions, "dims", ()):
        raise unknown("dim", "layer", getattr(directions, "dims", ()), "discover(directions=…)")
    known = [int(i) for i in directions["layer"].values]
    wanted = known if layers is None else sorted(arguments.wholes("discover(layers)", layers))
    for layer in wanted:
        if layer not in known:
            raise unknown("layer", layer, known, "discover(layers=…), of the directions")
    found = {k: [i for i in wanted if model.sites.has(COMPONENTS[k].site, i)] for k in kinds}
    if not any(found.values()):
        raise EmotraceError(f"none of the layers {wanted} has {' or '.join(kinds)}s.")
    return {k: those for k, those in found.items() if those}


def _all(at: Mapping[str, list[int]]) -> list[int]:
    return sorted(set().union(*at.values()))


def _available(model: LanguageModel, kind: str, layer: int) -> int:
    return int(model.sites.size(COMPONENTS[kind].site, layer)[COMPONENTS[kind].dim])


def _within(influence: xr.DataArray, layers: Sequence[int]) -> xr.DataArray:
    known = influence["layer"].values.tolist()
    for layer in layers:
        if layer not in known:
            raise unknown("layer", layer, known, "discover(influence=…)")
    return influence.sel(layer=np.asarray(layers))
