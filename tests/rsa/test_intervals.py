import numpy as np
import pytest

from emotrace import rsa
from emotrace.labels import EmotraceError


def test_a_planted_neuron_is_told_from_none_and_noise_is_not(plant):
    acts, human = plant()
    references = rsa.attribute_rdms(human)
    found = rsa.neuron_intervals(acts, references, [(1, 2), (0, 3)], draws=200)
    assert list(zip(found.layer.values, found.unit.values, strict=True)) == [(1, 2), (0, 3)]
    tau = rsa.searchlight(acts, references).tau
    for i, (layer, unit) in enumerate([(1, 2), (0, 3)]):
        np.testing.assert_allclose(
            found.correlation.isel(neuron=i), tau.sel(layer=layer, unit=unit), atol=1e-12, err_msg="the same τ-b"
        )
    planted = found.isel(neuron=0).sel(attribute="planted")
    assert planted.lo > 0.3
    assert planted.lo <= planted.correlation <= planted.hi
    noise = found.isel(neuron=1).sel(attribute="planted")
    assert noise.lo < 0 < noise.hi or noise.hi < planted.lo


def test_a_neuron_alone_and_among_others_has_one_interval(plant):
    acts, human = plant()
    references = rsa.attribute_rdms(human)
    alone = rsa.neuron_intervals(acts, references, [(0, 1)], draws=50)
    among = rsa.neuron_intervals(
        acts.transpose("unit", "layer", "emotion", "seed"), references, [(1, 2), (0, 1)], draws=50
    )
    np.testing.assert_array_equal(alone.lo.isel(neuron=0), among.lo.isel(neuron=1))
    without = rsa.neuron_intervals(acts.isel(seed=0, drop=True), references, [(0, 1)], over=None, draws=50)
    assert without.lo.dims == ("neuron", "attribute")


@pytest.mark.parametrize(
    ("neurons", "options", "words"),
    [
        ([], {}, "no neurons"),
        ([(5, 0)], {}, r"layer 5|unknown layer"),
        ([(0, 99)], {}, "unit"),
        ([(0, 0)], {"over": "subject"}, "subject"),
    ],
)
def test_what_there_is_not_is_named(plant, neurons, options, words):
    acts, human = plant()
    with pytest.raises(EmotraceError, match=words):
        rsa.neuron_intervals(acts, rsa.attribute_rdms(human), neurons, draws=10, **options)
