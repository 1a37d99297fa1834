"""Halves: how alike are directions of two sets of groups that have nothing in common?"""

from __future__ import annotations

import numpy as np


def cosines(
    inner: np.ndarray, code: np.ndarray, clusters: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of each level's direction to that of all others ``[level, label]``, and the bootstrap sd of its atanh.

    Sums over (level, cluster) units suffice: with K the Gram matrix of the units and w the draw, ⟨t, rest⟩ = w_t K w_rest, so no
    draw touches the width again.

    Args:
        inner: ``[group, label, feature]``, each group's mean taken away.
        code: level of each group.
        clusters: cluster of each group.
        weights: ``[draw, cluster]`` of `stats.cluster_weights`.
    """
    n_levels, n_clusters = int(code.max()) + 1, weights.shape[1]
    units, of_group = np.unique(code * n_clusters + clusters, return_inverse=True)
    level = units // n_clusters
    draws = np.vstack([np.ones(len(units)), weights[:, units % n_clusters]])
    n_labels = inner.shape[1]
    cosine, spread = np.empty((n_levels, n_labels)), np.empty((n_levels, n_labels))
    summed = np.zeros((len(units), *inner.shape[1:]))
    np.add.at(summed, of_group, inner)
    for e in range(n_labels):
        x = summed[:, e]
        k = x @ x.T
        projected = draws @ k
        whole = (projected * draws).sum(1)
        for t in range(n_levels):
            mine = level == t
            w = draws[:, mine]
            cross = (projected[:, mine] * w).sum(1)
            own = ((w @ k[np.ix_(mine, mine)]) * w).sum(1)
            rest = np.maximum(whole - 2 * cross + own, 0.0)
            size = np.sqrt(np.maximum(own * rest, 1e-300))
            values = np.clip((cross - own) / size, -1 + 1e-15, 1 - 1e-15)
            cosine[t, e] = values[0]
            drawn = (w[1:].sum(1) > 0) & (draws[1:, ~mine].sum(1) > 0)  # draws without one of them say nothing
            spread[t, e] = np.arctanh(values[1:][drawn]).std() if drawn.sum() > 1 else np.inf
    return cosine, spread


def halved(inner: np.ndarray, code: np.ndarray) -> np.ndarray:
    """The cosines of `cosines` alone."""
    sums = np.zeros((int(code.max()) + 1, *inner.shape[1:]))
    np.add.at(sums, code, inner)
    rest = sums.sum(0) - sums
    size = np.linalg.norm(sums, axis=-1) * np.linalg.norm(rest, axis=-1)
    return (sums * rest).sum(-1) / np.maximum(size, 1e-300)


def other_contexts(code: np.ndarray, clusters: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``[draw, group]``: levels given to groups by lot, as many groups to each as it has.

    Where all groups of a cluster have one level, clusters change places as a whole; else the levels within each cluster do.
    """
    _, first, cluster = np.unique(clusters, return_index=True, return_inverse=True)
    if (code[first][cluster] == code).all():
        order = rng.permuted(np.broadcast_to(code[first], (n, len(first))), axis=1)
        return order[:, cluster]
    by_cluster = np.argsort(cluster, kind="stable")
    out = np.empty((n, len(code)), dtype=code.dtype)
    for i in range(n):
        drawn = np.lexsort((rng.random(len(code)), cluster))
        out[i, by_cluster] = code[drawn]
    return out
