from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

NAMES = ["joy", "fear", "anger", "grief", "pride", "relief", "love", "disgust"]


@pytest.fixture
def plant():
    """Activations ``[seed, emotion, layer, unit]`` in which some neurons follow an attribute, and the scores of it."""

    def make(seeds=3, concepts=8, layers=2, units=6, planted=((1, 2),), noise=0.05, seed=0):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(seeds, concepts, layers, units))
        scores = np.stack([rng.permutation(concepts) for _ in range(2)]) + rng.random((2, concepts))
        for layer, unit in planted:
            x[:, :, layer, unit] = scores[0] + noise * rng.normal(size=(seeds, concepts))
        names = NAMES[:concepts]
        acts = xr.DataArray(
            x.astype(np.float32), dims=("seed", "emotion", "layer", "unit"),
            coords={
                "seed": np.arange(seeds) * 2 + 1, "emotion": names, "layer": np.arange(layers), "unit": np.arange(units),
            },
            attrs={"model": "planted"},
        )  # fmt: skip
        human = xr.DataArray(
            scores.T, dims=("emotion", "attribute"), coords={"emotion": names, "attribute": ["planted", "other"]}
        )
        return acts, human

    return make
