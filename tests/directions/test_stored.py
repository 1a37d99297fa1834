"""Directions straight from a store: the same numbers, and never more than one layer in memory."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from emotrace import directions
from emotrace.store import Plan, Rows, Variable, create_or_resume, open_activations
from emotrace.store.chunks import ChunkArray

LABELS = ("skeleton_id", "theme", "valence", "emotion")


@pytest.fixture
def stored(plant, tmp_path):
    x, _ = plant(n=12, layers=4)
    n = x.sizes["token"]
    labels = [{c: str(x[c].values[i]) for c in LABELS} for i in range(n)]
    rows = Rows.of(list(map(str, x["key"].values)), [[7, 8]] * n, [2] * n, [[0, 1]] * n, str, labels)
    sizes = {"dim": 16}
    coords = {"layer": tuple(range(4)), "sublayer": ("resid_mid", "resid_post")}
    variable = Variable("residual", ("layer", "sublayer", "dim"), coords=coords, sizes=sizes, source_dtype="float32")
    plan = Plan.make(rows, [variable], {"model_id": "m", "prompts_digest": "p"}, row_group_bytes=20_000)
    both = np.stack([np.zeros_like(x.values), x.values], axis=3).reshape(4, 2, 2 * n, 16)
    with create_or_resume(tmp_path / "a.zarr", plan) as writer:
        for group in writer.pending():
            writer.commit(group, {"residual": np.ascontiguousarray(both[:, :, group.rows])})
    return x, open_activations(tmp_path / "a.zarr")


def test_store_gives_the_same_directions(stored):
    x, acts = stored
    assert acts.n_groups > 3
    got, want = directions.centered_mean(acts), directions.centered_mean(x)
    np.testing.assert_array_equal(got.values, want.values)
    assert got["emotion"].values.tolist() == want["emotion"].values.tolist()
    assert (got.attrs["model_id"], got.attrs["prompts_digest"], got.attrs["n_groups"]) == ("m", "p", 36)
    some = directions.centered_mean(acts.sel(layer=[1, 3], sublayer="resid_post"))
    np.testing.assert_array_equal(some.values, want.sel(layer=[1, 3], sublayer="resid_post").values)
    np.testing.assert_allclose(directions.mean_rms(acts).values, directions.mean_rms(x).values)
    np.testing.assert_allclose(
        directions.context_agnosticism(acts, n_bootstrap=5)["accuracy"].values,
        directions.context_agnosticism(x, n_bootstrap=5)["accuracy"].values,
    )


def test_stored_directions_round_trip(stored, tmp_path):
    d = directions.centered_mean(stored[1])
    directions.save(d, tmp_path)
    xr.testing.assert_equal(directions.load(tmp_path), d)


def test_one_layer_at_a_time(stored, monkeypatch):
    x, acts = stored
    sizes = []
    read = ChunkArray.read

    def counted(self, key):
        out = read(self, key)
        sizes.append(out.size)
        return out

    monkeypatch.setattr(ChunkArray, "read", counted)
    directions.centered_mean(acts)
    assert max(sizes) <= x.size // 4
    assert sum(sizes) == x.size
