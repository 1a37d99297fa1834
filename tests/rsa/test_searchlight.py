import numpy as np
import pytest
import xarray as xr
from scipy.stats import kendalltau

from emotrace import rsa
from emotrace.labels import EmotraceError


def literal(acts, references, average):
    """From the formula: a loop over neurons and references, with scipy."""
    names = rsa.concepts(references)
    x = acts.sel(emotion=names).transpose("seed", "emotion", "layer", "unit").values.astype(np.float64)
    out = np.empty((2, len(references), *x.shape[2:]))
    for layer in range(x.shape[2]):
        for unit in range(x.shape[3]):
            a = x[:, :, layer, unit] if average == "rdms" else x[:, :, layer, unit].mean(0)[None]
            d = [np.mean([abs(s[i] - s[j]) for s in a]) for i in range(len(names)) for j in range(i + 1, len(names))]
            for k, reference in enumerate(references.values):
                found = kendalltau(d, reference, method="asymptotic", alternative="greater")
                out[:, k, layer, unit] = found.statistic, found.pvalue
    return out


@pytest.mark.parametrize("average", ["rdms", "patterns"])
@pytest.mark.parametrize("block", [4, 512])
def test_equals_the_literal_twin(plant, average, block):
    acts, human = plant(seeds=4, concepts=8, layers=3, units=7)
    references = rsa.attribute_rdms(human)
    got = rsa.searchlight(acts.transpose("unit", "emotion", "layer", "seed"), references, average=average, block=block)
    expected = literal(acts, references, average)
    got = got.transpose("attribute", "layer", "unit")
    assert np.abs(got.tau.values - expected[0]).max() <= 1e-12
    assert np.abs(got.p.values - expected[1]).max() <= 1e-12
    assert got.attrs["activations_model"] == got.tau.attrs["activations_model"] == "planted"


def test_concepts_are_matched_by_name(plant):
    acts, human = plant()
    references = rsa.attribute_rdms(human)
    rng = np.random.default_rng(1)
    mixed = acts.isel(emotion=rng.permutation(8))
    xr.testing.assert_identical(rsa.searchlight(mixed, references).tau, rsa.searchlight(acts, references).tau)
    fewer = rsa.searchlight(mixed, rsa.matched(references, ["fear", "joy", "love", "grief"]))
    assert (
        np.abs(
            fewer.tau.values
            - literal(acts, rsa.attribute_rdms(human.sel(emotion=["joy", "fear", "grief", "love"])), "rdms")[0]
        ).max()
        < 1e-12
    )


def test_the_planted_neuron_is_found(plant):
    acts, human = plant(concepts=8, layers=2, units=40, planted=((1, 7),))
    got = rsa.searchlight(acts, rsa.attribute_rdms(human), permutations=400, seed=2)
    best = got.tau.sel(attribute="planted")
    assert best.argmax(("layer", "unit")) == {"layer": 1, "unit": 7}
    here = got.sel(attribute="planted", layer=1, unit=7)
    assert here.p_mantel == pytest.approx(1 / 401)
    assert here.p_max < 0.02
    assert (got.p_max.sel(attribute="other") < 0.02).sum() == 0
    assert (got.p_max >= got.p_mantel - 1e-12).all()


def test_permutations_equal_shuffled_references(plant):
    """The null of one neuron by hand: shuffle the matrix, correlate again."""
    acts, human = plant(units=2, layers=1, planted=())
    references = rsa.attribute_rdms(human)
    got = rsa.searchlight(acts, references, permutations=50, seed=5)
    rng = np.random.default_rng(5)
    orders = [rng.permutation(8) for _ in range(50)]
    for k in range(2):
        matrix = rsa.square(references).values[k]
        i, j = np.triu_indices(8, 1)
        null = np.array(
            [
                literal(acts, rsa.labelled(matrix[np.ix_(o, o)][i, j][None], human.emotion.values, ["a"]), "rdms")[
                    0, 0, 0
                ]
                for o in orders
            ]
        )
        tau = got.tau.values[k, 0]
        np.testing.assert_allclose(got.p_mantel.values[k, 0], (1 + (null >= tau - 1e-12).sum(0)) / 51)
        np.testing.assert_allclose(got.p_max.values[k, 0], (1 + (null.max(1)[:, None] >= tau - 1e-12).sum(0)) / 51)


