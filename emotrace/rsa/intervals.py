"""Intervals: how far τ-b of single neurons would move with other concepts, and other seeds or subjects."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.compare import bootstrap
from emotrace.rsa.matrices import rdm
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed

KEPT = ("correlation", "se", "lo", "hi", "p", "n_draws")


@typed
def neuron_intervals(
    activations: xr.DataArray,
    references: xr.DataArray,
    neurons: Iterable[tuple[int, int]],
    *,
    concept: str = "emotion",
    over: str | None = "seed",
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Bootstrap intervals of Kendall's τ-b of chosen neurons with each reference RDM.

    Each neuron's RDM is |a_i − a_j|, averaged over ``over``, as in `searchlight`; concepts (and ``over``, where there is
    one) are drawn with replacement by `bootstrap`, the same draws for every neuron. Neurons that were chosen for a high τ
    on the same data have intervals that lie too high: choose them on other seeds or concepts.

    Args:
        activations: ``[seed, emotion, layer, unit]``, in any order.
        references: RDMs ``[…, pair]``.
        neurons: ``(layer, unit)`` labels.
        concept: dim of the concepts.
        over: dim that is resampled and averaged; None where there is none.
        draws: bootstrap draws.
        level: coverage.
        seed: of the draws.
        progress: show a bar.

    Returns:
        `KEPT` ``[neuron, …]`` with the coordinates ``layer`` and ``unit`` of each neuron.

    Raises:
        EmotraceError: for no neurons, one that the activations lack, a missing dim, or what `bootstrap` refuses.
    """
    arguments.resampling("neuron_intervals", seed, draws=draws)
    for dim in ("layer", "unit", concept, *([over] if over else [])):
        if dim not in activations.dims:
            raise unknown("dim", dim, activations.dims, "neuron_intervals(activations)")
    chosen = _pairs(neurons)
    if len(set(chosen)) < len(chosen):
        raise EmotraceError(f"neuron_intervals(neurons={chosen}): a neuron occurs twice.")
    if not chosen:
        raise EmotraceError("neuron_intervals: no neurons were chosen.")
    for layer, unit in chosen:
        for dim, label in (("layer", layer), ("unit", unit)):
            if label not in activations[dim].values:
                raise unknown(
                    dim, label, activations[dim].values.tolist(), f"neuron_intervals, neuron ({layer}, {unit})"
                )
    found = []
    for layer, unit in progress_bar(chosen, desc="intervals", unit="neuron", enabled=progress):
        one = rdm(activations.sel(layer=layer, unit=unit, drop=True), "absolute", concept=concept, features=())
        kept = bootstrap(one, references, "kendall", over=over, draws=draws, level=level, seed=seed)[list(KEPT)]
        found.append(kept)
    where = {"layer": ("neuron", [n[0] for n in chosen]), "unit": ("neuron", [n[1] for n in chosen])}
    return xr.concat(found, "neuron", combine_attrs="override").assign_coords(neuron=np.arange(len(chosen)), **where)


def _pairs(neurons: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The neurons as (layer, unit), whole numbers both."""
    try:
        found = [(layer, unit) for layer, unit in neurons]
    except (TypeError, ValueError):
        raise EmotraceError(
            f"{arguments.said('neuron_intervals(neurons)', neurons)}: pairs (layer, unit) are due."
        ) from None
    place = "neuron_intervals(neurons): a layer or unit"
    return [(arguments.whole(place, layer), arguments.whole(place, unit)) for layer, unit in found]
