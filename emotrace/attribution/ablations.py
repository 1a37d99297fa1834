"""Ablations: chosen neurons or heads set to zero, to their mean, or to what they are in another prompt.

Components are ``{layer: indices}`` of one site: units of ``neuron``, heads of ``z``. The edits act on the last prompt token
unless told otherwise, where the reference values were read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import provenance
from emotrace.arguments import BatchSize
from emotrace.attribution.chunked import refuse_edited, require, require_whole
from emotrace.attribution.sets import Components
from emotrace.datasets import Prompts, PromptsLike
from emotrace.directions.groups import Within, check_within, missing, require_labels
from emotrace.edits import Ablate
from emotrace.forwards.rows import asked
from emotrace.forwards.streams import fitting, stream
from emotrace.labels import COUNTED, SITE_DIMS, Component, EmotraceError, Positions, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations

Reference = Mapping[int, xr.DataArray] | xr.DataArray | Activations
"""Activations, all of whose rows count (``acts.where(position="last")`` narrows them), an array of them, or values ``[token,
unit]`` or ``[token, head, head_dim]`` of each layer. A prompt with several rows counts as the mean over its rows."""


@typed
def zero_ablation(site: str, components: Components, *, positions: Positions = "last") -> list[Ablate]:
    """Components set to zero.

    Args:
        site: ``neuron`` or ``z``.
        components: layer → units or heads.
        positions: where.
    """
    return _ablations(site, components, lambda layer, chosen: (None, {}), positions)


@typed
def mean_ablation(
    site: str, components: Components, reference: Reference, *, label: str = "emotion", positions: Positions = "last"
) -> list[Ablate]:
    """Components set to their mean over the reference prompts, every value of ``label`` with equal weight.

    What the components say of the label is taken away, and what all prompts share stays.

    Args:
        site: ``neuron`` or ``z``.
        components: layer → units or heads.
        reference: activations of the un-edited model at the last token (a capture, or `reference_values`).
        label: label of the prompts whose values count alike.
        positions: where.

    Raises:
        EmotraceError: for components that the reference lacks, or a label that all or some of its prompts lack.
    """

    def mean(layer: int, chosen: list[int]) -> tuple[np.ndarray, dict[str, Any]]:
        values, found = _values(reference, site, layer, chosen)
        if label not in found.coords:
            raise unknown("label", label, found.coords, "mean_ablation")
        named = {name: found.coords[name].variable.values for name in ("key", label) if name in found.coords}
        require_labels(pd.DataFrame(named), [label], "mean_ablation(reference=…)")
        _, code = np.unique(named[label].astype(str), return_inverse=True)
        weights = 1.0 / np.bincount(code)[code] / (code.max() + 1)
        return np.tensordot(weights, values.astype(np.float64), axes=1).ravel(), _origin(found)

    return _ablations(site, components, mean, positions)


@typed
def resample_ablation(
    site: str, components: Components, reference: Reference, donor: Mapping[str, str], *, positions: Positions = "last"
) -> list[Ablate]:
    """Components set to what they are in another prompt, all components of a prompt taken from the same one.

    The payload is gathered by the label ``key`` of the prompt that is edited.

    Args:
        site: ``neuron`` or ``z``.
        components: layer → units or heads.
        reference: activations of the un-edited model at the last token, of every donor.
        donor: key of each prompt → key of the prompt that its values come from (`donors`).
        positions: where.

    Raises:
        EmotraceError: for components or donors that the reference lacks.
    """
    keys = list(donor)

    def resampled(layer: int, chosen: list[int]) -> tuple[xr.DataArray, dict[str, Any]]:
        values, found = _values(reference, site, layer, chosen)
        at = {k: i for i, k in enumerate(found.coords["key"].variable.values.tolist())}
        lost = [k for k in donor.values() if k not in at]
        if lost:
            raise EmotraceError(f"resample_ablation: the reference has no prompt {lost[0]!r}, which others take from.")
        rows = values[[at[donor[k]] for k in keys]].reshape(len(keys), -1)
        return xr.DataArray(rows, dims=("key", "dim"), coords={"key": keys}), _origin(found)

    return _ablations(site, components, resampled, positions)


def donors(
    table: pd.DataFrame | Prompts,
    label: str = "emotion",
    within: Within = ("skeleton_id", "valence"),
    seed: int = 0,
) -> pd.DataFrame:
    """For each prompt another one of another label, from the same group where there is one.

    Args:
        table: prompts, or their table with ``key`` and labels.
        label: must differ between a prompt and its donor.
        within: labels that make a group, e.g. the same scenario and event; None for one group of all.
        seed: of the draw among the candidates.

    Returns:
        One row per prompt: ``key, donor, same_group``.

    Raises:
        EmotraceError: for a label that the prompts lack, or fewer than two values of it.
    """
    rows = table.table if isinstance(table, Prompts) else table
    names = check_within(rows, label, within)
    if bool(missing(rows[label]).any()) or len(set(rows[label])) < 2:
        raise EmotraceError(f"donors: every prompt needs a {label!r}, and they need at least two values of it.")
    rng = np.random.default_rng(seed)
    values, keys = rows[label].to_numpy(), rows["key"].to_numpy()
    everyone = np.arange(len(rows))
    found = []
    together = rows.reset_index(drop=True).groupby(list(names), dropna=False, sort=False).indices if names else {}
    for members in together.values() if names else [everyone]:
        for i in members:
            near = members[values[members] != values[i]]
            pool = near if len(near) else everyone[values != values[i]]
            found.append((i, str(keys[rng.choice(pool)]), bool(len(near))))
    found.sort()
    return pd.DataFrame(
        {
            "key": [str(keys[i]) for i, *_ in found],
            "donor": [d for _, d, _ in found],
            "same_group": [s for *_, s in found],
        }
    )


def reference_values(
    model: LanguageModel,
    prompts: PromptsLike,
    site: str,
    components: Components,
    *,
    batch_size: BatchSize = 32,
    progress: bool = True,
) -> dict[int, xr.DataArray]:
    """Values of some components at the last token of un-edited prompts; only these components are kept.

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes.
        site: ``neuron`` or ``z``.
        components: layer → units or heads to keep.
        batch_size: prompts per forward, or ``auto`` for what fits.
        progress: show a bar.

    Returns:
        Layer → ``[token, unit]`` or ``[token, head, head_dim]`` float32 with ``key`` and the prompts' labels on ``token``.
    """
    prompts = Prompts.of(prompts)
    layers, dim = sorted(components), _component(site).dim
    width = model.sites.address(site, layers[0]).width
    parts: dict[int, list[xr.DataArray]] = {layer: [] for layer in layers}
    chunk, size = fitting(4 * width * len(layers)), asked(model, batch_size, prompts)
    for _, acts in stream(
        model, prompts, site, layers=layers, prompts_per_chunk=chunk, batch_size=size, progress=progress,
        desc="reference",
    ):  # fmt: skip
        for layer in layers:
            parts[layer].append(acts.sel(site, layer=layer).sel({dim: sorted(components[layer])}).copy(deep=True))
    return {layer: xr.concat(parts[layer], "token") for layer in layers}


def stored_values(acts: Activations, site: str, components: Components) -> dict[int, xr.DataArray]:
    """As `reference_values`, of stored activations (`check_stored`): what they hold of some components, in memory."""
    array, dim = acts.sel(site), _component(site).dim
    return {
        layer: array.sel({"layer": layer, dim: sorted(chosen)}).copy(deep=True) for layer, chosen in components.items()
    }


def check_stored(
    acts: Activations, site: str, components: Components, *, label: str | None, keys: Iterable[str], place: str
) -> None:
    """Refuse activations that components cannot be taken from; nothing of the site is read.

    Args:
        acts: of the un-edited model.
        site: ``neuron`` or ``z``.
        components: layer → units or heads.
        label: that the rows need; None for no label.
        keys: of prompts that they need.
        place: the function, for messages.

    Raises:
        EmotraceError: for a site, layer, component, label or prompt that the activations lack.
    """
    require(acts, site, sorted(components), place)
    _whole(acts, site, place)
    if label is not None and label not in acts.columns:
        raise unknown("label", label, acts.columns, f"{place}, of the reference {acts.path}")
    lost = sorted(set(keys) - set(acts.column("key").tolist()))
    if lost:
        raise EmotraceError(
            f"{place}: the reference {acts.path} has no prompt {lost[0]!r} ({len(lost)} are missing), which others take from."
        )
    for layer, chosen in components.items():
        _chosen(acts.sel(site), site, list(chosen), layer)


def _ablations(
    site: str,
    components: Components,
    vector: Callable[[int, list[int]], tuple[Any, dict[str, Any]]],
    positions: Positions,
) -> list[Ablate]:
    component = _component(site)
    edits = []
    for layer in sorted(components):
        chosen = sorted(int(i) for i in components[layer])
        if chosen:
            values, origin = vector(layer, chosen)
            edits.append(Ablate(site, layers=[layer], positions=positions, vector=values, origin=origin or None,
                                **component.picked(chosen)))  # fmt: skip
    if not edits:
        raise EmotraceError("an ablation needs at least one component.")
    return edits


def _origin(found: xr.DataArray) -> dict[str, Any]:
    """What values are taken from: the model, and the rows."""
    return {**provenance.of(found), **provenance.rows_of(found)}


def _component(site: str) -> Component:
    for component in COUNTED.values():
        if site == component.site:
            return component
    raise unknown("site of components", site, [c.site for c in COUNTED.values()], "ablation")


def _values(reference: Reference, site: str, layer: int, chosen: list[int]) -> tuple[np.ndarray, xr.DataArray]:
    """``[token, unit]`` or ``[token, head, head_dim]`` of the chosen components of a layer, and what they are taken from."""
    dim = _component(site).dim
    if isinstance(reference, Activations):
        _whole(reference, site, "ablation(reference=…)")
        reference = reference.sel(site)  # lazy: of the layer the components are read that are chosen
    if isinstance(reference, xr.DataArray):
        layers = reference["layer"].values.tolist() if "layer" in reference.dims else []
        found = reference.sel(layer=layer) if layer in layers else None
    else:
        layers, found = list(reference), reference.get(layer)
    if found is None:
        raise unknown("layer of the reference", layer, layers, "ablation")
    at = _chosen(found, site, chosen, layer)
    picked = found.variable.isel({dim: at})  # without the labels of the tokens, which take longer
    values = picked.transpose("token", dim, ...).values
    keys = found.coords["key"].variable.values.tolist() if "key" in found.coords else range(len(values))
    if len(set(keys)) == len(values):
        return values, found
    _, first, of, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    means = np.zeros((len(first), *values.shape[1:]))
    np.add.at(means, of, values)
    means /= times.reshape(-1, *[1] * (values.ndim - 1))
    order = np.argsort(first)
    return means[order], found.isel(token=first[order])


def _whole(acts: Activations, site: str, place: str) -> None:
    """Refuse activations of another run than the un-edited model's, or of parts of components."""
    refuse_edited(acts, place)
    require_whole(acts, site, [dim for dim in SITE_DIMS[site] if dim != _component(site).dim], place)


def _chosen(found: xr.DataArray, site: str, chosen: list[int], layer: int) -> list[int]:
    """Where the chosen components are in a reference."""
    at = {c: i for i, c in enumerate(found.coords[_component(site).dim].variable.values.tolist())}
    lost = [c for c in chosen if c not in at]
    if lost:
        raise EmotraceError(f"the reference holds {len(at)} components of {site} at layer {layer}, but not {lost[0]}.")
    return [at[c] for c in chosen]
