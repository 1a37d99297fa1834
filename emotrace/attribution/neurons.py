"""Neurons: what each MLP neuron contributes to the projection on an emotion's direction, in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from emotrace.arguments import BatchSize
from emotrace.attribution import stored, summed
from emotrace.attribution.files import kept
from emotrace.datasets import Prompts, PromptsLike
from emotrace.labels import unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store.asked import of_acts

if TYPE_CHECKING:  # it imports torch, which scores of stored activations do without
    from emotrace.forwards.passes import Finish, Reduction

PLACE = "neuron_contributions"


@of_acts(stored.neurons)
@planned
@typed
def neuron_contributions(
    model: LanguageModel,
    prompts: PromptsLike,
    directions: xr.DataArray,
    *,
    label: str = "emotion",
    accepted: Iterable[str] | None = None,
    variable: str = "neuron",
    layers: Iterable[int] | int | None = None,
    batch_size: BatchSize = 32,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryRows, xr.Dataset]:
    """How much each neuron raises the projection of its layer's MLP output on each emotion's direction.

    With a the neurons (input of the down projection) at the last prompt token, v_e the unit direction of e at ``resid_post`` of
    the same layer and c the residual scale::

        β_e = c · W_down v_e                  c_{e,n} = a_n β_{e,n}
        Σ_n c_{e,n} + c⟨v_e, b⟩ = c⟨v_e, mlp_out⟩

    Where a norm stands between the down projection and ``mlp_out`` (Gemma-2, OLMo-2), a is divided by the norm's ρ of each
    prompt and v_e is taken back through its gain, so that the identity holds for ``mlp_out`` there too. In
    post-LN models the projection read is that of ``mlp_out``, before the second norm.

    One pass; only Σ max(a, 0) and Σ min(a, 0) over the prompts of each label are kept, never a table of prompts.

    ``neuron_contributions(acts, covectors, *, accepted, layers, out)`` scores stored activations (of `emotrace.capture`) with
    `attribution.covectors`, and runs no model; the label is that of the covectors, and ``variable`` is taken too. A prompt with
    several rows (a span, a reply) counts as the mean over its rows: first over a prompt's rows, then over prompts; ``n`` counts
    prompts, ``attrs["n_rows"]`` rows. Post-norm blocks need what their norm divides by (``capture(…, components=True)``). Sums of
    up to 48 rows are float32: within 1e-6 of the largest score of what a model and prompts give, the same bits from a
    store and from memory. Of activations under edits it warns.

    ``neuron_contributions.plan(…)`` says what would be done (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: with the emotion asked; each carries ``label``.
        directions: ``[label, layer, sublayer, dim]`` of `directions.centered_mean`; used as unit vectors at ``resid_post``.
        label: the label that is contrasted.
        accepted: keys of the prompts to use; None for all.
        variable: site of which ``activation`` is the mean: ``neuron``, or ``neuron_pre`` (input of the activation function).
        layers: 0-based layers; None for all that have neurons and directions.
        batch_size: prompts per forward, or ``auto`` for what fits.
        out: folder for running sums and the result; a killed run continues there and ends with the same bits.
        progress: show a bar.

    Returns:
        Dataset, float64. ``[label, layer, unit]``: ``mean`` of c over the prompts of e; ``positive`` = mean max(c, 0) ≥ 0 and
        ``negative`` = mean min(c, 0) ≤ 0, which add up to it; ``contrast`` = ``mean`` − the mean of a·β_e over the prompts of the
        other labels (each with equal weight); ``activation`` = mean activation of the prompts of e; ``beta`` = β_e.
        ``[label, layer]``: ``bias``, so that Σ_unit ``mean`` + ``bias`` is the mean of c⟨v_e, mlp_out⟩.
        ``[label]``: ``n`` prompts. Positive: the neuron raises the projection.

    Raises:
        EmotraceError: before anything runs, where the model has no neurons (mixtures of experts), for labels, layers or
            directions that do not fit, or an ``out`` that holds sums of another run.

    Source: arXiv 2510.11328, which ranks by ``mean``.
    """
    from emotrace.forwards.passes import one_pass
    from emotrace.forwards.streams import accepted_only

    prompts = accepted_only(prompts, accepted)
    reduction = neurons_reduced(model, prompts, directions, label, layers, variable)
    found = yield from one_pass(
        model, prompts, reduction, method=PLACE, batch_size=batch_size, out=out, progress=progress
    )
    return kept(found, out, "neurons")


def neurons_reduced(
    model: LanguageModel,
    prompts: Prompts,
    directions: xr.DataArray,
    label: str,
    layers: Iterable[int] | int | None,
    variable: str = "neuron",
) -> Reduction:
    """The sums of a pass that `neuron_contributions` is made of; every prompt counts.

    Args:
        model: from `emotrace.load`.
        prompts: that pass.
        directions: ``[label, layer, (sublayer,) dim]``.
        label: of the directions and the prompts.
        layers: that are scored; None for all that have neurons and directions.
        variable: what counts as the activation, ``neuron`` or ``neuron_pre``.
    """
    import torch

    from emotrace.attribution.weights import chosen_layers, refuse_single, vectors, weighed
    from emotrace.forwards.passes import Reduction
    from emotrace.forwards.projections import spec
    from emotrace.forwards.streams import codes, origin
    from emotrace.traced import contributions

    if variable not in stored.VARIABLES:
        raise unknown("variable", variable, stored.VARIABLES, PLACE)
    sites = ["neuron"] if variable == "neuron" else ["neuron", "neuron_pre"]
    for site in sites:
        model.sites.layers(site)  # refuses a model without it, saying what it has
    chosen = chosen_layers(model, sites, layers, directions, PLACE)
    values, v = vectors(directions, label, chosen, "resid_post", model.sites.d_model, PLACE)
    code = codes(prompts, label, values, PLACE)
    refuse_single(values, label, PLACE)
    width = model.sites.size("neuron", chosen)["unit"]
    specs = [spec(model, "neuron", layer) for layer in chosen]
    source = origin(model, prompts)

    def args(rows: range) -> tuple[Any, ...]:
        return specs, torch.from_numpy(np.eye(len(values))[code[rows.start : rows.stop]].T.copy())

    def begin() -> Finish:
        beta, bias, added, normed = weighed(model, contributions.betas, specs, v)
        weights = {"beta": beta.numpy(), "bias": bias.numpy(), "added": added.numpy()}
        about = {
            "method": f"{summed.NEURONS}, last prompt token", "direction_sublayer": "resid_post", "readout_site": "mlp_out",
            "form": model.sites.form, "residual_scale": model.sites.scale, "post_norm": int(any(normed)),
            "variable": variable, "n_prompts": len(prompts), **source,
        }  # fmt: skip
        axes = summed.Axes(label, values, chosen)
        return lambda sums: summed.neurons(sums, np.bincount(code), weights, normed, axes, about)

    return Reduction(
        name="neuron",
        at=dict.fromkeys(sites, chosen),
        function=contributions.neurons,
        args=args,
        row_bytes=dict.fromkeys(sites, 4 * width * len(chosen)),
        size=8 * len(values) * len(chosen) * width * (2 + (variable != "neuron")),
        settings={**source, "label": label, "labels": values, "layers": chosen, "sites": sites},
        begin=begin,
    )
