"""Curves: does removing, or adding, the best k components move the emotion's projection, and do others not?

With s = ⟨resid_post at the read-out layer, v_e⟩ at the last prompt token of the un-edited model and s' under edits::

    delta = mean over prompts of (s' − s)

Ablation takes the components of e from the prompts that ask for e: where they raise the projection, delta is negative.
Enhancement adds the difference vectors of e, in these components only, to prompts that name no emotion: where they raise
the projection, delta is positive. All edits act on the last prompt token (``positions="last"``), in all layers before
the read-out at once; not in that layer itself, whose components write their scores into what is read, so that their delta
says nothing that the score did not.

Beside the ``top`` set of each size stand a ``low`` one and ``random`` ones (`emotrace.attribution.sets`).

Source: the causal validation of arXiv 2510.11328, whose code was not published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from emotrace import aligned, arguments, disk, provenance
from emotrace.arguments import BatchSize
from emotrace.attribution.ablations import (
    check_stored,
    donors,
    mean_ablation,
    reference_values,
    resample_ablation,
    stored_values,
    zero_ablation,
)  # fmt: skip
from emotrace.attribution.curve_points import CurvePlan, CurvePoints, Edits, LabelledPart
from emotrace.attribution.sets import Set, union
from emotrace.datasets import Prompts, PromptsLike
from emotrace.directions.groups import Within
from emotrace.directions.source import provenance_of
from emotrace.edits import Ablate, Add, Edit
from emotrace.files import to_folder
from emotrace.forwards.rows import asked
from emotrace.forwards.streams import accepted_only, codes
from emotrace.labels import EmotraceError, unknown
from emotrace.planned import DryReruns, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations

HOW = ("zero", "mean", "resample")


@planned
@typed
def ablation_curve(
    model: LanguageModel,
    prompts: PromptsLike,
    directions: xr.DataArray,
    contributions: xr.Dataset,
    *,
    ks: Sequence[int] | None = None,
    how: Literal["zero", "mean", "resample"] = "zero",
    reference: Activations | None = None,
    draws: int = 5,
    low: bool = True,
    per: Literal["layer", "model"] = "layer",
    by: str = "contrast",
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    accepted: Iterable[str] | None = None,
    readout_layer: int | None = None,
    cluster: str = "skeleton_id",
    batch_size: BatchSize = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryReruns, xr.Dataset]:
    """How the projection on each emotion changes as its k best components are ablated at the last token.

    Each prompt loses components of its own label and is read along the direction of its own label. In their place stands 0
    (``zero``), their mean over all prompts, labels with equal weight (``mean``), or what they are in another prompt of
    another label (``resample``; the coordinate ``donor`` says which). ``ablation_curve.plan(…)`` says what would be done:
    prompts, sets, reruns (`emotrace.planned.DryReruns`).

    Args:
        model: from `emotrace.load`.
        prompts: with the label asked for (``datasets.sev(…)``).
        directions: ``[label, layer, (sublayer,) dim]`` of ``resid_post``; taken at unit length.
        contributions: of `neuron_contributions` or `head_contributions`, ``[label, layer, unit or head]``.
        ks: sizes of the sets; None takes those of 1, 2, 4, 8, 16 that exist.
        how: ``zero``, ``mean`` or ``resample``.
        reference: activations of the un-edited model at the last token (``capture(…, "neuron")`` or ``"z"``) that ``mean`` and
            ``resample`` take their values from, all of whose rows count (narrow them with ``acts.where(…)``); None runs the
            prompts for them, which gives the same.
        draws: random sets of each size.
        low: measure the components of the smallest absolute score too.
        per: k components in each layer, or k in the whole model (the controls then have as many in each layer as the top).
        by: variable of ``contributions`` that ranks, highest first.
        label: what the directions are of.
        within: labels that a prompt should share with its donor.
        accepted: keys of the accepted replies; None for all prompts.
        readout_layer: layer whose ``resid_post`` is read; None for the last one that has directions.
        cluster: label that the bootstrap draws as a whole; ``key`` for each prompt by itself.
        batch_size: prompts per forward, or ``auto`` for what fits.
        seed: of random sets, donors and bootstrap.
        out: folder for the scores, batch by batch, and the result; a run that was stopped continues there.
        progress: show a bar.

    Returns:
        Dataset with ``delta``, ``ci_low``, ``ci_high`` ``[label, which, k]`` (95 %, bootstrap over clusters; for ``random``
        of the mean over draws), ``random`` ``[label, draw, k]`` (delta of each draw), ``size`` ``[label, k]`` (components
        over all layers), ``base``, ``base_std`` (ddof 0) and ``n`` ``[label]``. attrs say what was read, where and how.

    Raises:
        EmotraceError: before anything runs, for labels, layers, widths or sizes that do not fit, or a folder of another run.
    """
    arguments.batch("batch_size", batch_size)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    if how not in HOW:
        raise unknown("ablation", how, HOW, "ablation_curve(how=…)")
    prompts = accepted_only(prompts, accepted)
    plan = CurvePlan(
        model, directions, contributions, by, label, readout_layer, ks=ks, draws=draws, low=low, per=per, seed=seed
    )
    code = codes(prompts, label, plan.labels, "ablation_curve")
    parts = [LabelledPart([e], np.flatnonzero(code == i).tolist()) for i, e in enumerate(plan.labels)]
    settings: dict[str, Any] = {"method": "ablation_curve", "how": how}
    drawn = None
    if how == "resample":
        drawn = donors(prompts, label, within, seed)
        settings["within"] = within
    read = None if reference is None else _reader(plan, reference, how, [] if drawn is None else drawn["donor"])
    if reference is not None:
        came = provenance_of(reference)
        settings["reference"] = disk.digest([came.get(name) for name in ("plan_digest", "selection", "weights_hash")])
    batch_size = asked(model, batch_size, prompts, begun=None if out is None else Path(out, "settings.json"))
    points = CurvePoints(plan, prompts, parts, settings, batch_size, cluster, out)
    yield lambda: points.dry

    def make() -> Edits:
        if how == "zero":
            return lambda e, name, keys: zero_ablation(plan.site, plan.sets[e][name])
        if read is None:
            held = reference_values(
                model, prompts, plan.site, union(plan.sets), batch_size=batch_size, progress=progress
            )
        else:
            held = read()
        if drawn is None:
            mean = cache(lambda e, name: mean_ablation(plan.site, plan.sets[e][name], held, label=label))
            return lambda e, name, keys: mean(e, name)
        donor = dict(zip(drawn["key"], drawn["donor"], strict=True))
        key_of = next(iter(held.values()))["key"].values.astype(str)

        @lru_cache(maxsize=1)
        def of(keys: tuple[str, ...]) -> dict[int, xr.DataArray]:
            rows = np.flatnonzero(np.isin(key_of, sorted({donor[key] for key in keys})))
            return {layer: values.isel(token=rows) for layer, values in held.items()}

        def resampled(e: Any, name: Set, keys: list[str]) -> list[Ablate]:
            return resample_ablation(plan.site, plan.sets[e][name], of(tuple(keys)), {k: donor[k] for k in keys})

        return resampled

    curve = points.run(make, progress).assign_attrs(
        sign="negative = the components raise the projection on their label", measured_on="each label's own prompts"
    )
    if drawn is not None:
        beside: dict[str, Any] = {name: ("prompt", drawn[name].to_numpy()) for name in ("donor", "same_group")}
        curve = curve.assign_coords(prompt=drawn["key"].to_numpy(), **beside)
    return points.keep(curve)


@planned
@typed
def enhancement_curve(
    model: LanguageModel,
    plain: PromptsLike,
    directions: xr.DataArray,
    contributions: xr.Dataset,
    differences: xr.Dataset,
    *,
    ks: Sequence[int] | None = None,
    strength: float = 1.0,
    draws: int = 5,
    low: bool = True,
    per: Literal["layer", "model"] = "layer",
    by: str = "contrast",
    label: str = "emotion",
    readout_layer: int | None = None,
    cluster: str = "skeleton_id",
    batch_size: BatchSize = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryReruns, xr.Dataset]:
    """How the projection on each emotion changes as difference vectors are added to its k best components.

    To every prompt, for every label in turn, strength · (difference vector of the label) is added in the chosen components
    at the last token, and the direction of that label is read. ``enhancement_curve.plan(…)`` says what would be done.

    Args:
        model: from `emotrace.load`.
        plain: prompts without the label (``datasets.sev(…, instruction=False)``).
        directions: ``[label, layer, (sublayer,) dim]`` of ``resid_post``; taken at unit length.
        contributions: of `neuron_contributions` or `head_contributions`, ``[label, layer, unit or head]``.
        differences: of `circuits.difference_vectors`: ``neuron[label, layer, unit]``, ``z[label, layer, head, head_dim]``.
        ks: sizes of the sets; None takes those of 1, 2, 4, 8, 16 that exist.
        strength: factor of the difference vectors.
        draws: random sets of each size.
        low: measure the components of the smallest absolute score too.
        per: k components in each layer, or k in the whole model (the controls then have as many in each layer as the top).
        by: variable of ``contributions`` that ranks, highest first.
        label: what the directions are of.
        readout_layer: layer whose ``resid_post`` is read; None for the last one that has directions.
        cluster: label that the bootstrap draws as a whole; ``key`` for each prompt by itself.
        batch_size: prompts per forward, or ``auto`` for what fits.
        seed: of random sets and bootstrap.
        out: folder for the scores, batch by batch, and the result; a run that was stopped continues there.
        progress: show a bar.

    Returns:
        Dataset with ``delta``, ``ci_low``, ``ci_high`` ``[label, which, k]`` (95 %, bootstrap over clusters; for ``random``
        of the mean over draws), ``random`` ``[label, draw, k]`` (delta of each draw), ``size`` ``[label, k]`` (components
        over all layers), ``base``, ``base_std`` (ddof 0) and ``n`` ``[label]``, the same for all. attrs say what was read, where
        and how.

    Raises:
        EmotraceError: before anything runs, for labels, layers, widths, sizes or differences that do not fit, prompts that carry
            the label already, or a folder of another run.
    """
    arguments.batch("batch_size", batch_size)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    plain = Prompts.of(plain)
    if label in plain.label_names:
        raise EmotraceError(
            f"enhancement_curve takes prompts without the label {label!r}, and runs each once for every {label}: "
            "datasets.sev(…, instruction=False)."
        )
    plan = CurvePlan(
        model, directions, contributions, by, label, readout_layer, ks=ks, draws=draws, low=low, per=per, seed=seed
    )
    provenance.check(differences, model.sites, "enhancement_curve(differences=…)")
    payload = _payload(plan, differences)
    _ = Add(plan.site, vector=0.0, strength=strength)  # refuses a strength that is no number
    settings = {
        "method": "enhancement_curve",
        "strength": float(strength),
        "differences": disk.digest(list(payload.values())),
    }
    parts = [LabelledPart(plan.labels, list(range(len(plain))))]
    batch_size = asked(model, batch_size, plain, begun=None if out is None else Path(out, "settings.json"))
    points = CurvePoints(plan, plain, parts, settings, batch_size, cluster, out)
    yield lambda: points.dry

    def edits(e: Any, name: Set, keys: list[str]) -> list[Edit]:
        found: list[Edit] = []
        for layer, chosen in plan.sets[e][name].items():
            where: dict[str, Any] = {"layers": layer, **plan.component.picked(chosen)}
            vector = payload[e, layer][list(chosen)].ravel()
            found.append(Add(plan.site, positions="last", vector=vector, strength=strength, **where))
        return found

    curve = points.run(lambda: edits, progress).assign_attrs(
        sign="positive = the difference vectors raise the projection on their label", measured_on="all prompts"
    )
    return points.keep(curve)


def _reader(plan: CurvePlan, acts: Activations, how: str, keys: Iterable[str]) -> Callable[[], dict[int, xr.DataArray]]:
    """What reads the values that stand in the place of components out of activations, which are looked at now."""
    place = "ablation_curve(reference=…)"
    if how == "zero":
        raise EmotraceError(f"{place}: how='zero' takes nothing from a reference; how='mean' and 'resample' do.")
    provenance.check(acts, plan.model.sites, place)
    components = union(plan.sets)
    check_stored(acts, plan.site, components, label=plan.label if how == "mean" else None, keys=keys, place=place)
    return lambda: stored_values(acts, plan.site, components)


def _payload(plan: CurvePlan, differences: xr.Dataset) -> dict[tuple[Any, int], np.ndarray]:
    """(label, layer) → difference vectors ``[unit, 1]`` or ``[head, head_dim]`` float32."""
    if plan.site not in differences.data_vars:
        raise unknown("variable of the differences", plan.site, differences.data_vars, "enhancement_curve")
    array = differences[plan.site]
    array = array.expand_dims(head_dim=1) if plan.dim == "unit" else array
    wanted = (plan.label, "layer", plan.dim, "head_dim")
    if set(array.dims) != set(wanted):
        raise EmotraceError(f"the differences of {plan.site!r} need the dims {wanted}, not {array.dims}.")
    for name, values in ((plan.label, plan.labels), ("layer", plan.layers)):
        held = array[name].values.tolist()
        for value in values:
            if value not in held:
                raise unknown(f"{name} of the differences", value, held, "enhancement_curve")
    array = array.sel({plan.label: plan.labels, "layer": plan.layers}).transpose(*wanted)
    width = int(np.prod([*plan.model.sites.size(plan.site, plan.layers).values()]))
    if array.sizes[plan.dim] * array.sizes["head_dim"] != width:
        raise EmotraceError(f"{plan.site} is {width} wide in this model; the differences have {dict(array.sizes)}.")
    array = aligned.numbered(array, plan.dim, range(array.sizes[plan.dim]), "enhancement_curve(differences=…)")
    values = np.asarray(array.values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise EmotraceError(f"the differences of {plan.site!r} are not finite everywhere.")
    return {(e, layer): values[i, j] for i, e in enumerate(plan.labels) for j, layer in enumerate(plan.layers)}
