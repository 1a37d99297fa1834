"""Activations with planted directions, whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from emotrace.labels import EMOTIONS, VALENCES


def planted(
    n=8, themes=4, layers=2, subs=("resid_mid", "resid_post"), dim=16, noise=0.1, strength=1.0, seed=0, shared=True
):
    """``x[layer, sublayer, token, dim]`` = context of the group + strength · direction of the emotion + noise."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(len(EMOTIONS), layers, len(subs), dim))
    truth -= truth.mean(0)
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    rows, values = [], []
    for s in range(n):
        for v in VALENCES:
            context = 5 * rng.normal(size=(layers, len(subs), dim))
            for e, name in enumerate(EMOTIONS):
                rows.append((f"s_{s:02}__{v}__{name}", f"s_{s:02}", f"theme {s % themes}", v, name))
                own = truth[e] if shared else np.roll(truth, s, axis=0)[e]
                values.append(context + strength * own + noise * rng.normal(size=context.shape))
    columns = np.array(rows)
    x = xr.DataArray(
        np.stack(values, axis=2).astype(np.float32),
        dims=("layer", "sublayer", "token", "dim"),
        coords={
            "layer": np.arange(layers),
            "sublayer": list(subs),
            **{
                c: ("token", columns[:, i]) for i, c in enumerate(("key", "skeleton_id", "theme", "valence", "emotion"))
            },
        },
        attrs={"model_id": "planted", "prompts_digest": "abc", "command": "not copied"},
    )
    return x, truth


@pytest.fixture
def plant():
    return planted
