"""Searchlight: τ-b of every single neuron's dissimilarities with those of every attribute, streamed over blocks of neurons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace import arguments, provenance
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.kendall import (
    BLOCK,
    Ranked,
    Reference,
    check_alternative,
    check_ties,
    concordance,
    ranked,
    reference,
    tau_b,
)
from emotrace.rsa.matrices import AVERAGES, concepts, reordered
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.stats.ties import EPS, tolerance


@typed
def searchlight(
    activations: xr.DataArray,
    references: xr.DataArray,
    *,
    concept: str = "emotion",
    over: str | None = "seed",
    average: str = "rdms",
    alternative: str = "greater",
    permutations: int = 0,
    seed: int = 0,
    block: int = BLOCK,
    ties: str = "rounded",
    progress: bool = False,
) -> xr.Dataset:
    """Kendall's τ-b of each neuron's RDM with each reference RDM.

    d_g(i, j) = mean over seeds of |a_s,i,g − a_s,j,g| (``average="rdms"``, published), or |ā_i,g − ā_j,g| of the mean
    activations ("patterns"), in float64; τ_b(d_g, reference) with the asymptotic p of `tau_b`. Exact: no sampling of pairs.

    That p takes the pairs for independent, so it is too small. ``permutations`` adds two that do not: the concepts of the
    references are shuffled (Mantel), the same shuffles for all neurons. ``p_mantel`` = (1 + shuffles with τ* ≥ τ) / (1 +
    shuffles); ``p_max`` compares with the largest τ* of all neurons instead: family-wise error per reference.

    Args:
        activations: ``[seed, emotion, layer, unit]``, in any order; concepts are matched by name with the references',
            others are left out. Every dim but ``concept`` and ``over`` counts as neurons. It may be lazy: blocks are
            read as they are needed.
        references: RDMs ``[…, pair]``, e.g. of `attribute_rdms`.
        concept: dim of the concepts.
        over: dim to average over; None where there is none.
        average: ``rdms`` or ``patterns``.
        alternative: of all p: ``greater`` (published), ``less`` or ``two-sided``.
        permutations: shuffles; 0: none. Each costs about as much as the rest.
        seed: of the shuffles.
        block: neurons at a time.
        ties: ``rounded``: distances that differ by rounding alone are equal (`emotrace.stats.ties`); ``exact``: they are
            compared to the last bit, as published.
        progress: show a bar.

    Returns:
        ``tau`` and ``p`` (and ``p_mantel``, ``p_max``) ``[attribute, layer, unit]``. A neuron that is the same for all
        concepts has no τ: NaN, counted in ``attrs["undefined"]``.

    Raises:
        EmotraceError: for a missing dim, a concept that the activations lack, or values that are not finite.
    """
    arguments.resampling("searchlight", seed, permutations=permutations)
    check_alternative(alternative)
    check_ties(ties)
    if average not in AVERAGES:
        raise unknown("average", average, AVERAGES, "searchlight")
    if block < 1 or permutations < 0:
        raise EmotraceError(f"searchlight(block={block}, permutations={permutations}): at least 1 and 0.")
    names = concepts(references)
    plan = _arranged(activations, names, concept, over)
    references = references.transpose(..., "pair")
    flat = references.values.reshape(-1, references.sizes["pair"]).T.astype(np.float64)
    theirs = ranked(flat, tolerance(flat, axis=0) if ties == "rounded" else 0.0)
    if (theirs.rank.max(0) == 0).any():
        raise EmotraceError("searchlight: a reference has the same dissimilarity for every pair; no τ is defined.")
    n_references, shape = theirs.rank.shape[1], plan.shape
    found = {n: np.empty((n_references, int(np.prod(shape)))) for n in ("tau", "p", "p_mantel", "p_max")}
    against, shuffled = reference(theirs), _shuffled(theirs, len(names), permutations, seed) if permutations else None
    largest = np.full((permutations, n_references), -np.inf)
    blocks = -(-shape[-1] // block) * int(np.prod(shape[:-1]))
    for part, values in progress_bar(
        plan.blocks(block), total=blocks, desc="searchlight", unit="block", enabled=progress
    ):
        mine = mean_distances(values, average)
        limit = np.zeros(mine.shape[1])
        if ties == "rounded":
            size = np.abs(values).max((0, 1)).astype(np.float64)
            limit = tolerance(mine, axis=0, noise=EPS * size)[0]
        tau, p = tau_b(mine, against, alternative, limit)
        found["tau"][:, part], found["p"][:, part] = tau.T, p.T
        if shuffled is not None:
            null = _null(ranked(mine, limit), shuffled).reshape(-1, permutations, n_references)
            null, here = (_sided(v, alternative) for v in (null, tau[:, None, :]))
            found["p_mantel"][:, part] = ((1 + (null >= here - 1e-12).sum(1)) / (1 + permutations)).T
            np.fmax(largest, np.fmax.reduce(null, axis=0), out=largest)
    if shuffled is not None:
        here = _sided(found["tau"], alternative)[:, :, None]
        found["p_max"] = np.stack([(1 + (m >= h - 1e-12).sum(1)) for m, h in zip(largest.T, here, strict=True)]) / (
            1 + permutations
        )
        for name in ("p_mantel", "p_max"):
            found[name][np.isnan(found["tau"])] = np.nan
    lead = [str(d) for d in references.dims[:-1]]
    sizes = [references.sizes[d] for d in lead]
    coords = {d: references[d].values for d in lead if d in references.coords} | plan.coords
    kept = found if permutations else {n: found[n] for n in ("tau", "p")}
    arrays = {n: ((*lead, *plan.dims), v.reshape(*sizes, *shape)) for n, v in kept.items()}
    attrs: dict[str, Any] = {
        "method": "kendall tau-b", "distance": "absolute", "average": average if over else "", "over": over or "",
        "concept": concept, "n_concepts": len(names), "n_pairs": len(theirs.rank), "alternative": alternative,
        "permutations": permutations, "seed": seed, "ties": ties, "undefined": int(np.isnan(found["tau"][0]).sum()),
    }  # fmt: skip
    attrs |= {f"activations_{k}": v for k, v in activations.attrs.items()} | provenance.of(activations)
    out = xr.Dataset(arrays, coords, attrs)
    for name in out:
        out[name].attrs.update(attrs)
    return out


def mean_distances(values: np.ndarray, average: str = "rdms") -> np.ndarray:
    """|a_i − a_j| of each column, mean over seeds: ``[seed, concept, column]`` → float64 ``[pair, column]``."""
    seeds, n, columns = values.shape
    if average == "patterns":
        values, seeds = values.astype(np.float64).mean(0)[None], 1
    out = np.zeros((n * (n - 1) // 2, columns))
    buffer = np.empty((n - 1, columns))
    for one in values:
        wide, start = one.astype(np.float64), 0
        for first in range(n - 1):
            here = buffer[: n - 1 - first]
            np.subtract(wide[first + 1 :], wide[first], out=here)
            np.abs(here, out=here)
            out[start : start + len(here)] += here
            start += len(here)
    return out if seeds == 1 else np.divide(out, seeds, out=out)


class _Plan(NamedTuple):
    """Activations as ``[seed, concept, neuron dims …]``, not yet read."""

    x: xr.DataArray
    dims: list[str]
    coords: dict[str, np.ndarray]
    seeds: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.sizes[d] for d in self.dims)

    def blocks(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Flat positions of some neurons, and their activations ``[seed, concept, neuron]``."""
        *outer, last = self.shape
        for n, index in enumerate(itertools.product(*map(range, outer))):
            for start in range(0, last, size):
                place = dict(zip(self.dims, (*index, slice(start, start + size)), strict=True))
                values = np.asarray(self.x.isel(place).values)
                values = values if self.seeds else values[None]
                if not np.isfinite(values).all():
                    bad = start + int(np.argmin(np.isfinite(values).all((0, 1))))
                    where = ", ".join(f"{d} {i}" for d, i in zip(self.dims, (*index, bad), strict=True))
                    raise EmotraceError(f"searchlight: an activation of the neuron at {where} is not finite.")
                yield slice(n * last + start, n * last + start + values.shape[-1]), values


