"""A network in which known neurons carry an attribute: RSA finds them, and its task needs them more than others."""

import pytest

from emotrace import prompt_tuning as pt
from emotrace import rsa
from emotrace.testing.attribute import ATTRIBUTE, LABEL, WORDS, carried

DRAWS = 40


@pytest.fixture(scope="module")
def net():
    return carried()


@pytest.fixture(scope="module")
def prompt(net):
    recipe = pt.Recipe(length=2, words=WORDS, learning_rate=0.01, epochs=2)
    return pt.tune(net.model, pt.binary(net.texts, LABEL, 0), recipe)


@pytest.fixture(scope="module")
def found(net):
    x = pt.concept_neurons(net.model, net.prompts, progress=False)
    return rsa.searchlight(x, rsa.attribute_rdms(net.scores))


def test_the_searchlight_finds_the_neurons_that_carry_the_attribute(net, found):
    k = int(net.neurons.sum())
    masks = rsa.select_neurons(found["tau"], k, draws=0)
    best = masks.sel(attribute=ATTRIBUTE).masked[0].values
    assert (best == net.neurons.values).all()
    tau = found["tau"].sel(attribute=ATTRIBUTE)
    assert tau.values[net.neurons.values].min() > tau.values[~net.neurons.values].max() + 0.1
    for other in ("control", "novelty"):
        chosen = masks.sel(attribute=other).masked[0].values
        assert (chosen & net.neurons.values).sum() <= k // 2


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_masking_them_hurts_the_task_more_than_95_percent_of_random_masks(net, found, prompt, how, tmp_path):
    masks = rsa.select_neurons(
        found["tau"].sel(attribute=[ATTRIBUTE]), int(net.neurons.sum()), draws=DRAWS, match="layer"
    )
    table = pt.masked_accuracy(net.model, [prompt], net.texts, masks, how=how, out=tmp_path, progress=False)
    (test,) = rsa.draw_tests(table).to_dict("records")
    unmasked = table.loc[table["kind"] == "none", "accuracy"].item()
    assert unmasked > 0.95
    assert test["n_draws"] == DRAWS
    assert test["hurts_more"] > 0.95
    assert test["selective"] < 0.75 < test["random"]


def test_without_the_neurons_nothing_of_the_attribute_reaches_the_answer(net, prompt):
    reader, vectors = pt.readout(net.model, prompt)
    laid = reader.layout.texts([t.text for t in net.texts["test"]])
    margins = reader.margins(laid, vectors, edits=pt.mask_edits(net.neurons))
    assert abs(margins).max() < 0.02 * abs(reader.margins(laid, vectors)).max()
