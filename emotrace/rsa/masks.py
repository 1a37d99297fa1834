"""Masks: which neurons are taken away, as labelled data with provenance. Applying them to a model is another room's work."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments, bundles, provenance, shown
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.stats.ties import descending

DRAWN: Final = ("selective", "random")
LABELS: Final = ("attribute", "k", "kind", "draw")
SHARED: Final = "*"
"""The attribute of a random mask that serves as the control of every attribute."""
MATCHES: Final = ("layer", "none")


@dataclass(frozen=True, eq=False)
class Masks:
    """Sets of neurons to be masked.

    Attributes:
        masked: bool ``[mask, layer, unit]``; True: this neuron is masked. On ``mask`` lie the labels ``attribute`` (`SHARED`
            where a random mask serves all), ``k`` (neurons in it), ``kind`` (selective or random) and ``draw`` (−1 for
            selective, 0, 1, … for random). ``layer`` and ``unit`` carry the numbers of the model. ``attrs`` say where the
            masks come from.
    """

    masked: xr.DataArray
    __repr__ = shown.brief

    def __post_init__(self) -> None:
        m = self.masked
        if m.dims != ("mask", "layer", "unit") or m.dtype != bool:
            raise EmotraceError(f"masks are bool [mask, layer, unit], not {m.dtype} {list(map(str, m.dims))}.")
        for name in (*LABELS, "layer", "unit"):
            if name not in m.coords:
                raise EmotraceError(f"masks lack the label {name!r}; they have {', '.join(map(str, m.coords))}.")
        wrong = set(m["kind"].values.tolist()) - set(DRAWN)
        if wrong:
            raise unknown("kind", sorted(wrong)[0], DRAWN, "Masks")
        if (m.values.reshape(len(m), -1).sum(1) != m["k"].values).any():
            raise EmotraceError("masks: k is not the number of masked neurons.")

    def __len__(self) -> int:
        return self.masked.sizes["mask"]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Labels and bool ``[layer, unit]`` of each mask in turn."""
        columns = [self.masked[n].values.tolist() for n in LABELS]
        for labels, mask in zip(zip(*columns, strict=True), self.masked.values, strict=True):
            yield dict(zip(LABELS, labels, strict=True)), mask

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Where they come from: ranking, model, seed, rule for ties."""
        return self.masked.attrs

    def sel(self, **labels: Any) -> Masks:
        """The masks with these labels (one value or several), in their order.

        Raises:
            EmotraceError: for a label or a value that no mask has.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, value in labels.items():
            if name not in LABELS:
                raise unknown("label", name, LABELS, "Masks.sel")
            have = self.masked[name].values
            wanted: list[Any] = [value] if isinstance(value, (str, int, np.integer)) else list(value)
            for one in wanted:
                if one not in have.tolist():
                    raise unknown(name, one, dict.fromkeys(have.tolist()), "Masks.sel")
            keep &= np.isin(have, wanted)
        return Masks(self.masked.isel(mask=np.flatnonzero(keep)))

    def multipliers(self, seed: int = 0) -> xr.DataArray:
        """The published "float masks": U[0, 1) for each masked neuron, 1 for the others; float32 ``[mask, layer, unit]``."""
        rng = np.random.default_rng(seed)
        values = np.ones(self.masked.shape, dtype=np.float32)
        for mask, out in zip(self.masked.values, values, strict=True):
            out[mask] = rng.random(int(mask.sum()), dtype=np.float32)
        return self.masked.copy(data=values).assign_attrs(multiplier="U[0, 1)", multiplier_seed=seed)

    def save(self, folder: str | Path, name: str = "masks") -> Path:
        """Write ``{name}.safetensors`` (one bit per neuron) and ``{name}.json`` (labels, provenance, digest of the bits).

        Returns:
            The path of the JSON file, which is written last.
        """
        m = self.masked
        about = {
            "shape": list(m.shape),
            "labels": {n: m[n].values.tolist() for n in (*LABELS, "layer", "unit")},
            "attrs": {str(k): _plain(v) for k, v in m.attrs.items()},
        }
        return bundles.write(folder, name, {"bits": np.packbits(m.values.reshape(len(m), -1), axis=1)}, about)

    @classmethod
    def load(cls, folder: str | Path, name: str = "masks") -> Masks:
        """The masks that `save` wrote.

        Raises:
            EmotraceError: where a file is missing, of another format, or the bits are not those that the JSON file describes.
        """
        about, tensors = bundles.read(folder, name, "masks")
        try:
            shape, labels, attrs, bits = *(about[k] for k in ("shape", "labels", "attrs")), tensors["bits"]
        except KeyError as error:
            raise EmotraceError(f"{folder}/{name}.json describes no masks ({error!r}).") from error
        values = np.unpackbits(bits, axis=1, count=shape[1] * shape[2]).astype(bool).reshape(shape)
        coords = {n: labels[n] if n in ("layer", "unit") else ("mask", labels[n]) for n in (*LABELS, "layer", "unit")}
        return cls(xr.DataArray(values, dims=("mask", "layer", "unit"), coords=coords, name="masked", attrs=attrs))