def _arranged(x: xr.DataArray, names: list[str], concept: str, over: str | None) -> _Plan:
    have = concepts(x, concept)
    for name in names:
        if name not in have:
            raise unknown(concept, name, have, "the activations")
    if over is not None and over not in x.dims:
        raise unknown("dim to average over", over, map(str, x.dims), "searchlight")
    first = [concept] if over is None else [over, concept]
    dims = sorted(
        (str(d) for d in x.dims if d not in first), key=lambda d: x.sizes[d]
    )  # the longest last, for long blocks
    if not dims or 0 in x.shape:
        raise EmotraceError(
            f"searchlight: no neurons in {dict(x.sizes)}; a dim besides {' and '.join(first)} is needed."
        )
    if names != have:
        x = x.isel({concept: [have.index(n) for n in names]})
    coords = {d: x[d].values for d in dims if d in x.coords}
    return _Plan(x.transpose(*first, *dims), dims, coords, over is not None)


def _shuffled(y: Ranked, n: int, permutations: int, seed: int) -> Reference:
    """The references with their concepts shuffled: columns ``[shuffle · reference]``."""
    rng = np.random.default_rng(seed)
    rank = np.concatenate([y.rank[reordered(n, rng.permutation(n))] for _ in range(permutations)], axis=1)
    return reference(Ranked(rank, *(np.tile(t, permutations) for t in y[1:])))


def _null(mine: Ranked, shuffled: Reference) -> np.ndarray:
    """τ_b with the shuffled references: ``[column, shuffle · reference]``."""
    total = len(mine.rank) * (len(mine.rank) - 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return concordance(mine, shuffled) / np.sqrt(total - mine.pairs)[:, None] / np.sqrt(total - shuffled.of.pairs)


def _sided(tau: np.ndarray, alternative: str) -> np.ndarray:
    return {"greater": tau, "less": -tau, "two-sided": np.abs(tau)}[alternative]
