"""Comparison of RDMs: correlation, Mantel permutation, bootstrap over concepts and subjects, noise ceiling."""

from __future__ import annotations

import numpy as np
import scipy
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.correlations import check_method, correlate, prepared, standard
from emotrace.rsa.kendall import check_alternative, check_ties
from emotrace.rsa.matrices import concepts, matched, reordered
from emotrace.rsa.resampling import draw_concepts, weighted
from emotrace.signatures import typed
from emotrace.stats.ties import constant, tied

_CHUNK = 1024


@typed
def compare(
    rdms: xr.DataArray,
    references: xr.DataArray,
    method: str = "kendall",
    *,
    alternative: str = "greater",
    permutations: int = 0,
    seed: int = 0,
    ties: str = "rounded",
) -> xr.Dataset:
    """Correlation of every RDM with every reference RDM, concepts matched by name.

    Args:
        rdms: ``[…, pair]``.
        references: ``[…, pair]``, of the same concepts in any order.
        method: ``kendall`` (τ-b), ``spearman`` or ``pearson``.
        alternative: of the p-values: ``greater``, ``less`` or ``two-sided``.
        permutations: Mantel: shuffles of the concepts, each applied to rows and columns of the RDM alike; 0: none.
        seed: of the shuffles.
        ties: ``rounded``: dissimilarities that differ by rounding alone are equal (`emotrace.stats.ties`); ``exact``: they are
            compared to the last bit, as published.

    Returns:
        ``correlation`` and ``p`` (asymptotic: as if the pairs were independent, as published) over the dims of both; with
        permutations also ``p_mantel`` = (1 + shuffles at least as large) / (1 + shuffles), and ``null_sd``.

    Raises:
        EmotraceError: for concepts that differ, values that are not finite, an RDM that is constant, or dims that occur twice.
    """
    arguments.resampling("compare", seed, permutations=permutations)
    check_method(method)
    check_alternative(alternative)
    check_ties(ties)
    x, y, names, dims, coords = paired(rdms, references, ties)
    r, p = correlate(x.T, y.T, method, alternative)
    shape = tuple(rdms.sizes[d] for d in rdms.dims if d != "pair") + tuple(
        references.sizes[d] for d in references.dims if d != "pair"
    )
    found = {"correlation": r, "p": p}
    if permutations:
        null = mantel_null(x, y, method, permutations=permutations, n=len(names), seed=seed)
        found["p_mantel"] = permutation_p(r, null, alternative)
        found["null_sd"] = null.std(0)
    out = xr.Dataset({k: (dims, v.reshape(shape)) for k, v in found.items()}, coords)
    return out.assign_attrs(
        method=method, alternative=alternative, permutations=permutations, seed=seed, n_concepts=len(names),
        n_pairs=x.shape[1], ties=ties,
    )  # fmt: skip


def mantel_null(x: np.ndarray, y: np.ndarray, method: str, *, permutations: int, n: int, seed: int = 0) -> np.ndarray:
    """Correlations after shuffling the concepts of x, the same shuffles for all: ``[shuffle, x, y]``."""
    if permutations < 1:
        raise EmotraceError(f"a permutation test needs at least one shuffle, not {permutations}.")
    rng = np.random.default_rng(seed)
    index = np.stack([reordered(n, rng.permutation(n)) for _ in range(permutations)])
    against = prepared(y.T, method)
    null = np.empty((permutations, len(x), len(y)))
    for row, values in enumerate(x):
        for start in range(0, permutations, _CHUNK):
            part = slice(start, start + _CHUNK)
            null[part, row] = correlate(values[index[part]].T, against, method)[0]
    return null


def permutation_p(observed: np.ndarray, null: np.ndarray, alternative: str = "greater") -> np.ndarray:
    """(1 + draws at least as extreme) / (1 + draws) over the first axis of ``null``; it is never 0.

    ``two-sided`` compares absolute values. Differences below 1e-12 count as equal.
    """
    check_alternative(alternative)
    if alternative == "two-sided":
        observed, null = np.abs(observed), np.abs(null)
    extreme = null <= observed + 1e-12 if alternative == "less" else null >= observed - 1e-12
    return (1 + extreme.sum(0)) / (1 + len(null))


