"""The whole way on a synthetic network whose answer is known: searchlight, masks, accuracies, statistics."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emotrace import rsa

EMOTIONS, SEEDS, LAYERS, UNITS, K = [f"e{i}" for i in range(12)], (1, 3, 5, 7), 3, 60, 12
PLANTED = {"valence": (0, range(12)), "control": (2, range(20, 32))}
"""Layer and units that carry each attribute."""


class Network:
    """Neurons hold their concept's attribute (planted) or a fixed pattern of their own, with noise.

    The task of an emotion is to tell it from the one four steps away, by a ridge regression on all neurons: what carries
    most is needed most.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ratings = np.stack([rng.permutation(12) / 11 for _ in range(3)], axis=1)
        coords = {"emotion": EMOTIONS, "attribute": ["valence", "control", "novelty"]}
        self.ratings = xr.DataArray(ratings, dims=("emotion", "attribute"), coords=coords)
        self.mean = 0.15 * rng.normal(size=(12, LAYERS, UNITS))
        for n, (layer, units) in enumerate(PLANTED.values()):
            self.mean[:, layer, list(units)] += 2 * (ratings[:, n, None] - 0.5)
        self.rng = rng

    def sample(self, emotion: int, n: int) -> np.ndarray:
        return self.mean[emotion] + 1.5 * self.rng.normal(size=(n, LAYERS, UNITS))

    def activations(self) -> xr.DataArray:
        values = np.stack([[self.sample(e, 20).mean(0) for e in range(12)] for _ in SEEDS])
        coords = {"seed": list(SEEDS), "emotion": EMOTIONS, "layer": range(LAYERS), "unit": range(UNITS)}
        return xr.DataArray(values, dims=("seed", "emotion", "layer", "unit"), coords=coords)

    def accuracies(self, masks: rsa.Masks) -> pd.DataFrame:
        """On samples that the regression was not fitted to, with the neurons of each mask at 0."""
        rows = []
        for e, emotion in enumerate(EMOTIONS):
            other = (e + 4) % 12
            for seed in SEEDS:
                x = np.concatenate([self.sample(e, 150), self.sample(other, 150)]).reshape(300, -1)
                y = np.repeat([1.0, -1.0], 150)
                test = np.arange(300) % 3 == 0
                gram = x[~test].T @ x[~test] + 200 * np.eye(x.shape[1])
                w = np.linalg.solve(gram, x[~test].T @ y[~test])
                for labels, mask in masks:
                    kept = x[test] * ~mask.ravel()
                    rows.append(
                        {
                            **labels,
                            "emotion": emotion,
                            "seed": seed,
                            "accuracy": np.mean((kept @ w > 0) == (y[test] > 0)),
                        }
                    )
        return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def study():
    network = Network(0)
    found = rsa.searchlight(network.activations(), rsa.attribute_rdms(network.ratings))
    masks = rsa.select_neurons(found.tau, K, draws=59, match="none", seed=1)
    return found, masks, network.accuracies(masks)


def test_the_planted_neurons_are_chosen(study):
    _, masks, _ = study
    for attribute, (layer, units) in PLANTED.items():
        chosen = masks.sel(attribute=attribute, kind="selective").masked.values[0]
        assert chosen[layer, list(units)].sum() >= 10
        assert chosen.sum() == K


def test_masking_them_hurts_more_than_random_neurons(study):
    _, _, table = study
    got = rsa.draw_tests(table).set_index("attribute")
    for attribute in PLANTED:
        assert got.loc[attribute].hurts_more > 0.95
        assert got.loc[attribute].p < 0.05
        assert got.loc[attribute]["drop"] > 0.03
    assert got.loc["novelty"]["drop"] < got["drop"].drop("novelty").min() / 2


def test_layer_matched_draws_too(study):
    found, _, _ = study
    masks = rsa.select_neurons(found.tau.sel(attribute=["valence"]), K, draws=39, match="layer", overlap=False, seed=2)
    got = rsa.draw_tests(Network(0).accuracies(masks))
    assert got.hurts_more.item() > 0.95