def test_p_mantel_is_uniform_without_an_effect(plant):
    """The asymptotic p is too small for pairs that share concepts; the permutation is not."""
    acts, human = plant(seeds=1, concepts=8, layers=1, units=3000, planted=())
    got = rsa.searchlight(acts, rsa.attribute_rdms(human), permutations=99)
    assert (got.p_mantel <= 0.05).mean() < 0.07
    assert (got.p <= 0.01).mean() > 0.015


def test_a_dead_neuron_is_counted_not_ranked(plant):
    acts, human = plant()
    acts[:, :, 0, 3] = 0.0
    got = rsa.searchlight(acts, rsa.attribute_rdms(human), permutations=5)
    assert got.attrs["undefined"] == 1
    for name in got:
        assert np.isnan(got[name].values[:, 0, 3]).all()
        assert np.isfinite(np.delete(got[name].values.reshape(2, -1), 3, axis=1)).all()
    assert rsa.order(got.tau[0])[-1] == 3


def test_without_seeds_and_with_a_flat_index(plant):
    acts, human = plant(seeds=1)
    flat = acts.isel(seed=0, drop=True).stack(neuron=("layer", "unit")).reset_index("neuron")
    references = rsa.attribute_rdms(human).isel(attribute=0, drop=True)
    got = rsa.searchlight(flat, references, over=None)
    assert got.tau.dims == ("neuron",)
    whole = rsa.searchlight(acts, references)
    np.testing.assert_array_equal(got.tau.values, whole.tau.values.ravel())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x, r: rsa.searchlight(x.rename(emotion="label"), r), "concept dim 'emotion'"),
        (lambda x, r: rsa.searchlight(x.drop_vars("emotion"), r), "no labels"),
        (lambda x, r: rsa.searchlight(x.isel(emotion=slice(5)), r), "unknown emotion"),
        (lambda x, r: rsa.searchlight(x, r, over="subject"), "unknown dim to average over 'subject'"),
        (lambda x, r: rsa.searchlight(x, r, average="mean"), "unknown average"),
        (lambda x, r: rsa.searchlight(x, r, alternative="larger"), "unknown alternative"),
        (lambda x, r: rsa.searchlight(x.isel(layer=0, unit=0), r), "no neurons"),
        (lambda x, r: rsa.searchlight(x.where(x.unit != 2), r), "layer 0, unit 2 is not finite"),
        (lambda x, r: rsa.searchlight(x, r * 0), "same dissimilarity"),
        (lambda x, r: rsa.searchlight(x, r.isel(pair=slice(9))), "all pairs"),
        (lambda x, r: rsa.searchlight(x, r.drop_vars("first")), "'first'"),
        (lambda x, r: rsa.searchlight(x, r, block=0), "at least 1"),
    ],
)
def test_bad_input(plant, call, word):
    acts, human = plant()
    with pytest.raises(EmotraceError, match=word):
        call(acts, rsa.attribute_rdms(human))


def test_lazy_activations_are_read_in_blocks(plant, tmp_path):
    acts, human = plant()
    acts.drop_vars("emotion").rename("neuron").to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)["neuron"]
    lazy = lazy.assign_coords(emotion=acts["emotion"].values)
    references = rsa.attribute_rdms(human)
    got = rsa.searchlight(lazy, references, block=4)
    np.testing.assert_array_equal(got.tau.values, rsa.searchlight(acts, references).tau.values)
    assert not lazy.variable._in_memory