@typed
def bootstrap(
    rdms: xr.DataArray,
    references: xr.DataArray,
    method: str = "kendall",
    *,
    over: str | None = None,
    resample_concepts: bool = True,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """How far the correlation of the averaged RDM would move with other concepts, or other subjects or seeds.

    Concepts are drawn with replacement; a pair then counts c_i · c_j times, and pairs of a concept with itself, which
    have no distance, not at all. Subjects are drawn with replacement and their RDMs averaged anew. Both at once generalises
    to new concepts and new subjects. The published figures are those of ``resample_concepts=False`` (subjects only).

    Args:
        rdms: ``[pair]`` or ``[over, pair]``: one model or group.
        references: ``[…, pair]``.
        method: ``kendall``, ``spearman`` or ``pearson``.
        over: dim of the subjects or seeds; None: the RDM is taken as it is.
        resample_concepts: whether concepts are drawn.
        draws: bootstrap draws.
        level: coverage of the percentile interval.
        seed: of the draws.

    Returns:
        For each reference: ``correlation`` of the whole sample; ``mean``, ``se`` (sd), ``lo`` and ``hi`` of the draws; ``p`` =
        (1 + draws ≤ 0) / (1 + draws), one-sided; ``n_draws`` in which it was defined.

    Raises:
        EmotraceError: if nothing is resampled, for other dims than those above, or a level outside (0, 1).
    """
    arguments.resampling("bootstrap", seed, draws=draws)
    check_method(method)
    arguments.number("bootstrap(level)", level)
    if not 0 < level < 1 or draws < 2:
        raise EmotraceError(f"bootstrap(level={level}, draws={draws}): a level in (0, 1) and at least 2 draws.")
    if over is None and not resample_concepts:
        raise EmotraceError(
            "bootstrap: nothing to resample; name the dim of the subjects (over=…) or resample_concepts=True."
        )
    have = [str(d) for d in rdms.dims if d != "pair"]
    if have != ([] if over is None else [over]):
        raise EmotraceError(
            f"bootstrap(over={over!r}): the RDMs have the dims {have} besides pair; average or select first."
        )
    x, y, names, dims, coords = paired(rdms, references)
    rng = np.random.default_rng(seed)
    subjects = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=draws) / len(x) if over else None
    counts = draw_concepts(len(names), draws, rng) if resample_concepts else None
    values = np.empty((draws, len(y)))
    if counts is None:
        assert subjects is not None
        values[:] = correlate(tied(subjects @ x).T, y.T, method)[0]
    elif subjects is None:
        values[:] = weighted(x[0], y, counts, method)
    else:
        for i, (share, count) in enumerate(zip(subjects, counts, strict=True)):
            values[i] = weighted(tied(share @ x), y, count[None], method)[0]
    sizes = [references.sizes[d] for d in references.dims if d != "pair"]
    lo, hi = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    defined = np.isfinite(values).sum(0)
    found = {
        "correlation": correlate(tied(x.mean(0))[:, None], y.T, method)[0][0], "mean": np.nanmean(values, 0),
        "se": np.nanstd(values, 0, ddof=1), "lo": lo, "hi": hi, "p": (1 + (values <= 0).sum(0)) / (1 + defined),
        "n_draws": defined,
    }  # fmt: skip
    kept = [d for d in dims if d != over]
    out = xr.Dataset(
        {k: (kept, v.reshape(sizes)) for k, v in found.items()}, {k: v for k, v in coords.items() if k != over}
    )
    return out.assign_attrs(
        method=method, resampled=[n for n, on in (("concepts", counts is not None), (over, over is not None)) if on],
        draws=draws, level=level, seed=seed, n_concepts=len(names),
    )  # fmt: skip


