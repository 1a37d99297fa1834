"""Stability: which components would be found again on other prompts. Pure; the cluster is the skeleton.

A circuit is an estimate from a sample of prompts. Here prompts are drawn anew, whole skeletons at a time, and the circuit
is chosen again from the scores that every pair has; no model runs.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import xarray as xr

from emotrace.discovery.selection import Rule, component, jaccard, select
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats import cluster_weights, fdr_bh
from emotrace.stats.ties import TIED


@typed
def bootstrap_circuits(
    found: xr.Dataset, n: int, *, draws: int = 200, by: str = "skeleton_id", absolute: bool = True, rule: Rule = "top",
    consensus: float = 0.95, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """How often every component is in the circuit of the n best, prompts being drawn with replacement.

    Args:
        found: Dataset of `scores`, with a score per pair.
        n: components of each circuit.
        draws: bootstrap samples.
        by: label whose values are drawn whole; ``pair`` draws pairs.
        absolute: rank by magnitude, so that components that lower the metric are taken too; False ranks by signed score.
        rule: one of `RULES` of `emotrace.discovery.selection`.
        consensus: the consensus circuit has every component that is in at least this share of the samples.
        seed: of the draws.

    Returns:
        ``inclusion[node | edge]`` in 0 … 1; ``lo`` and ``hi``, the 95 % interval of the mean score; ``consensus`` bool; and
        ``jaccard``, the mean over pairs of samples, with ``null``, that of random circuits in their places, with as many
        components of every kind and layer (`random_like`).

    Raises:
        EmotraceError: for scores without pairs, an unknown label, or a share outside (0, 1].
    """
    score, clusters = _sample(found, by)
    dim = component(score)
    if not 0 < consensus <= 1:
        raise EmotraceError(
            f"bootstrap_circuits(consensus={consensus}): a share of the samples, above 0 and at most 1."
        )
    names, code = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), score.sizes[dim]))
    np.add.at(sums, code, score.values.astype(np.float64))
    weights = cluster_weights(len(names), draws, seed)
    means = (weights @ sums) / (weights @ np.bincount(code))[:, None]
    like = score.isel(pair=0, drop=True)
    chosen = np.stack([select(like.copy(data=m), n, rule=rule, absolute=absolute).values for m in means])
    inclusion = chosen.mean(0)
    lo, hi = np.quantile(means, [0.025, 0.975], axis=0)
    rng = np.random.default_rng(seed)
    some = rng.permutation(draws)[: min(draws, 60)]
    others = np.stack([random_like(like.copy(data=chosen[i]), rng).values for i in some])
    again, null = (
        float(np.mean([jaccard(a, b) for a, b in combinations(sets, 2)])) if len(some) > 1 else np.nan
        for sets in (chosen[some], others)
    )
    coords = {k: v for k, v in like.coords.items() if dim in v.dims}
    data = {
        "inclusion": (dim, inclusion),
        "lo": (dim, lo),
        "hi": (dim, hi),
        "consensus": (dim, inclusion >= consensus - TIED),
    }
    attrs = {
        **found.attrs, "n": int(n), "draws": int(draws), "by": by, "clusters": len(names), "absolute": absolute,
        "rule": rule, "seed": int(seed), "consensus_share": float(consensus),
    }  # fmt: skip
    whole = xr.Dataset({**data, "jaccard": again, "null": null}, coords=coords, attrs=attrs)
    whole["consensus"].attrs = {**found.attrs, "rule": f"consensus of {consensus:g}", "absolute": absolute}
    return whole


@typed
def across(
    found: xr.Dataset, n: int, by: str = "theme", *, absolute: bool = True, rule: Rule = "top", draws: int = 1000,
    seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Overlap of the circuits of every two values of a label: themes, templates, valences, emotions.

    Args:
        found: Dataset of `scores`.
        n: components of each circuit.
        by: label of the pairs.
        absolute: rank by magnitude, so that components that lower the metric are taken too; False ranks by signed score.
        rule: one of `RULES` of `emotrace.discovery.selection`.
        draws: random circuits of the same size for the null, matched in the kind and layer of their components.
        seed: of the draws.

    Returns:
        ``jaccard[value, value_other]``; ``mean``, over the pairs of values; ``null[draw]``, the mean of as many random
        circuits, each with as many components of every kind and layer as the one it stands for; and ``p``,
        (1 + #{null ≥ mean}) / (1 + draws).

    Raises:
        EmotraceError: for a label with fewer than two values.
    """
    score, values = _sample(found, by)
    names = list(dict.fromkeys(values.tolist()))
    if len(names) < 2:
        raise EmotraceError(f"across(by={by!r}): all pairs have the value {names[0]!r}; there is nothing to compare.")
    masks = [select(score.isel(pair=np.flatnonzero(values == v)), n, rule=rule, absolute=absolute) for v in names]
    table = np.array([[jaccard(a, b) for b in masks] for a in masks])
    upper = np.triu_indices(len(names), 1)
    rng = np.random.default_rng(seed)
    null = np.zeros(draws)
    for d in range(draws):
        drawn = [random_like(c, rng) for c in masks]
        null[d] = np.mean([jaccard(drawn[a], drawn[b]) for a, b in zip(*upper, strict=True)])
    mean = float(table[upper].mean())
    p = float((1 + (null >= mean - 1e-12).sum()) / (1 + draws))
    return xr.Dataset(
        {"jaccard": (("value", "value_other"), table), "mean": mean, "null": ("draw", null), "p": p},
        coords={"value": names, "value_other": names},
        attrs={**found.attrs, "by": by, "n": int(n), "seed": int(seed), "rule": rule, "absolute": absolute},
    )


