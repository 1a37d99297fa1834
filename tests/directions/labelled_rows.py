"""Rows with labels out of plain numbers, for the tests of estimators."""

import numpy as np
import xarray as xr


def array(values, name="o_proj_out", **columns):
    """``values[layer, token, dim]`` with one label column per keyword."""
    values = np.asarray(values, dtype=np.float32)
    coords = {
        k: ("token", np.array(v, dtype=object) if isinstance(v[0], str) else np.array(v)) for k, v in columns.items()
    }
    return xr.DataArray(
        values, dims=("layer", "token", "dim"), coords={"layer": np.arange(values.shape[0]), **coords}, name=name
    )


def classes(n=(9, 14, 30), layers=3, dim=7, seed=0, gap=1.0):
    """Rows of *anger*, *fear* and *neutral* with different means, and where each mean lies."""
    rng = np.random.default_rng(seed)
    names = ("anger", "fear", "neutral")
    means = {e: gap * rng.normal(size=(layers, dim)) for e in names}
    labels = [e for e, k in zip(names, n, strict=True) for _ in range(k)]
    order = rng.permutation(len(labels))
    labels = [labels[i] for i in order]
    spread = np.exp(rng.normal(size=dim))
    x = np.stack([means[e] + spread * rng.normal(size=(layers, dim)) for e in labels], axis=1)
    return array(x, key=[f"k{i}" for i in range(len(labels))], emotion=labels), means
