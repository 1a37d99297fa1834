"""TruthfulQA: MC1 and MC2 equal a slow literal loop of plain forwards under hooks, one choice at a time."""

import math
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace.datasets import read_truthfulqa
from emotrace.datasets.truthfulqa import Choices, Question
from emotrace.forwards import likelihood
from emotrace.labels import EmotraceError
from emotrace.suite import truthful
from tests.helpers import hooked, loaded

FILE = Path(__file__).parents[2] / "data" / "truthfulqa_mc_sample.json"
WIDTH = 32


def vectors():
    values = np.random.default_rng(3).standard_normal((2, WIDTH)).astype(np.float32)
    return xr.DataArray(values, dims=["layer", "dim"], coords={"layer": [0, 2]})


def pushed(positions="steer"):
    return [et.Add("resid_post", layers=[0, 2], vector=vectors(), strength=0.8, positions=positions)]


def literal(lm, prompt_ids, choice_ids, steered):
    """One choice: one plain forward, torch hooks that add at the last prompt token and all tokens after it."""

    def add(vector):
        def change(h):
            h = h.clone()
            h[:, len(prompt_ids) - 1 :] += 0.8 * torch.as_tensor(vector)
            return h

        return change

    with ExitStack() as stack, torch.no_grad():
        if steered:
            for layer in (0, 2):
                block = lm._module.model.layers[layer]
                stack.enter_context(hooked(block, "output", add(vectors().sel(layer=layer).values)))
        logits = lm._module(input_ids=torch.tensor([prompt_ids + choice_ids])).logits[0].double()
    total = 0.0
    for i, token in enumerate(choice_ids):
        row = logits[len(prompt_ids) - 1 + i]
        total += float(row[token]) - float(torch.logsumexp(row, 0))
    return total


@pytest.mark.parametrize("steered", [False, True])
def test_mc1_and_mc2_equal_the_literal_loop(steered):
    lm = loaded()
    questions = read_truthfulqa(FILE, "multiple_choice")[:5]
    rows = truthful.multiple_choice(lm, questions, pushed() if steered else None, batch_size=3, progress=False)
    for q, row in zip(questions, rows, strict=True):
        before = lm.sites.encoder.tokenizer(f"Question: {q.question}\nAnswer:")["input_ids"]
        for name, choices in (("mc1", q.mc1), ("mc2", q.mc2)):
            lls = []
            for text in choices.texts:
                ids = lm.sites.encoder.tokenizer(f"Question: {q.question}\nAnswer: {text}")["input_ids"]
                assert ids[: len(before)] == before
                lls.append(literal(lm, before, ids[len(before) :], steered))
            np.testing.assert_allclose(row["loglikelihoods"][name], lls, rtol=1e-4)
            true = [ll for ll, right in zip(lls, choices.true, strict=True) if right]
            if name == "mc1":
                assert row["mc1"] == int(all(true[0] > ll for ll in lls if ll != true[0]))
            else:
                assert row["mc2"] == pytest.approx(sum(map(math.exp, true)) / sum(map(math.exp, lls)), rel=1e-3)


def test_edits_change_the_scores_and_fire_at_every_layer_of_every_forward(monkeypatch):
    lm = loaded()
    questions = read_truthfulqa(FILE, "multiple_choice")[:3]
    counts = []
    entered = likelihood.enter
    monkeypatch.setattr(likelihood, "enter", lambda *a: counts.append(found := entered(*a)) or found)
    plain = truthful.multiple_choice(lm, questions, progress=False)
    steered = truthful.multiple_choice(lm, questions, pushed(), method="steer", batch_size=4, progress=False)
    assert [a["loglikelihoods"] != b["loglikelihoods"] for a, b in zip(plain, steered, strict=True)] == [True] * 3
    n = len({(q.question, t) for q in questions for t in (*q.mc1.texts, *q.mc2.texts)})
    assert [fired for _, _, fired in counts] == [[], *[[2]] * math.ceil(n / 4)]
    assert {row["method"] for row in steered} == {"steer"}


@pytest.mark.parametrize("positions", ["last", "generated", "prompt", (0, 9)])
def test_edits_that_miss_a_scored_position_are_refused(positions):
    with pytest.raises(EmotraceError, match="every token of its own"):
        truthful.multiple_choice(loaded(), read_truthfulqa(FILE, "multiple_choice"), pushed(positions), progress=False)


def test_definitions():
    assert truthful.mc1([-1.0, -2.0], [True, False]) == 1
    assert truthful.mc1([-2.0, -2.0], [True, False]) == 0
    assert truthful.mc1([-3.0, -2.0, -9.0], [True, False, False]) == 0
    assert truthful.mc2([math.log(0.2), math.log(0.1), math.log(0.1)], [True, True, False]) == pytest.approx(0.75)
    assert truthful.mc2([-2000.0, -2000.0 - math.log(3)], [True, False]) == pytest.approx(0.75)
    assert truthful.substring_score("It has EIGHT legs.", ("eight", "8")) == 1
    assert truthful.substring_score("It has six legs.", ("eight", "8")) == 0


def test_without_edits_the_scores_are_those_of_the_plain_model():
    lm = loaded("gpt2")
    prompts = [
        {"key": "a", "token_ids": [11, 12, 13], "reply_ids": [40, 41]},
        {"key": "b", "token_ids": [9], "reply_ids": []},
    ]
    found = likelihood.reply_scores(lm, prompts)
    with torch.no_grad():
        want = lm._module(torch.tensor([[11, 12, 13, 40, 41]])).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(found[0].logprobs, [want[2, 40], want[3, 41]], atol=1e-9)
    assert found[0].likeliest.shape == (2,)
    assert found[1].logprobs.size == 0


def test_the_published_substring_score_reads_the_prompt_too_and_counts_it_in_the_limit():
    lm = loaded()
    choices = Choices(("x", "y"), (True, False))
    q = Question("q0", "Is it a cat?", "", "a cat", ("a CAT",), ("dog",), choices, choices)
    (row,) = truthful.substring(lm, [q], progress=False)
    assert row["substring"] == 1  # the question itself holds the answer
    assert len(row["token_ids"]) <= 60 - row["meta"]["prompt_length"]
    (row,) = truthful.substring(lm, [q], max_new_tokens=4, progress=False)
    assert row["substring"] == int("a cat" in row["gen_text"].lower())
    assert len(row["token_ids"]) <= 4


def test_a_small_model_is_said_to_check_the_plumbing_only():
    lm = loaded()
    rows = truthful.multiple_choice(lm, read_truthfulqa(FILE, "multiple_choice")[:4], progress=False)
    found = truthful.summary(rows, lm)
    assert "plumbing" in found["note"]
    assert truthful.summary(rows)["note"] is None
    line = found["none"]["mc2"]
    assert line["value"] == pytest.approx(np.mean([row["mc2"] for row in rows]))
    assert line["ci95"][0] <= line["value"] <= line["ci95"][1]
    assert line["n"] == 4
    with pytest.raises(EmotraceError, match="no rows"):
        truthful.summary([])


def test_bad_questions_are_refused():
    generation = [Question("q0", "Why?", "", "a", ("a",), ())]
    with pytest.raises(EmotraceError, match="multiple_choice form"):
        truthful.multiple_choice(loaded(), generation, progress=False)
