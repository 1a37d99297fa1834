"""Attributes: human ratings of concepts as labelled scores and reference RDMs, published sets and the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import scipy
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.matrices import concepts, labelled
from emotrace.signatures import typed
from emotrace.stats.ties import constant

EMOTIONS_27: Final = (
    "realization", "surprise", "admiration", "gratitude", "optimism", "approval", "pride", "excitement", "joy", "love",
    "amusement", "caring", "relief", "curiosity", "desire", "disgust", "disapproval", "anger", "annoyance", "confusion", "fear",
    "disappointment", "grief", "sadness", "nervousness", "embarrassment", "remorse",
)  # fmt: skip
"""The emotions of GoEmotions in the order of arXiv 2302.09582."""
SPACES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Affective": ("arousal", "valence"),
        "Basic Emotions": ("happy-face", "anger-face", "sad-face", "fear-face", "surprise-face", "disgust-face"),
        "Appraisal": ("control", "fairness", "self-relativity", "other-relativity", "expectedness", "novelty"),
    }
)
"""The three spaces of arXiv 2302.09582 and their attributes."""
ATTRIBUTES: Final = tuple(a for space in SPACES.values() for a in space)
OLD_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {f"{e}": f"{e}-face" for e in ("happy", "anger", "sad", "fear", "surprise", "disgust")}
    | {"self-related": "self-relativity", "other-related": "other-relativity", "non-novelty": "novelty"}
)
"""What some of the published files call the same attributes; the sign of non-novelty does not matter to a distance."""
PRESETS: Final = ("14Properties", "3Spaces")
COMBINED: Final = "Combined"


@typed
def reference_rdms(scores: xr.DataArray, preset: str = "14Properties", *, concept: str = "emotion") -> xr.DataArray:
    """The reference RDMs of arXiv 2302.09582: one per attribute, or one per space.

    Args:
        scores: ratings ``[emotion, attribute]`` with the fourteen attributes by name (`OLD_NAMES` are understood); of any
            concepts.
        preset: ``14Properties``: `attribute_rdms` of the fourteen; ``3Spaces``: `space_rdms` of `SPACES` and all together.
        concept: dim of the concepts.

    Raises:
        EmotraceError: for an unknown preset, or an attribute that the scores lack.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS, "reference_rdms")
    if "attribute" in scores.dims and "attribute" in scores.coords:
        have = [str(a) for a in scores["attribute"].values]
        scores = scores.assign_coords(attribute=[a if a in ATTRIBUTES else OLD_NAMES.get(a, a) for a in have])
    if preset == "3Spaces":
        return space_rdms(scores, concept=concept).assign_attrs(preset=preset)
    return attribute_rdms(scores, ATTRIBUTES, concept=concept).assign_attrs(preset=preset)


@typed
def attribute_rdms(
    scores: xr.DataArray,
    attributes: Sequence[str] | None = None,
    *,
    concept: str = "emotion",
    decimals: int | None = 9,
) -> xr.DataArray:
    """|score_i − score_j| of every attribute alone: ``dissimilarity[attribute, pair]``.

    Args:
        scores: ``[emotion, attribute]``, finite.
        attributes: which, in which order; None: all.
        concept: dim of the concepts.
        decimals: differences are rounded to so many, counted from the first digit of the attribute's largest score, so that
            equal differences of decimal ratings are ties in floating point too (2.3 − 2.1 is not 0.3 − 0.1 there). None: as
            they are, which is how the published distances were ranked.

    Raises:
        EmotraceError: for an attribute that the scores lack, a score that is missing, or an attribute that is the same for all.
    """
    values, names, chosen = _scores(scores, attributes, concept)
    i, j = np.triu_indices(len(names), 1)
    out = np.abs(values[i] - values[j]).T
    if decimals is not None:
        out = _rounded(out, decimals, np.abs(values).max(0)[:, None])
    _vary(out, chosen)
    found = labelled(out, names, ["attribute"], {"attribute": np.array(chosen)})
    return found.assign_attrs(metric="absolute", decimals="" if decimals is None else decimals)


@typed
def space_rdms(
    scores: xr.DataArray,
    spaces: Mapping[str, Sequence[str]] = SPACES,
    *,
    concept: str = "emotion",
    combined: bool = True,
    decimals: int | None = 9,
) -> xr.DataArray:
    """Euclidean distance in spaces of several attributes, each scaled to 0 … 1 over the concepts: ``dissimilarity[space, pair]``.

    Args:
        scores: ``[emotion, attribute]``, finite.
        spaces: attributes of each space.
        concept: dim of the concepts.
        combined: add `COMBINED`, the space of the attributes of all spaces.
        decimals: distances are rounded to so many, so that equal ones are ties in floating point too; None: as they are, which is
            how the published ones were ranked.

    Raises:
        EmotraceError: as `attribute_rdms`, or for no spaces.
    """
    if not spaces or not all(spaces.values()):
        raise EmotraceError(f"space_rdms: at least one space, and none of them empty; got {dict(spaces)}.")
    whole = dict(spaces)
    if combined:
        whole[COMBINED] = tuple(dict.fromkeys(a for space in spaces.values() for a in space))
    values, names, chosen = _scores(scores, list(dict.fromkeys(a for s in whole.values() for a in s)), concept)
    _vary(values.T, chosen)
    scaled = (values - values.min(0)) / (values.max(0) - values.min(0))
    out = np.stack(
        [scipy.spatial.distance.pdist(scaled[:, [chosen.index(a) for a in space]]) for space in whole.values()]
    )
    if decimals is not None:
        out = _rounded(out, decimals, np.ones((len(out), 1)))
    found = labelled(out, names, ["space"], {"space": np.array(list(whole))})
    return found.assign_attrs(metric="euclidean", scaled="0..1", decimals="" if decimals is None else decimals)


def _scores(
    scores: xr.DataArray, attributes: Sequence[str] | None, concept: str
) -> tuple[np.ndarray, list[str], list[str]]:
    names = concepts(scores, concept)
    if set(scores.dims) != {concept, "attribute"} or "attribute" not in scores.coords:
        raise EmotraceError(
            f"scores are [{concept}, attribute] with labels on both, not {list(map(str, scores.dims))}; average raters first."
        )
    have = [str(a) for a in scores["attribute"].values]
    chosen = have if attributes is None else list(arguments.names("attribute", attributes, have, place="the scores"))
    for name in chosen:
        if have.count(name) != 1:
            raise (
                EmotraceError(f"attribute {name!r} occurs twice.")
                if name in have
                else unknown("attribute", name, have, "the scores")
            )
    values = np.asarray(scores.transpose(concept, "attribute").values, dtype=np.float64)
    values = values[:, [have.index(a) for a in chosen]]
    if not np.isfinite(values).all():
        i, j = np.argwhere(~np.isfinite(values))[0]
        raise EmotraceError(f"the score of {names[i]!r} for {chosen[j]!r} is missing.")
    return values, names, chosen


def _rounded(x: np.ndarray, decimals: int, size: np.ndarray) -> np.ndarray:
    """Rounded to so many digits after the first of ``size``, which has one number for each row."""
    arguments.whole("decimals", decimals)
    first = np.floor(np.log10(np.where(size > 0, size, 1)))
    unit = 10.0 ** (decimals - first)
    return np.where(np.isfinite(unit) & (unit > 0), np.round(x * unit) / unit, x)


def _vary(rows: np.ndarray, names: Sequence[str]) -> None:
    for same, name in zip(constant(rows), names, strict=True):
        if same:
            raise EmotraceError(f"attribute {name!r} does not tell any two concepts apart more than others.")
