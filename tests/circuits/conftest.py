"""Circuits of random numbers, whose parts are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emotrace.circuits import Circuit

LABELS = ["anger", "fear", "disgust"]
HEADS, HEAD_DIM, UNITS, LAYERS = 4, 8, 48, 3


def payload(labels: list[str] = LABELS, seed: int = 0) -> xr.Dataset:
    """Difference vectors of the size of the tiny Llama."""
    rng = np.random.default_rng(seed)
    sizes = {"z": {"head": HEADS, "head_dim": HEAD_DIM}, "neuron": {"unit": UNITS}}
    found = xr.Dataset(coords={"emotion": labels, "layer": range(LAYERS), "head": range(HEADS), "unit": range(UNITS)})
    for site, size in sizes.items():
        shape = (len(labels), LAYERS, *size.values())
        found[site] = ("emotion", "layer", *size), rng.normal(size=shape).astype(np.float32)
        found[f"{site}_mean"] = ("layer", *size), rng.normal(size=shape[1:]).astype(np.float32)
    return found


def components(neurons: int = 5, heads: int = 1, labels: list[str] = LABELS, seed: int = 0) -> pd.DataFrame:
    """So many components of each label in layers 0 and 2; heads only in layer 2."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for label in labels:
        for kind, layer, n, size in (
            ("neuron", 0, neurons, UNITS),
            ("neuron", 2, neurons, UNITS),
            ("head", 2, heads, HEADS),
        ):
            scores = np.sort(rng.normal(size=n))[::-1]
            rows += [
                {"emotion": label, "kind": kind, "layer": layer, "index": int(i), "score": s, "rank": r}
                for r, (i, s) in enumerate(zip(rng.choice(size, n, replace=False), scores, strict=True))
            ]
    return pd.DataFrame(rows)


@pytest.fixture
def make() -> Callable[..., Circuit]:
    """A circuit on the tiny Llama's sites."""

    def circuit(**options: Any) -> Circuit:
        meta = {"model_id": "tiny", "by": "contrast", "n": {"anger": 7}}
        return Circuit(components(**options), payload(options.get("labels", LABELS)), meta)

    return circuit