@typed
def significance(found: xr.Dataset, *, by: str = "skeleton_id", draws: int = 4999, seed: int = 0) -> xr.Dataset:
    """Whether the mean score of each component differs from zero: sign-flip test over clusters, FDR over components.

    Args:
        found: Dataset of `scores`.
        by: label whose values are flipped whole; ``pair`` flips pairs.
        draws: random patterns of signs; p = (1 + extreme) / (1 + draws), never 0.
        seed: of the draws.

    Returns:
        ``mean``, ``p`` (two-sided) and ``q`` (Benjamini–Hochberg over all components) by node or edge. A component whose
        scores are all zero has p = 1.
    """
    score, clusters = _sample(found, by)
    dim = component(score)
    names, code = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), score.sizes[dim]))
    np.add.at(sums, code, score.values.astype(np.float64))
    seen = np.abs(sums.sum(0)) - 1e-9 * np.abs(sums).sum(0)  # a sum in another order may fall short by rounding
    rng, extreme = np.random.default_rng(seed), np.zeros(score.sizes[dim])
    for at in range(0, draws, 500):
        signs = rng.integers(0, 2, size=(min(500, draws - at), len(names))) * 2.0 - 1.0
        extreme += (np.abs(signs @ sums) >= seen).sum(0)
    p = (1 + extreme) / (1 + draws)
    coords = {k: v for k, v in score.coords.items() if v.dims == (dim,)}
    return xr.Dataset(
        {"mean": (dim, score.values.mean(0)), "p": (dim, p), "q": (dim, fdr_bh(p))},
        coords=coords,
        attrs={**found.attrs, "by": by, "clusters": len(names), "draws": int(draws), "seed": int(seed)},
    )


@typed
def random_like(mask: xr.DataArray, rng: np.random.Generator) -> xr.DataArray:
    """A random circuit's mask, matched: as many nodes of every kind and layer, edges between the same layers and inputs."""
    dim = component(mask)
    if dim == "node":
        strata = np.array([f"{k}{i}" for k, i in zip(mask["kind"].values, mask["layer"].values, strict=True)])
    else:
        ends = zip(mask["source"].values, mask["target"].values, mask["input"].values, strict=True)
        strata = np.array([f"{s.split('.')[0]}>{t.split('.')[0]}.{i}" for s, t, i in ends])
    inside, out = np.asarray(mask.values, dtype=bool), np.zeros(mask.size, dtype=bool)
    for stratum in np.unique(strata[inside]):
        members = np.flatnonzero(strata == stratum)
        out[rng.choice(members, int(inside[members].sum()), replace=False)] = True
    return mask.copy(data=out)


def _sample(found: xr.Dataset, by: str) -> tuple[xr.DataArray, np.ndarray]:
    score = found["score"].assign_attrs(found.attrs)
    if "pair" not in score.dims:
        raise EmotraceError("stability needs a score for every pair: the Dataset that scores() returns.")
    if by not in found.coords or found[by].dims != ("pair",):
        labels = [str(c) for c, v in found.coords.items() if v.dims == ("pair",)]
        raise unknown("label of the pairs", by, labels, "by=…")
    return score, found[by].values
