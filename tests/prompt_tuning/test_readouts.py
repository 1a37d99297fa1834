"""Layouts and read-out: one padded batch against single sequences with a plain hook on the embedding."""

import numpy as np
import pytest
import torch

import emotrace as et
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning import Layout, Readout, accuracy, mask_edits
from emotrace.prompt_tuning.readouts import refuse_remote
from tests.helpers import hooked, loaded

TEXTS = ["abc", "a longer one, to pad", "x", "twelve"]
ANSWERS = (20, 30)
LENGTH = 3


def parts(name, **options):
    lm = loaded(name, **options)
    layout = Layout(lm.sites.encoder, LENGTH)
    width = lm.sites.address("embed").width
    vectors = torch.randn(LENGTH, width, generator=torch.Generator().manual_seed(1))
    return lm, layout, vectors


def literal(lm, laid, vectors):
    """One sequence at a time, the embedding replaced by a hook, the whole output read."""
    embedding = lm._module.get_input_embeddings()

    def change(h):
        h = h.clone()
        h[0, laid.first : laid.first + len(vectors)] = vectors
        return h

    with hooked(embedding, "output", change), torch.no_grad():
        logits = lm._module(torch.tensor([laid.ids])).logits[0, laid.at]
    return float(logits[ANSWERS[1]] - logits[ANSWERS[0]])


@pytest.mark.parametrize(
    "name",
    ["roberta", "bert", "distilbert", "electra", "deberta-v2", "modernbert", "llama", "gpt2", "gemma2", "opt", "bloom", "falcon"],
)  # fmt: skip
def test_a_padded_batch_answers_as_single_sequences_do(name):
    lm, layout, vectors = parts(name)
    laid = layout.texts(TEXTS)
    found = Readout(lm, layout, ANSWERS).margins(laid, vectors, batch_size=3)
    np.testing.assert_allclose(found, [literal(lm, s, vectors) for s in laid], atol=3e-4)
    other = Readout(lm, layout, ANSWERS).margins(laid, -vectors, batch_size=3)
    assert np.abs(found - other).max() > 1e-3


def test_each_sequence_may_have_its_own_prompt():
    lm, layout, vectors = parts("llama")
    laid, reader = layout.texts(TEXTS[:2]), Readout(lm, layout, ANSWERS)
    with torch.no_grad():
        both = reader.logits(laid, torch.stack([vectors, -vectors]))
    for row, one in enumerate((vectors, -vectors)):
        alone = float(both[row, 1] - both[row, 0])
        assert alone == pytest.approx(literal(lm, laid[row], one), abs=1e-4)


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_where_prompt_text_and_answer_lie(name):
    lm, layout, _ = parts(name)
    (laid,) = layout.texts(["ab"])
    ids = lm.sites.encoder.ids(["ab"])[0]
    held = (layout.placeholder,) * LENGTH
    if name == "llama":
        assert laid == ((ids[0], *held, *ids[1:]), 1, LENGTH + len(ids) - 1)
        assert layout.bare() == ((ids[0], *held), 1, LENGTH)
    else:
        assert laid == ((layout.mask_id, *held, *ids), 1, 0)
        assert layout.bare() == ((layout.mask_id, *held, ids[0]), 1, 0)
    batch = layout.batch(layout.texts(TEXTS))
    rows = torch.arange(len(TEXTS))
    assert (batch.inputs["input_ids"][rows[:, None], batch.columns] == layout.placeholder).all()
    assert (batch.inputs["attention_mask"].gather(1, batch.columns) == 1).all()
    assert (batch.inputs["attention_mask"].sum(1) == torch.tensor(batch.lengths)).all()


def test_a_text_that_is_too_long_is_cut_before_its_closing_tokens():
    lm, _, vectors = parts("roberta")
    layout = Layout(lm.sites.encoder, LENGTH, max_tokens=5)
    (laid,) = layout.texts(["abcdefgh"])
    whole = lm.sites.encoder.ids(["abcdefgh"])[0]
    assert laid.ids[1 + LENGTH :] == tuple(whole[:5])
    longest = Layout(lm.sites.encoder, LENGTH, max_tokens=10**6)
    assert longest.room == lm.sites.encoder.max_length - LENGTH - 1
    (cut,) = longest.texts(["a" * 200])
    assert len(cut.ids) == lm.sites.encoder.max_length
    assert np.isfinite(Readout(lm, longest, ANSWERS).margins([cut], vectors)).all()
    with pytest.raises(EmotraceError, match="no room for text"):
        Layout(lm.sites.encoder, 500)


def test_a_template_stands_around_the_text():
    lm, _, _ = parts("llama")
    layout = Layout(lm.sites.encoder, LENGTH, "<{text}> joy?")
    assert lm.sites.encoder.decode(layout.texts(["ab"])[0].ids[1 + LENGTH :]) == "<ab> joy?"


def test_edits_act_with_the_unembedding_narrowed_or_not():
    lm, layout, vectors = parts("roberta")
    laid = layout.texts(TEXTS)
    reader = Readout(lm, layout, ANSWERS)
    mask = et.rsa.select_neurons(_scores(lm), 9, draws=0).masked[0]
    found = reader.margins(laid, vectors, edits=mask_edits(mask.drop_vars(["attribute", "k", "kind", "draw"])))
    for row, one in enumerate(laid):
        with masked_by_hooks(lm, mask.values):
            assert found[row] == pytest.approx(literal(lm, one, vectors), abs=1e-4)
    bias = torch.zeros(lm.sites.vocab_size)
    bias[ANSWERS[1]] = 5.0  # an edit after the unembedding, which therefore runs whole
    moved = reader.margins(laid, vectors, edits=[et.Add("logits", vector=bias, positions="all")])
    np.testing.assert_allclose(moved, reader.margins(laid, vectors) + 5, atol=1e-4)


def _scores(lm):
    import xarray as xr

    shape = (1, lm.sites.n_layers, lm.sites.d_ff)
    values = np.random.default_rng(0).normal(size=shape)
    coords = {"attribute": ["a"], "layer": range(shape[1]), "unit": range(shape[2])}
    return xr.DataArray(values, dims=("attribute", "layer", "unit"), coords=coords)


class masked_by_hooks:
    """The masked neurons set to 0 by torch hooks at every position."""

    def __init__(self, lm, mask):
        self.lm, self.mask, self.open = lm, torch.tensor(mask), []

    def __enter__(self):
        for layer, row in enumerate(self.mask):
            module = self.lm._module.get_submodule(f"roberta.encoder.layer.{layer}.output.dense")
            context = hooked(module, "input", lambda h, row=row: h.masked_fill(row, 0.0))
            context.__enter__()
            self.open.append(context)

    def __exit__(self, *_):
        for context in self.open:
            context.__exit__(None, None, None)


def test_accuracy_is_of_examples_or_of_batches():
    margins, labels = np.array([1.0, -1.0, 2.0, 0.0, 3.0]), [True, True, True, False, False]
    assert accuracy(margins, labels) == pytest.approx(3 / 5)
    assert accuracy(margins, labels, "batches", 2) == pytest.approx(np.mean([0.5, 1.0, 0.0]))


def test_weights_that_are_elsewhere_are_refused():
    class Sites:
        identity = {"backend": "ndif", "model_id": "far/away"}  # noqa: RUF012

    class Far:
        sites = Sites()

    with pytest.raises(EmotraceError, match=r"'far/away' is remote"):
        refuse_remote(Far())
