"""Masks as edits, and accuracy with them: against arithmetic on hooks, resumable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace.datasets.goemotions import LabelledText
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning import Recipe, binary, mask_edits, masked_accuracy, readout, reference_values, tune
from emotrace.prompt_tuning import masked as masked_
from emotrace.rsa import drops, select_neurons
from tests.helpers import hooked, loaded

IDS = [[11, 12, 13, 14, 15], [21, 22, 23]]
RNG = np.random.default_rng(0)
MASK = xr.DataArray(
    np.zeros((3, 48), dtype=bool), dims=("layer", "unit"), coords={"layer": range(3), "unit": range(48)}
)
MASK[0, 5] = MASK[0, 40] = MASK[2, 7] = True
VALUES = MASK.copy(data=RNG.normal(size=(3, 48)))
DONORS = xr.concat([VALUES, -VALUES], dim=xr.Variable("donor", [0, 1]))
REFERENCE = xr.Dataset({"mean": VALUES, "values": DONORS})


def changed(how, layer, row):
    """What a mask does to the neurons of one layer of one sequence, from its definition."""
    on, values = torch.tensor(MASK.values[layer]), torch.tensor(VALUES.values[layer], dtype=torch.float32)
    return {
        "zero": lambda h: torch.where(on, 0.0, h),
        "mean": lambda h: torch.where(on, values, h),
        "resample": lambda h: torch.where(on, values if row == 1 else -values, h),
        "multiply": lambda h: torch.where(on, values * h, h),
    }[how]


@pytest.mark.parametrize("how", ["zero", "mean", "resample", "multiply"])
@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_a_mask_acts_at_every_position_and_nowhere_else(how, name):
    lm = loaded(name)
    edits = mask_edits(MASK, how, reference=REFERENCE, factors=VALUES)
    assert [e.layers for e in edits] == [(0,), (2,)]
    items = [{"key": str(i), "token_ids": ids, "donor": 1 - i} for i, ids in enumerate(IDS)]
    got = et.capture(lm, items, "logits", positions="all", edits=edits, progress=False).sel("logits").values
    down = {"llama": "model.layers.{}.mlp.down_proj", "roberta": "roberta.encoder.layer.{}.output.dense"}[name]
    expected = []
    for row, ids in enumerate(IDS):
        first, last = (lm._module.get_submodule(down.format(i)) for i in (0, 2))
        with (
            hooked(first, "input", changed(how, 0, row)),
            hooked(last, "input", changed(how, 2, row)),
            torch.no_grad(),
        ):
            expected.append(lm._module(torch.tensor([ids])).logits[0].numpy())
    np.testing.assert_allclose(got, np.concatenate(expected), atol=5e-5)


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (MASK, {"how": "none"}, "unknown masking 'none'"),
        (MASK.astype(int), {}, "a mask is bool"),
        (MASK & False, {}, "this mask is empty"),
        (MASK, {"how": "mean"}, "needs reference="),
        (MASK, {"how": "multiply"}, "needs factors="),
        (MASK, {"how": "multiply", "factors": VALUES.isel(unit=slice(0, 9))}, "no values for layer 0"),
    ],
)
def test_what_is_no_mask_is_refused(mask, options, message):
    with pytest.raises(EmotraceError, match=message):
        mask_edits(mask, **options)


def rows(part, n):
    return [
        LabelledText(f"{part}{i}", f"{part} {'zz' if i % 2 else 'q'} {i}", ("joy" if i % 2 else "fear",))
        for i in range(n)
    ]


TEXTS = {"train": rows("a", 16), "dev": rows("d", 8), "test": rows("t", 12)}


@pytest.fixture(scope="module", params=["llama", "roberta"])
def tuned(request):
    lm = loaded(request.param)
    recipe = Recipe(length=2, words=("-", "+"), learning_rate=0.05, epochs=3)
    return lm, [tune(lm, binary(TEXTS, "joy", s), recipe) for s in (1, 2)]


def test_reference_values_are_those_of_the_model_under_the_prompt(tuned):
    lm, (prompt, _) = tuned
    found = reference_values(lm, prompt, ["ab", "longer text", "c"], seed=3, batch_size=2)
    reader, _ = readout(lm, prompt)
    tokens = []
    for laid in reader.layout.texts(["ab", "longer text", "c"]):  # one at a time, the embedding replaced by a hook

        def insert(h, laid=laid):
            h = h.clone()
            h[0, laid.first : laid.first + 2] = torch.tensor(prompt.vectors)
            return h

        with hooked(lm._module.get_input_embeddings(), "output", insert):
            acts = et.capture(lm, [{"key": "0", "token_ids": laid.ids}], "neuron", positions="all", progress=False)
        tokens.append(acts.sel("neuron").transpose("token", "layer", "unit").values)
    np.testing.assert_allclose(found["mean"].values, np.concatenate(tokens).mean(0), atol=2e-5)
    for donor, values in zip(found["values"].values, tokens, strict=True):
        assert np.abs(values - donor).max((1, 2)).min() < 2e-5  # it is one of that text's tokens
    assert found.attrs["tokens"] == sum(map(len, tokens))


def masks(k=(6, 30), draws=2, seed=0):
    scores = VALUES.expand_dims(attribute=["valence", "arousal"]).copy()
    scores[1] = -scores[1]
    return select_neurons(scores, list(k), draws=draws, seed=seed)


@pytest.mark.parametrize("how", ["zero", "resample"])
def test_rows_hold_the_accuracy_of_every_prompt_and_mask(tuned, how, tmp_path):
    lm, prompts = tuned
    table = masked_accuracy(lm, prompts, TEXTS, masks(), how=how, out=tmp_path, progress=False)
    assert len(table) == 2 * (1 + 2 * 2 * 3)
    assert (table["accuracy"] == table["right"] / table["n"]).all()
    bare = table[table["kind"] == "none"].set_index("seed")["accuracy"]
    assert bare.to_dict() == {p.seed: p.scores["test"]["accuracy"] for p in prompts}
    assert set(drops(table)["n_draws"]) == {2}
    if how == "zero":  # one row again, from its parts
        reader, vectors = readout(lm, prompts[1])
        labels, mask = next(iter(masks().sel(kind="random", k=30)))
        edits = mask_edits(MASK.copy(data=mask))
        items = binary(TEXTS, "joy", 2).test
        right = (reader.margins(reader.layout.texts(items.texts), vectors, edits=edits) > 0) == np.array(items.labels)
        row = table[(table["seed"] == 2) & (table["kind"] == "random") & (table["k"] == 30)]
        row = row[(row["attribute"] == labels["attribute"]) & (row["draw"] == labels["draw"])]
        assert row["right"].item() == right.sum()


def test_accuracies_with_masks_may_be_means_over_other_batches(tuned, tmp_path):
    """As published: batches of 256 without masks, of 100 with them."""
    lm, (prompt, _) = tuned
    prompt = replace(prompt, recipe=replace(prompt.recipe, mean="batches", eval_batch=12))
    some = masks(k=(30,), draws=1).sel(attribute="valence")
    table = masked_accuracy(lm, [prompt], TEXTS, some, out=tmp_path, eval_batch=8, progress=False)
    reader, vectors = readout(lm, prompt)
    items = binary(TEXTS, "joy", 1).test
    laid = reader.layout.texts(items.texts)
    for (labels, mask), size in [(({"kind": "none"}, None), 12), *((pair, 8) for pair in some)]:
        edits = [] if mask is None else mask_edits(MASK.copy(data=mask))
        right = (reader.margins(laid, vectors, edits=edits) > 0) == np.array(items.labels)
        row = table[table["kind"] == labels["kind"]]
        assert row["accuracy"].item() == np.mean([right[i : i + size].mean() for i in range(0, len(right), size)])
        assert row["right"].item() == right.sum()


def test_the_same_command_continues_and_another_is_refused(tuned, tmp_path, monkeypatch):
    lm, prompts = tuned
    whole = masked_accuracy(lm, prompts, TEXTS, masks(), out=tmp_path / "whole", progress=False)
    count, real = [0], masked_._score  # called once for each row

    def stopped(*args):
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(masked_, "_score", stopped)
    monkeypatch.setattr(masked_, "PIECE", 3)
    with pytest.raises(KeyboardInterrupt):
        masked_accuracy(lm, prompts, TEXTS, masks(), out=tmp_path / "part", progress=False)
    count[0] = -99
    again = masked_accuracy(lm, prompts, TEXTS, masks(), out=tmp_path / "part", progress=False)
    assert count[0] + 99 == len(whole) - 6  # two pieces of three were on disk
    assert again.to_dict("records") == whole.to_dict("records")
    for options, message in (
        ({"how": "multiply"}, "how: 'zero' there, 'multiply' now"),
        ({"masks": masks(seed=1)}, "masks: "),
        ({"part": "dev"}, "part: 'test' there"),
    ):
        with pytest.raises(EmotraceError, match=message):
            masked_accuracy(**{"model": lm, "prompts": prompts, "texts": TEXTS, "masks": masks(), "progress": False,
                               "out": tmp_path / "part"} | options)  # fmt: skip
    (tmp_path / "part" / "masked.json").unlink()  # the rows themselves say what made them
    with pytest.raises(EmotraceError, match=r"masked\.jsonl: row .* \(settings: "):
        masked_accuracy(lm, prompts, TEXTS, masks(), how="multiply", out=tmp_path / "part", progress=False)


def test_what_does_not_fit_is_refused_before_anything_runs(tuned, tmp_path):
    lm, prompts = tuned
    wide = masks().masked.pad(unit=(0, 1), constant_values=False).assign_coords(unit=range(1, 50))
    cases = [
        ({"texts": {**TEXTS, "train": rows("b", 16)}}, "tuned on other texts"),
        ({"part": "train"}, "unknown part 'train'"),
        ({"how": "noise"}, "unknown masking 'noise'"),
        ({"masks": et.rsa.Masks(wide)}, "no unit 48"),
    ]
    for options, message in cases:
        with pytest.raises(EmotraceError, match=message):
            masked_accuracy(**{"model": lm, "prompts": prompts, "texts": TEXTS, "masks": masks(), "progress": False,
                               "out": tmp_path} | options)  # fmt: skip
    assert not any(tmp_path.iterdir())