@typed
def order(scores: xr.DataArray) -> np.ndarray:
    """Neurons from best to worst: score descending, then flat index ``layer · units + unit`` ascending.

    Ties are common in τ (n = 351 pairs), so the cut at k falls inside one; this rule makes it the same everywhere.

    Args:
        scores: ``[layer, unit]``; a NaN (a neuron without a score) comes after every number.

    Returns:
        Flat indices, all of them.
    """
    flat = np.asarray(scores.transpose("layer", "unit").values, dtype=np.float64).ravel()
    return descending(flat)


@typed
def select_neurons(
    scores: xr.DataArray,
    k: int | Iterable[int],
    *,
    by: str = "attribute",
    draws: int = 100,
    match: str = "layer",
    shared: bool = True,
    overlap: bool = True,
    seed: int = 0,
) -> Masks:
    """The k best neurons of every attribute, and as many random ones, drawn many times.

    Each random mask has a generator of its own, seeded by (seed, attribute, k, draw): asking for more attributes, ks or draws
    leaves the others as they were. The published baseline is ``draws=1, match="none", shared=False``.

    Args:
        scores: e.g. τ of `searchlight`, ``[attribute, layer, unit]`` in any order; its attrs go into the provenance.
        k: how many neurons.
        by: the dim of the attributes.
        draws: random masks per attribute and k.
        match: ``layer``: as many neurons of each layer as the selective mask has there; ``none``: of any layer.
        shared: with ``none``, the same random masks serve every attribute (their label is `SHARED`).
        overlap: whether a random mask may hold neurons of the selective one. A test of "better than any set of this
            size" needs it; without it masks cannot be shared.
        seed: of the random masks.

    Raises:
        EmotraceError: for missing dims, a k outside 1 … neurons, or fewer scored neurons than k.
    """
    arguments.resampling("select_neurons", seed, draws=draws)
    ks = arguments.wholes("select_neurons(k)", k)
    for name, value in (("shared", shared), ("overlap", overlap)):
        arguments.flag(f"select_neurons({name})", value)
    missing = {by, "layer", "unit"} - set(map(str, scores.dims))
    if missing or scores.ndim != 3:
        raise EmotraceError(f"select: scores are [{by}, layer, unit], not {list(map(str, scores.dims))}.")
    if match not in MATCHES:
        raise unknown("match", match, MATCHES, "select_neurons")
    scores = scores.transpose(by, "layer", "unit")
    shape = scores.shape[1:]
    neurons = shape[0] * shape[1]
    for one in ks:
        if not 1 <= one <= neurons:
            raise EmotraceError(f"select_neurons(k={one}): there are {neurons} neurons, so 1 to {neurons}.")
    if draws < 0:
        raise EmotraceError(f"select_neurons(draws={draws}): 0 or more.")
    names = [str(a) for a in (scores[by].values if by in scores.coords else range(len(scores)))]
    common = match == "none" and shared and overlap
    rows: list[tuple[str, int, str, int]] = []
    masks: list[np.ndarray] = []
    for i, name in enumerate(names):
        ranked, scored = order(scores[i]), int(scores[i].notnull().sum())
        for one in ks:
            if one > scored:
                raise EmotraceError(f"select_neurons(k={one}): {by} {name!r} has scores for {scored} neurons only.")
            best = np.zeros(neurons, dtype=bool)
            best[ranked[:one]] = True
            rows.append((name, one, "selective", -1))
            masks.append(best.reshape(shape))
            for draw in range(0 if common else draws):
                rows.append((name, one, "random", draw))
                masks.append(_random(best.reshape(shape), match, overlap, (seed, zlib.crc32(name.encode()), one, draw)))
    for one in ks if common else ():
        size = np.zeros(neurons, dtype=bool)
        size[:one] = True
        for draw in range(draws):
            rows.append((SHARED, one, "random", draw))
            masks.append(_random(size.reshape(shape), match, overlap, (seed, zlib.crc32(SHARED.encode()), one, draw)))
    attribute, size, kind, draw = zip(*rows, strict=True)
    axis = {d: scores[d].values if d in scores.coords else np.arange(scores.sizes[d]) for d in ("layer", "unit")}
    found = xr.DataArray(
        np.stack(masks),
        dims=("mask", "layer", "unit"),
        coords={
            "attribute": ("mask", list(attribute)), "k": ("mask", list(size)), "kind": ("mask", list(kind)),
            "draw": ("mask", list(draw)), **axis,
        },
        name="masked",
        attrs={
            "ranking": scores.name or "", **{f"ranking_{n}": v for n, v in scores.attrs.items()},
            "ties": "score descending, then layer * units + unit", "match": match, "overlap": overlap, "draws": draws,
            "seed": seed, **provenance.of(scores),
        },
    )  # fmt: skip
    return Masks(found)


def _random(best: np.ndarray, match: str, overlap: bool, entropy: tuple[int, ...]) -> np.ndarray:
    """As many random neurons as ``best`` has, bool in its shape."""
    rng = np.random.default_rng(entropy)
    out = np.zeros_like(best)
    for mine, chosen in zip(out, best, strict=True) if match == "layer" else [(out.reshape(-1), best.reshape(-1))]:
        pool = np.arange(len(mine)) if overlap else np.flatnonzero(~chosen)
        n = int(chosen.sum())
        if n > len(pool):
            raise EmotraceError(
                f"select_neurons(overlap=False): {n} neurons wanted, {len(pool)} are left outside the mask."
            )
        mine[rng.choice(pool, size=n, replace=False)] = True
    return out


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