@typed
def noise_ceiling(rdms: xr.DataArray, over: str = "subject", method: str = "kendall") -> xr.Dataset:
    """How well any model could do, given how much the subjects differ (Nili et al. 2014).

    upper: mean correlation of each subject's RDM with the mean of all subjects', itself among them. lower: with the mean of
    the others. Before averaging, each RDM is standardised (Pearson) or ranked (Spearman, Kendall), so that no subject weighs
    more for the range of their ratings. That average is the best RDM for Pearson and Spearman; for τ-b it is only close to it.

    Args:
        rdms: ``[over, pair]``, perhaps with more dims, each of which gets a ceiling.
        over: dim of the subjects, at least 2.
        method: ``kendall``, ``spearman`` or ``pearson``.

    Returns:
        ``lower`` and ``upper``.

    Raises:
        EmotraceError: for a missing dim, fewer than 2 subjects, or an RDM that is constant or not finite.
    """
    check_method(method)
    concepts(rdms)
    if over not in rdms.dims:
        raise unknown("dim of subjects", over, map(str, rdms.dims), "noise_ceiling")
    if rdms.sizes[over] < 2:
        raise EmotraceError(f"noise_ceiling: {rdms.sizes[over]} along {over!r}; at least 2.")
    rdms = rdms.transpose(..., over, "pair")
    shape = rdms.shape[:-2]
    bounds = np.empty((2, *shape))
    for index in np.ndindex(shape):
        x = np.asarray(rdms.values[index], dtype=np.float64)
        _check(x, "noise_ceiling")
        x = tied(x)
        units = standard(x.T, method).T if method == "pearson" else scipy.stats.rankdata(x, axis=1)
        total, n = units.sum(0), len(x)
        with_all = correlate(x.T, tied(total)[:, None], method)[0][:, 0]
        left = [correlate(x[i][:, None], tied(total - units[i])[:, None], method)[0].item() for i in range(n)]
        bounds[(0, *index)], bounds[(1, *index)] = np.mean(left), with_all.mean()
    dims = [str(d) for d in rdms.dims[:-2]]
    coords = {d: rdms[d].values for d in dims if d in rdms.coords}
    out = xr.Dataset({"lower": (dims, bounds[0]), "upper": (dims, bounds[1])}, coords)
    return out.assign_attrs(method=method, over=over, n=rdms.sizes[over])


def paired(
    rdms: xr.DataArray, references: xr.DataArray, ties: str = "rounded"
) -> tuple[np.ndarray, np.ndarray, list[str], list[str], dict[str, np.ndarray]]:
    """Flat values ``[x, pair]`` and ``[y, pair]`` over the same concepts, their names, and the dims and labels of both."""
    names, others = concepts(rdms), concepts(references)
    if set(names) != set(others):
        here, there = (", ".join(sorted(set(a) - set(b))[:5]) or "none" for a, b in ((names, others), (others, names)))
        raise EmotraceError(
            f"the RDMs are of other concepts than the references: only in the RDMs: {here}; only in the references: "
            f"{there}. `matched` leaves concepts out."
        )
    references = matched(references, names)
    parts = [r.transpose(..., "pair") for r in (rdms, references)]
    dims = [str(d) for part in parts for d in part.dims[:-1]]
    if len(set(dims)) != len(dims):
        raise EmotraceError(f"the dims {dims} of RDMs and references have a name in common; rename one.")
    coords = {str(d): part[d].values for part in parts for d in part.dims[:-1] if d in part.coords}
    x, y = (np.asarray(p.values, dtype=np.float64).reshape(-1, p.shape[-1]) for p in parts)
    for values, what in ((x, "RDM"), (y, "reference")):
        _check(values, what)
    if ties == "rounded":
        x, y = tied(x), tied(y)
    return x, y, names, dims, coords


def _check(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise EmotraceError(f"{what}: {int((~np.isfinite(values)).sum())} dissimilarities are not finite.")
    if constant(values).any():
        raise EmotraceError(f"{what}: all dissimilarities of one are the same, so it correlates with nothing.")
