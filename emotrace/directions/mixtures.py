"""Mixtures: weighted sums of vectors, asked for by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from emotrace.labels import EMOTIONS_EV, EmotraceError, emotion
from emotrace.signatures import typed

Mix = str | Mapping[str, float] | Sequence[float]


@typed
def parse_mix(mix: Mix, emotions: Sequence[str]) -> dict[str, float]:
    """Weights by emotion.

    Args:
        mix: ``"anger=0.5,joy=-0.5"``; a mapping; or five numbers in the published order (anger, disgust, fear, joy,
            sadness).
        emotions: what there are vectors of. A name may be its alias there (joy ↔ happiness), and only that.

    Returns:
        Weights by the names of ``emotions``, zeros left out.

    Raises:
        EmotraceError: for another form, an unknown emotion, one that occurs twice, or a weight that is no finite number.
    """
    if isinstance(mix, str):
        pairs: list[tuple[str, Any]] = []
        for part in filter(None, re.split(r"[,\s]+", mix.strip())):
            name, sign, value = part.partition("=")
            if not sign:
                raise EmotraceError(f"mix {mix!r}: {part!r} is no 'emotion=weight', e.g. anger=0.5,joy=-0.5.")
            pairs.append((name, value))
    elif isinstance(mix, Mapping):
        pairs = list(mix.items())
    else:
        numbers = list(mix)
        if len(numbers) != len(EMOTIONS_EV):
            raise EmotraceError(
                f"mix {numbers}: {len(numbers)} numbers; the published five-tuple is {', '.join(EMOTIONS_EV)}."
            )
        pairs = [(name, value) for name, value in zip(EMOTIONS_EV, numbers, strict=True) if value != 0]
    weights: dict[str, float] = {}
    for given, value in pairs:
        name = emotion(given, emotions, "mix")
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = float("nan")
        if isinstance(value, bool) or not np.isfinite(weight):
            raise EmotraceError(f"mix: the weight of {given!r} is {value!r}, not a finite number.")
        if name in weights:
            raise EmotraceError(f"mix: {name!r} occurs twice.")
        weights[name] = weight
    return {name: weight for name, weight in weights.items() if weight}


@typed
def mixed(vectors: xr.DataArray, mix: Mix, label: str = "emotion") -> xr.DataArray:
    """Σ_e w_e v_e ``[layer, (sublayer), dim]``: one vector per layer, summed in float64 and rounded to float32 once.

    Args:
        vectors: ``[label, layer, (sublayer), dim]``.
        mix: weights by emotion: ``"anger=0.5,joy=-0.5"``, a mapping, or the published five-tuple.
        label: the dim of the emotions.

    Returns:
        The mixture with the coordinate ``norm``; all zeros for weights of zero.

    Raises:
        EmotraceError: as `parse_mix`, or for vectors without the label.
    """
    if label not in vectors.dims:
        raise EmotraceError(f"mixed: no dim {label!r} in {tuple(map(str, vectors.dims))}.")
    weights = parse_mix(mix, [str(v) for v in vectors[label].values])
    bare = vectors.drop_vars([str(c) for c in vectors.coords if c not in vectors.dims]).astype(np.float64)
    rows = np.array([weights.get(str(v), 0.0) for v in vectors[label].values])
    total = (bare * xr.DataArray(rows, dims=[label], coords={label: bare[label].values})).sum(label)
    norm = np.sqrt((total * total).sum("dim")).astype(np.float32)
    out = total.astype(np.float32).assign_coords(norm=norm).rename("vector")
    described = ",".join(f"{name}={weight:g}" for name, weight in weights.items())
    return out.assign_attrs({**vectors.attrs, "mix": described})
