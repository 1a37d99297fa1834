"""Tuning: gradients, steps of the optimizer, and what is kept of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from emotrace.datasets.goemotions import LabelledText
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning import Layout, Readout, Recipe, SoftPrompt, as_edits, binary, readout, tune, tuning
from emotrace.prompt_tuning.optimizer import AdamW
from emotrace.prompt_tuning.tuning import beginning
from tests.helpers import loaded

RNG = np.random.default_rng(0)
RECIPE = Recipe(length=3, words=("-", "+"), learning_rate=0.05, epochs=4, patience=None)


def rows(part, n):
    def text(i):
        letters = "".join(RNG.choice(list("abcdefg"), RNG.integers(1, 8)))
        return f"{letters} {'zz' if i % 2 else 'qq'}"

    return [LabelledText(f"{part}{i}", text(i), ("joy" if i % 2 else "anger",)) for i in range(n)]


TASK = binary({"train": rows("a", 40), "dev": rows("d", 16), "test": rows("t", 16)}, "joy", 3)


@pytest.fixture(scope="module", params=["llama", "roberta"])
def lm(request):
    return loaded(request.param)


def test_gradients_are_those_of_finite_differences(lm):
    layout = Layout(lm.sites.encoder, 2)
    reader = Readout(lm, layout, (20, 30))
    laid = layout.texts(TASK.train.texts[:5])
    truth = torch.tensor([int(x) for x in TASK.train.labels[:5]])

    def loss(v):
        return torch.nn.functional.cross_entropy(reader.logits(laid, v), truth)

    vectors = 0.5 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        start = vectors.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(start), [start])
    for i, j in ((0, 3), (1, 17), (1, 31)):
        step = torch.zeros_like(vectors)
        step[i, j] = 1e-2
        with torch.no_grad():
            slope = float(loss(vectors + step) - loss(vectors - step)) / 2e-2
        assert float(gradient[i, j]) == pytest.approx(slope, rel=0.03, abs=2e-5)
    assert all(p.grad is None for p in lm._module.parameters())


@pytest.mark.parametrize("correct", [True, False])
def test_steps_of_the_optimizer(correct):
    start, gradients = torch.randn(3, 4), [torch.randn(3, 4) for _ in range(5)]
    mine = start.clone()
    optimizer = AdamW(mine, 0.02, 0.1, correct)
    for g in gradients:
        optimizer.step(g)
    if correct:
        theirs = torch.nn.Parameter(start.clone())
        reference = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
        for g in gradients:
            theirs.grad = g
            reference.step()
        expected = theirs.detach()
    else:  # from the formula
        expected, m, v = start.clone(), torch.zeros(3, 4), torch.zeros(3, 4)
        for g in gradients:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            expected = expected - 0.02 * 0.1 * expected - 0.02 * m / (v.sqrt() + 1e-6)
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_a_prompt_learns_a_task_and_the_weights_stay_as_they_were():
    lm = loaded("llama")
    before = {n: p.detach().clone() for n, p in lm._module.named_parameters()}
    prompt = tune(lm, TASK, RECIPE)
    assert prompt.scores["test"]["accuracy"] >= 0.9
    assert prompt.scores["test"]["n"] == len(TASK.test)
    assert prompt.history[-1]["loss"] < 0.5 * prompt.history[0]["loss"]
    assert all(torch.equal(p, before[n]) for n, p in lm._module.named_parameters())
    assert not lm._module.training
    again = tune(lm, TASK, RECIPE)
    np.testing.assert_array_equal(prompt.vectors, again.vectors)
    assert not np.array_equal(prompt.vectors, tune(lm, replace(TASK, seed=4), RECIPE).vectors)


def test_the_best_epoch_is_kept_and_tuning_stops_early(lm):
    prompt = tune(lm, TASK, replace(RECIPE, epochs=12, patience=2, select="loss"))
    losses = [h["dev_loss"] for h in prompt.history]
    best = int(np.argmin(losses))
    assert prompt.scores["best_epoch"] == best + 1
    assert len(losses) == min(12, best + 3)
    reader, vectors = readout(lm, prompt)
    margins = reader.margins(reader.layout.texts(TASK.dev.texts), vectors)
    right = (margins > 0) == np.array(TASK.dev.labels)
    assert right.mean() == pytest.approx(prompt.history[best]["dev_accuracy"])
    assert prompt.scores["dev"]["accuracy"] == prompt.history[best]["dev_accuracy"]


def test_dropout_acts_in_training_only():
    lm = loaded("roberta")
    plain, dropped = (tune(lm, TASK, replace(RECIPE, epochs=1, dropout=d)) for d in (False, True))
    assert not np.allclose(plain.final, dropped.final)
    np.testing.assert_array_equal(dropped.final, tune(lm, TASK, replace(RECIPE, epochs=1, dropout=True)).final)
    assert not lm._module.training


def test_beginnings():
    lm = loaded("roberta")
    layout, rng = Layout(lm.sites.encoder, 3), np.random.default_rng(0)
    table = lm._module.get_input_embeddings().weight.detach()
    mask = beginning(lm, replace(RECIPE, init="mask"), rng, layout)
    torch.testing.assert_close(mask, table[[layout.mask_id] * 3])
    known = beginning(lm, RECIPE, rng, layout)
    assert all((table == row).all(1).any() for row in known)
    normal = beginning(lm, replace(RECIPE, init="normal", length=200), rng, layout)
    assert float(normal.std()) == pytest.approx(0.02, rel=0.05)
    scaled = loaded("gemma2")  # what its embedding looks up, it multiplies
    found = beginning(scaled, RECIPE, rng, Layout(scaled.sites.encoder, 3))
    whole = scaled._module.get_input_embeddings()(torch.arange(160)).detach()
    assert all((whole == row).all(1).any() for row in found)


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch):
    monkeypatch.setattr(tuning, "_epoch", lambda *_: float("nan"))
    with pytest.raises(EmotraceError, match=r"joy, seed 3: the loss is nan in epoch 1; learning_rate=0.05 is too high"):
        tune(loaded("llama"), TASK, RECIPE)


def test_a_logit_that_is_not_finite_is_an_error(monkeypatch):
    lm = loaded("llama")
    reader = Readout(lm, Layout(lm.sites.encoder, 3), (20, 30))
    monkeypatch.setattr(reader, "logits", lambda laid, *_: torch.full((len(laid), 2), torch.nan))
    with pytest.raises(EmotraceError, match="no finite logit"):
        reader.margins(reader.layout.texts(["a"]), torch.zeros(3, 32))


def test_a_prompt_is_written_and_read_whole(tmp_path):
    lm = loaded("llama")
    prompt = tune(lm, TASK, replace(RECIPE, epochs=1))
    prompt.save(tmp_path / "p")
    back = SoftPrompt.load(tmp_path / "p")
    np.testing.assert_array_equal(back.vectors, prompt.vectors)
    np.testing.assert_array_equal(back.final, prompt.final)
    for name in ("emotion", "seed", "recipe", "answers", "model", "scores", "task"):
        assert getattr(back, name) == getattr(prompt, name), name
    assert list(back.history) == list(prompt.history)
    file = tmp_path / "p" / "prompt.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(EmotraceError, match="sha256 differs"):
        SoftPrompt.load(tmp_path / "p")
    (tmp_path / "p" / "prompt.json").write_text("{}")
    with pytest.raises(EmotraceError, match="no manifest of a soft prompt"):
        SoftPrompt.load(tmp_path / "p")
    with pytest.raises(EmotraceError, match="does not exist"):
        SoftPrompt.load(tmp_path / "q")


def test_a_prompt_belongs_to_one_model():
    prompt = tune(loaded("llama"), TASK, replace(RECIPE, epochs=1))
    with pytest.raises(EmotraceError, match="not for this model"):
        readout(loaded("llama", seed=1), prompt)
    with pytest.raises(EmotraceError, match="width 32, the model's 16"):
        prompt.check(loaded("electra"))
    with pytest.raises(EmotraceError, match="one shape are due"):
        as_edits([], 1)
