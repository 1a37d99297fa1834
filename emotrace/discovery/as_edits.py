"""Edits: a circuit as interventions that act in forwards, generation and teacher forcing alike."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import numpy as np
import xarray as xr

from emotrace import provenance
from emotrace.arguments import BatchSize
from emotrace.attribution.chunked import has, refuse_edited, require_whole
from emotrace.datasets import PromptsLike
from emotrace.directions.source import source
from emotrace.discovery.selection import component, nodes_of
from emotrace.edits import Ablate, Edit
from emotrace.forwards.capturing import capture
from emotrace.labels import COMPONENTS, SITE_DIMS, SUBLAYERS, EmotraceError, Positions, unknown
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations

PLACE: Final = "discovery.edits"
PATTERNS = {kind: re.escape(c.name).replace(r"\{\}", r"(\d+)") for kind, c in COMPONENTS.items()}


@typed
def edits(
    mask: xr.DataArray,
    how: Literal["zero", "mean"] = "zero",
    *,
    outside: bool = False,
    positions: Positions = "all",
    model: LanguageModel | None = None,
    prompts: PromptsLike | Activations | None = None,
    batch_size: BatchSize = 32,
) -> list[Edit]:
    """The nodes of a circuit taken away, or all others.

    An edit acts where a component writes, so an edge set is taken by its writers: all that a writer sends is taken away
    with it. (Cutting single edges is what `evaluate` and `scores` do.)

    Args:
        mask: of the circuit, boolean ``[node]`` or ``[edge]``.
        how: ``zero``, or the ``mean`` over prompts.
        outside: take away what is not in the circuit, and leave it alone.
        positions: policy or span.
        model: for ``mean`` over prompts: from `emotrace.load`.
        prompts: for ``mean``: it is over them, each as the mean over these positions; activations of the un-edited model need
            no model.
        batch_size: prompts per forward, for ``mean``; ``auto`` for what fits.

    Returns:
        One `Ablate` per site and layer, in order of execution.

    Raises:
        EmotraceError: for an empty set, an unknown way, a mean without model and prompts, or activations of another model, of
            edits, or that lack a site, a layer or a part of it.
    """
    if how not in ("zero", "mean"):
        raise unknown("ablation", how, ("zero", "mean"), f"{PLACE}(how=…)")
    if how == "mean" and not isinstance(prompts, Activations) and (model is None or prompts is None):
        raise EmotraceError(
            f"{PLACE}(how='mean') takes the mean over prompts: give model= and prompts=, or prompts=acts."
        )
    if isinstance(prompts, Activations):
        provenance.together(PLACE, mask=mask, prompts=prompts)
    if model is not None:
        provenance.check(mask, model.sites, f"{PLACE}(mask=…)")
    inside = nodes_of(mask)
    everything = nodes_of(mask.copy(data=np.ones(mask.size, dtype=bool)))
    chosen = [n for n in everything if n not in set(inside)] if outside else inside
    if not chosen:
        raise EmotraceError(f"{PLACE}: there is no {component(mask)} {'outside' if outside else 'in'} the circuit.")
    groups: dict[tuple[int, str], list[int]] = {}
    for name in chosen:
        kind, layer, index = parsed(name)
        groups.setdefault((layer, kind), []).append(index)
    found: list[Edit] = []
    for (layer, kind), members in sorted(groups.items(), key=lambda g: (g[0][0], list(PATTERNS).index(g[0][1]))):
        where = COMPONENTS[kind]
        vector: np.ndarray | None = None
        taken: dict[str, Any] = {}
        if how == "mean":
            acts = prompts
            if not isinstance(
                acts, Activations
            ):  # one site of one layer at a time: memory does not grow with the circuit
                assert model is not None
                assert acts is not None
                acts = capture(
                    model, acts, where.site, layers=[layer], positions=positions, batch_size=batch_size, progress=False
                )
            vector, taken = _means(acts, where.site, layer, positions)
        found.append(Ablate(where.site, layers=[layer], positions=positions, vector=vector, **where.picked(sorted(members)),
                            origin={**provenance.of(mask), **taken}))  # fmt: skip
    return found


def parsed(name: str) -> tuple[str, int, int]:
    """Kind, layer and index (0 where a layer has one) of a node.

    Raises:
        EmotraceError: for what is no name of a node.
    """
    for kind, pattern in PATTERNS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return kind, int(match[1]), int(match[2]) if len(match.groups()) > 1 else 0
    raise EmotraceError(f"{name!r} is no node: names are a3.h5, n3.120, attn3, m3, r3.")


def _means(acts: Activations, site: str, layer: int, positions: Positions) -> tuple[np.ndarray, dict[str, Any]]:
    """The mean over prompts, each as the mean over its rows: float32 of float64 sums, in blocks of rows; and of which rows."""
    variable = "residual" if site in SUBLAYERS else site
    refuse_edited(acts, PLACE)
    if not has(acts, site, layer):
        raise EmotraceError(f"{PLACE}: {acts.path} does not hold {site!r} of layer {layer}; capture it.")
    require_whole(acts, variable, SITE_DIMS[site], PLACE)
    at = {"sublayer": site} if site in SUBLAYERS else {}
    rows = source(acts.sel(variable, layer=layer, position=positions, **at), position="all")
    _, of, times = np.unique(rows.table["prompt"], return_inverse=True, return_counts=True)
    weight = 1 / (times[of] * len(times))
    found = np.zeros(rows.shape[2])
    for part, values in rows.blocks(0, np.arange(len(of))):
        found += weight[part] @ values[0]
    return found.astype(np.float32), provenance.rows_of(rows.array)
