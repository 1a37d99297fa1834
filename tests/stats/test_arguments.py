"""What is no number, count or seed is refused by the statistics, by its name."""

import numpy as np
import pytest
import xarray as xr

from emotrace import EmotraceError, directions, replies, rsa, stats

RNG = np.random.default_rng(0)
NAMES = list("abcdef")
SCORES = xr.DataArray(
    RNG.normal(size=(6, 2)), dims=("emotion", "attribute"), coords={"emotion": NAMES, "attribute": ["p", "q"]}
)
X = xr.DataArray(
    RNG.normal(size=(6, 2, 3)), dims=("emotion", "layer", "unit"),
    coords={"emotion": NAMES, "layer": [0, 1], "unit": range(3)},
)  # fmt: skip
RDM, REFERENCES = rsa.rdm(X), rsa.attribute_rdms(SCORES)
TAU = rsa.searchlight(X, REFERENCES, over=None).tau
BAD = {
    "texts": lambda: stats.bootstrap_ci(["a", "b"], [0, 1]),
    "complex values": lambda: stats.bootstrap_ci([1j, 2], [0, 1]),
    "a row of no cluster": lambda: stats.bootstrap_ci([1.0, 2.0], [np.nan, 1]),
    "half a draw": lambda: stats.bootstrap_ci([1.0, 2.0], [0, 1], n=1.5),
    "a level in words": lambda: stats.bootstrap_ci([1.0, 2.0], [0, 1], level="x"),
    "shares perhaps": lambda: stats.bootstrap_ci([1.0, 1.0], [0, 1], shares="no"),
    "successes in words": lambda: stats.wilson("1", 5),
    "sums in words": lambda: stats.sign_flip(["a"]),
    "no n-gram": lambda: replies.repetition([1, 2, 3], 0),
    "no text": lambda: replies.response_statistics([None]),
    "complex patterns": lambda: rsa.rdm(X + 1j),
    "patterns of texts": lambda: rsa.rdm(X.astype(str)),
    "a seed in words": lambda: rsa.compare(RDM, REFERENCES, permutations=9, seed="a"),
    "half a permutation": lambda: rsa.compare(RDM, REFERENCES, permutations=1.5),
    "an attribute twice": lambda: rsa.attribute_rdms(SCORES, ["p", "p"]),
    "attributes in a text": lambda: rsa.attribute_rdms(SCORES, "p"),
    "no attribute": lambda: rsa.attribute_rdms(SCORES, []),
    "k twice": lambda: rsa.select_neurons(TAU, k=[1, 1]),
    "True neurons": lambda: rsa.select_neurons(TAU, k=True),
    "a neuron twice": lambda: rsa.neuron_intervals(X, REFERENCES, [(0, 0), (0, 0)], over=None, progress=False),
    "half a layer": lambda: rsa.neuron_intervals(X, REFERENCES, [(0.5, 0)], over=None, progress=False),
    "a layer alone": lambda: rsa.neuron_intervals(X, REFERENCES, [(0,)], over=None, progress=False),
    "half a layer of vectors": lambda: directions.only_layers(X, [0.5]),
    "a layer of vectors twice": lambda: directions.only_layers(X, [1, 1]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    with pytest.raises(EmotraceError):
        BAD[name]()


def test_hits_and_numbers_of_numpy_are_taken() -> None:
    hits = np.array([True, False, True, True])
    assert stats.bootstrap_ci(hits, list("aabb")) == stats.bootstrap_ci(hits.astype(float), list("aabb"))
    same = np.array([0.5, 1.0], dtype=object)
    assert stats.bootstrap_ci(same, [0, 1]) == stats.bootstrap_ci([0.5, 1.0], [0, 1])
    assert rsa.select_neurons(TAU, k=np.int64(2), draws=np.int64(1)).masked.sizes["mask"] == 4
