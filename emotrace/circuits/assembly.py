"""Discover: rank neurons and heads, decide how many each layer gives, and attach what is added there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, disk, presets, provenance
from emotrace.attribution.heads import head_contributions
from emotrace.attribution.neurons import neuron_contributions
from emotrace.attribution.ranks import top
from emotrace.circuits.allocation import even_plan, published_plan
from emotrace.circuits.circuit import Circuit
from emotrace.circuits.differences import difference_vectors
from emotrace.datasets import PromptsLike
from emotrace.directions.groups import Within
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

R = TypeVar("R")
PRESETS: Final = {name: found["circuit"] for name, found in presets.PRESETS.items() if "circuit" in found}
"""Published rankings; with them the plan follows the influence of sublayers."""
HALF: Final = 0.5
"""A circuit that takes more of a layer than this share leaves no room for random circuits of its size."""
ABOUT: Final = ("model_id", "revision", "config_hash", "weights_hash", "weights_sample", "tokenizer_hash", "template_hash",
                "template_date", "double_bos", "bos", "dtype", "attn_implementation", "n_groups", "n_rows")  # fmt: skip


class DryCircuit(TypedDict, total=False):
    """What each pass of `discover` would do; a kind that the model lacks has none."""

    neuron: DryRows
    head: DryRows
    differences: DryRows


@planned
@typed
def discover(
    model: LanguageModel,
    prompts: PromptsLike,
    directions: xr.DataArray,
    *,
    neurons_per_layer: float = 20,
    heads_per_layer: float = 2,
    by: str | None = None,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    readout: str | None = None,
    preset: str | None = None,
    influence: xr.Dataset | xr.DataArray | None = None,
    plan: xr.DataArray | None = None,
    batch_size: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryCircuit, Circuit]:
    """The circuit of every label: its highest-ranked neurons and heads in each layer, and their difference vectors.

    Three passes over the prompts: `neuron_contributions`, `head_contributions`, `difference_vectors`; then `assemble`. By default
    components are ranked by the contrast between the label and the others, and every layer gives the same number. The
    preset ``emotion_circuits`` ranks by the un-contrasted mean, reads heads in the normed space, and shares out
    components by the influence of sublayers. ``discover.plan(…)`` says what each pass would do (`DryCircuit`).

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
        readout: of the heads, ``residual`` or ``normed``; None for the preset's.
        preset: ``emotion_circuits``, or None.
        influence: of `attribution.sublayer_influence`; what the preset's plan is made of.
        plan: ``k[label, kind, layer]`` of `even_plan` or `published_plan`; overrides the numbers per layer.
        batch_size: prompts per forward.
        seed: recorded only; nothing is drawn here.
        out: folder; each pass continues there after a kill, and the circuit is saved in it.
        progress: show bars on stderr.

    Returns:
        `Circuit`; ``meta`` says what it came from, and warns of layers of which it takes more than half.

    Raises:
        EmotraceError: before anything runs, for what does not fit the model, a preset without influence, or a model with
            neither neurons nor heads.

    Source: arXiv 2510.11328.
    """
    arguments.whole("batch_size", batch_size, 1)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, "discover")
    chosen = PRESETS[preset] if preset is not None else {"by": "contrast", "readout": "residual"}
    by, readout = str(by or chosen["by"]), str(readout or chosen["readout"])
    if by not in ("contrast", "mean"):
        raise unknown("score", by, ("contrast", "mean"), "discover(by=…)")
    if preset is not None and influence is None and plan is None:
        raise EmotraceError(
            f"discover(preset={preset!r}) shares out components by the influence of sublayers: give influence= of "
            "attribution.sublayer_influence(model, plain, directions), or a plan."
        )
    if influence is not None and (preset is None or plan is not None):
        raise EmotraceError("discover(influence=…) shares out components where there is a preset, and no plan.")
    provenance.check(influence, model.sites, "discover(influence=…)")
    provenance.check(plan, model.sites, "discover(plan=…)")
    kinds = [k for k in KINDS if model.sites.has(COMPONENTS[k].site)]
    if not kinds:
        raise EmotraceError(f"{model.sites.model_class} has neither neurons nor heads (z), so no circuit can be found.")
    at = _layers(model, kinds, directions, layers)
    missing = [
        f"{model.sites.model_class} has no {k}s in these layers: the circuit has none." for k in KINDS if k not in at
    ]
    kinds = list(at)
    if plan is None:
        available = {k: [_available(model, k, layer) if layer in at[k] else 0 for layer in _all(at)] for k in kinds}
        if preset is not None:
            assert influence is not None
            table = influence["influence"] if isinstance(influence, xr.Dataset) else influence
            plan = published_plan(_within(table, _all(at)), available=available, label=label)
        else:
            values = directions[label].values.tolist() if label in directions.coords else []
            plan = even_plan(values, _all(at), available, neurons_per_layer, heads_per_layer, label=label)
    here = {name: None if out is None else Path(out) / name for name in ("neuron", "head", "differences")}
    if accepted is not None and not isinstance(accepted, str):
        accepted = list(accepted)  # read three times
    common: dict[str, Any] = {
        "label": label, "accepted": accepted, "batch_size": batch_size, "progress": progress
    }  # fmt: skip
    same = at[kinds[0]] if all(those == at[kinds[0]] for those in at.values()) else None

    def measure(neurons: Callable[..., R], heads: Callable[..., R], differences: Callable[..., R]) -> dict[str, R]:
        found: dict[str, R] = {}
        if "neuron" in kinds:
            found["neuron"] = neurons(model, prompts, directions, layers=at["neuron"], out=here["neuron"], **common)
        if "head" in kinds:
            found["head"] = heads(
                model, prompts, directions, layers=at["head"], readout=readout, out=here["head"], **common
            )
        sites = [COMPONENTS[k].site for k in kinds]
        found["differences"] = differences(
            model, prompts, within=within, sites=sites, layers=same, out=here["differences"], **common
        )
        return found

    # what one of the passes refuses is refused before the first
    dry = measure(neuron_contributions.plan, head_contributions.plan, difference_vectors.plan)
    yield lambda: DryCircuit(**dry)
    _check_plan(plan, label, directions[label].values.tolist(), at)
    scores = measure(neuron_contributions, head_contributions, difference_vectors)
    differences = scores.pop("differences")
    found = assemble(
        scores, differences, plan, by=by, label=label,
        meta={"preset": preset, "readout": readout, "seed": seed, "directions_digest": disk.digest(directions),
              "warnings": missing},
    )  # fmt: skip
    found.check(model)
    if out is not None:
        found.save(out)
    return found


@typed
def assemble(
    scores: Mapping[str, xr.Dataset],
    differences: xr.Dataset,
    plan: xr.DataArray,
    *,
    by: str = "contrast",
    label: str = "emotion",
    meta: Mapping[str, Any] | None = None,
) -> Circuit:
    """A circuit out of what was measured: in every layer the k components with the highest score, k from the plan.

    Scores are signed, and ties go to the lower index.

    Args:
        scores: by kind (``neuron``, ``head``), of `neuron_contributions` and `head_contributions`.
        differences: of `difference_vectors`.
        plan: ``k[label, kind, layer]``.
        by: variable of the scores.
        label: what is contrasted.
        meta: what else the circuit should say of itself.

    Raises:
        EmotraceError: for a plan that asks for components, labels or layers that the scores do not have.
    """
    for kind in scores:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS, "assemble(scores=…)")
    provenance.together("assemble", **scores, differences=differences)
    known = {k: t["layer"].values.tolist() for k, t in scores.items()}
    first = next(iter(scores.values()), differences)
    _check_plan(plan, label, first[label].values.tolist(), known)
    rows: list[dict[str, Any]] = []
    for kind in plan["kind"].values.tolist():
        wanted = plan.sel(kind=kind)
        most = int(wanted.max()) if wanted.size else 0
        if not most:
            continue
        table = scores[kind]
        ranked = top(table, most, by)
        for value in wanted[label].values.tolist():
            for layer in wanted["layer"].values[wanted.sel({label: value}).values > 0].tolist():
                k = int(wanted.sel({label: value, "layer": layer}))
                index = ranked.sel({label: value, "layer": layer}).values[:k]
                score = table[by].sel({label: value, "layer": layer, COMPONENTS[kind].dim: index}).values
                rows += [
                    {label: value, "kind": kind, "layer": layer, "index": int(i), "score": float(s), "rank": r}
                    for r, (i, s) in enumerate(zip(index, score, strict=True))
                ]
    columns = [label, "kind", "layer", "index", "score", "rank"]
    about = {k: v for k, v in differences.attrs.items() if k in ABOUT}
    n: dict[str, int] = {}
    for table in scores.values():
        about["prompts_digest"] = table.attrs.get("prompts_digest")
        n = {str(v): int(table["n"].sel({label: v})) for v in table[label].values.tolist()}
    whole = {"method": "discovered", "by": by, **about, "n": n, "plan": dict(plan.attrs), **dict(meta or {})}
    circuit = Circuit(pd.DataFrame(rows, columns=columns), differences.drop_attrs(), plain(whole), label)
    share = circuit.share()
    circuit.meta["share"] = share
    circuit.meta["warnings"] = [*whole.get("warnings", ()), *_crowded(circuit, share)]
    return circuit


def _check_plan(plan: xr.DataArray, label: str, labels: Sequence[Any], at: Mapping[str, list[int]]) -> None:
    """Refuse a plan that asks for labels, kinds or layers other than those that are ranked."""
    if not isinstance(plan, xr.DataArray) or set(plan.dims) != {label, "kind", "layer"}:
        raise EmotraceError(
            f"a plan has the dims ({label}, kind, layer), not {getattr(plan, 'dims', type(plan).__name__)}."
        )
    for value in plan[label].values.tolist():
        if value not in labels:
            raise unknown(f"{label} of the plan", value, labels)
    for kind in plan["kind"].values.tolist():
        layers = plan["layer"].values[(plan.sel(kind=kind) > 0).any(label).values].tolist()
        if layers and kind not in at:
            raise unknown("kind of the plan", kind, at)
        for layer in layers:
            if layer not in at[kind]:
                raise unknown("layer of the plan", layer, at[kind], f"for {kind}s")


def _crowded(circuit: Circuit, share: Mapping[str, float]) -> list[str]:
    """Warnings of kinds of which some layer gives more than half."""
    found = []
    for kind, largest in share.items():
        if largest > HALF:
            size = circuit.payload.sizes[COMPONENTS[kind].dim]
            found.append(
                f"the circuit takes up to {round(largest * size)} of the {size} {kind}s of a layer ({largest:.0%}): random "
                "circuits of that size overlap with it, so they are no control."
            )
    return found


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
