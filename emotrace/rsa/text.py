"""Text control: how much of an RSA fit the words alone explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import scipy
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.compare import mantel_null, paired, permutation_p
from emotrace.rsa.correlations import correlate
from emotrace.rsa.kendall import check_alternative
from emotrace.rsa.matrices import concepts, labelled, matched
from emotrace.signatures import typed
from emotrace.stats.ties import constant

PARTS: Final = ("words", "characters")


@typed
def text_rdm(texts: Mapping[str, str | Sequence[str]], *, kind: str = "words", tfidf: bool = True) -> xr.DataArray:
    """1 − cosine of bags of words (or of letters) of what stands for each concept: its examples, a definition, its name.

    Args:
        texts: concept → its text or texts, which are joined.
        kind: ``words``: lower-case words; ``characters``: runs of 2 to 4 letters within words, for single words.
        tfidf: weigh by rarity over the concepts, with log counts; False: plain counts.

    Returns:
        ``dissimilarity[pair]``. For embeddings there is `rdm(vectors, "cosine", features="dim")`.

    Raises:
        EmotraceError: for fewer than 3 concepts, a concept without a word, or texts that share nothing, so that every pair is
            equally far apart.
    """
    if kind not in PARTS:
        raise unknown("kind", kind, PARTS, "text_rdm")
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer  # here: it takes a second to import

    joined = [t if isinstance(t, str) else "\n".join(t) for t in texts.values()]
    how: dict[str, Any] = {"token_pattern": r"(?u)\b\w+\b"}
    if kind == "characters":
        how = {"analyzer": "char_wb", "ngram_range": (2, 4)}
    maker = TfidfVectorizer(sublinear_tf=True, **how) if tfidf else CountVectorizer(**how)
    try:
        bags = scipy.sparse.csr_array(maker.fit_transform(joined)).toarray()
    except ValueError as error:  # sklearn's "empty vocabulary"
        raise EmotraceError(f"text_rdm: no {kind} in any text ({error}).") from error
    for name, bag in zip(texts, bags, strict=True):
        if not bag.any():
            raise EmotraceError(f"text_rdm: the text of {name!r} has no {kind}.")
    out = labelled(scipy.spatial.distance.pdist(bags, "cosine").round(12), list(texts))
    if constant(out.values):
        raise EmotraceError(
            f"text_rdm: the texts share no {kind}, so all are equally far apart; try kind='characters' or more text."
        )
    return out.assign_attrs(metric="cosine", text=kind, weights="tf-idf" if tfidf else "counts")


@typed
def text_control(
    rdms: xr.DataArray,
    references: xr.DataArray,
    controls: Mapping[str, xr.DataArray],
    method: str = "kendall",
    *,
    alternative: str = "greater",
    permutations: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """What is left of the correlation of RDM and reference when the RDMs of the texts are held constant.

    With C the correlations of RDM x, reference y and controls z:
    partial = (c_xy − c_xz C_zz⁻¹ c_zy) / √((1 − c_xz C_zz⁻¹ c_zx)(1 − c_yz C_zz⁻¹ c_zy)).
    The share of y's variance that x alone explains is r² = unique + shared, with unique = R²(x, z) − R²(z). τ-b is
    Pearson's correlation of the signs of all pairs of pairs, so the same holds for it.

    Args:
        rdms: ``[…, pair]``.
        references: ``[…, pair]``.
        controls: name → RDM ``[pair]``, e.g. of `text_rdm` and of the embeddings of the emotion words; same concepts.
        method: ``kendall``, ``spearman`` or ``pearson``.
        alternative: of ``p_partial``.
        permutations: shuffles of the concepts of ``rdms`` for ``p_partial``; where RDM and controls are strongly correlated
            such a partial Mantel test is only approximate.
        seed: of the shuffles.

    Returns:
        ``correlation, partial, p_partial, r2, r2_controls, unique, shared, explained`` over the dims of both.
        explained = shared / r²: the share of the fit that the controls also give (below 0 where they hide some of it, NaN
        where r = 0).

    Raises:
        EmotraceError: for no controls, other concepts, or controls that determine each other, the RDM or the reference.
    """
    arguments.resampling("text_control", seed, permutations=permutations)
    check_alternative(alternative)
    if not controls:
        raise EmotraceError("text_control: no controls; give the RDM of at least one kind of text.")
    x, y, names, dims, coords = paired(rdms, references)
    z = np.stack([_flat(control, names, name) for name, control in controls.items()])
    between = correlate(z.T, z.T, method)[0]
    if np.linalg.matrix_rank(between, tol=1e-9) < len(z):
        raise EmotraceError(f"text_control: the controls {', '.join(controls)} determine each other; leave one out.")
    inverse = np.linalg.inv(between)
    of_x, of_y = correlate(x.T, z.T, method)[0], correlate(y.T, z.T, method)[0]
    for r, what in ((of_x, "the RDM"), (of_y, "the reference")):
        if (1 - np.einsum("az,zw,aw->a", r, inverse, r) < 1e-9).any():
            raise EmotraceError(f"text_control: the controls determine {what}, so nothing is left of it.")
    r = correlate(x.T, y.T, method)[0]
    own = _partial(r, of_x, of_y, inverse)
    null = mantel_null(x, np.concatenate([y, z]), method, permutations=permutations, n=len(names), seed=seed)
    shuffled = np.stack([_partial(n[:, : len(y)], n[:, len(y) :], of_y, inverse).partial for n in null])
    shared = r**2 - own.unique
    found = {
        "correlation": r, "partial": own.partial, "p_partial": permutation_p(own.partial, shuffled, alternative), "r2": r**2,
        "r2_controls": np.broadcast_to(own.r2_controls, r.shape), "unique": own.unique, "shared": shared,
        "explained": np.where(r != 0, shared, np.nan) / np.where(r != 0, r**2, 1),
    }  # fmt: skip
    shape = [size for part in (rdms, references) for d, size in zip(part.dims, part.shape, strict=True) if d != "pair"]
    out = xr.Dataset({k: (dims, v.reshape(shape)) for k, v in found.items()}, coords)
    return out.assign_attrs(
        method=method, controls=list(controls), alternative=alternative, permutations=permutations, seed=seed
    )


def _flat(control: xr.DataArray, names: list[str], name: str) -> np.ndarray:
    if set(concepts(control)) != set(names) or control.dims != ("pair",):
        raise EmotraceError(f"text_control: control {name!r} is not an RDM [pair] of the same {len(names)} concepts.")
    values = np.asarray(matched(control, names).values, dtype=np.float64)
    if not np.isfinite(values).all() or constant(values):
        raise EmotraceError(f"text_control: control {name!r} is constant or not finite.")
    return values


class _Partial(NamedTuple):
    """What is left beside controls z.

    Attributes:
        partial: r of x and y without z, ``[x, y]``.
        unique: R²(x, z) − R²(z), ``[x, y]``.
        r2_controls: R²(z) of y, ``[y]``.
    """

    partial: np.ndarray
    unique: np.ndarray
    r2_controls: np.ndarray


def _partial(r: np.ndarray, of_x: np.ndarray, of_y: np.ndarray, inverse: np.ndarray) -> _Partial:
    left = r - of_x @ inverse @ of_y.T
    rest_x = np.maximum(1 - np.einsum("az,zw,aw->a", of_x, inverse, of_x), 1e-12)
    by_controls = np.einsum("bz,zw,bw->b", of_y, inverse, of_y)
    partial = np.clip(left / np.sqrt(rest_x[:, None] * (1 - by_controls)), -1, 1)
    return _Partial(partial, left**2 / rest_x[:, None], by_controls)
