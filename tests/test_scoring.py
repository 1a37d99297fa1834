"""Scoring: perplexity equals a slow literal loop, whatever the batch, the order and the padding."""

import contextlib
import math

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import scoring
from emotrace.datasets import Prompts
from emotrace.forwards import likelihood
from emotrace.labels import EmotraceError
from emotrace.testing import hooks
from tests.helpers import hooked, loaded

PROMPTS = [
    {
        "key": f"p{i}",
        "token_ids": list(range(10 + i, 10 + i + n)),
        "reply_ids": [(40 + 7 * i + j) % 150 for j in range(m)],
    }
    for i, (n, m) in enumerate([(4, 3), (9, 1), (2, 8), (1, 5), (6, 0), (5, 2)])
]


def literal(lm, prompt, reply):
    """One forward per token, one prompt at a time."""
    total = []
    for j in range(len(reply)):
        with torch.no_grad():
            logits = lm._module(input_ids=torch.tensor([prompt + reply[:j]])).logits[0, -1].double()
        total.append(float(logits[reply[j]] - torch.logsumexp(logits, 0)))
    return total


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
def test_log_probabilities_equal_the_literal_loop(name):
    lm = loaded(name)
    found = scoring.reply_logprobs(lm, PROMPTS, batch_size=4)
    for prompt, mine in zip(PROMPTS, found, strict=True):
        np.testing.assert_allclose(mine, literal(lm, prompt["token_ids"], prompt["reply_ids"]), atol=2e-4)
        assert mine.shape == (len(prompt["reply_ids"]),)


def test_perplexity_is_the_exponential_of_the_mean_and_none_for_an_empty_reply():
    lm = loaded()
    found = scoring.perplexity(lm, PROMPTS)
    for prompt, mine in zip(PROMPTS, found, strict=True):
        scores = literal(lm, prompt["token_ids"], prompt["reply_ids"])
        assert mine == (pytest.approx(math.exp(-np.mean(scores)), rel=1e-4) if scores else None)
    assert found[4] is None
    assert scoring.perplexity(lm, [[1, 2, 3]]) == [None]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_it_does_not_depend_on_batch_order_and_neighbours(batch_size, monkeypatch):
    lm = loaded()
    whole = scoring.reply_logprobs(lm, PROMPTS)
    turned = scoring.reply_logprobs(lm, PROMPTS[::-1], batch_size=batch_size)[::-1]
    monkeypatch.setattr(likelihood, "LOGIT_ELEMENTS", 1)  # a large vocabulary leaves one sequence a batch
    small = scoring.reply_logprobs(lm, PROMPTS, batch_size=batch_size)
    for a, b, c in zip(whole, turned, small, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-5)


def test_text_prompts_are_encoded_as_everywhere_else():
    lm = loaded()
    chat = Prompts.of([[{"role": "user", "content": "Hello there"}]])
    ids = lm.sites.encoder.ids(chat)[0]
    a = scoring.perplexity(lm, [{"key": "a", "messages": chat[0].messages, "reply_ids": [50, 51]}])
    assert a == scoring.perplexity(lm, [{"key": "a", "token_ids": ids, "reply_ids": [50, 51]}])


def test_rows_are_scored_after_the_plain_prompt_and_equal_replies_once(monkeypatch):
    lm = loaded()
    plain = {p.key: p for p in Prompts.of([{"key": "a_b__positive", "token_ids": [11, 12, 13]}])}
    rows = [
        {"key": f"r{i}", "skeleton_id": "a/b", "valence": "positive", "token_ids": ids, "meta": {}}
        for i, ids in enumerate([[20, 21], [20, 21], [30], []])
    ]
    counted = []
    real = scoring.perplexity
    monkeypatch.setattr(scoring, "perplexity", lambda m, items, *a: counted.append(len(items)) or real(m, items, *a))
    scoring.add_perplexity(lm, rows, plain, progress=False)
    scoring.add_perplexity(lm, rows, plain, progress=False)
    assert counted == [3], "two equal replies are one, and rows that have a perplexity are left alone"
    expected = [math.exp(-np.mean(literal(lm, [11, 12, 13], ids))) for ids in ([20, 21], [20, 21], [30])]
    assert [r["meta"]["perplexity"] for r in rows[:3]] == pytest.approx(expected, rel=1e-4)
    assert rows[3]["meta"]["perplexity"] is None


def test_refusals():
    lm = loaded()
    row = {"key": "r", "skeleton_id": "s", "valence": "positive", "token_ids": [1], "meta": {}}
    with pytest.raises(EmotraceError, match="row 'r': no plain prompt 's__positive'"):
        scoring.add_perplexity(lm, [row], {})
    with pytest.raises(EmotraceError, match="masked model"):
        scoring.perplexity(loaded("bert"), [[11, 12]])
    with pytest.raises(EmotraceError, match="batch_size=0"):
        scoring.perplexity(lm, PROMPTS, batch_size=0)
    with pytest.raises(EmotraceError, match="token id 160"):
        scoring.perplexity(lm, [{"token_ids": [1, 2], "reply_ids": [160]}])


def test_logits_that_are_not_finite_are_an_error(monkeypatch):
    lm = loaded()
    monkeypatch.setattr(scoring, "reply_logprobs", lambda *_: [np.array([-1.0, np.nan])])
    with pytest.raises(EmotraceError, match="reply to '0' no finite"):
        scoring.perplexity(lm, [[1, 2]])
    monkeypatch.setattr(scoring, "reply_logprobs", lambda *_: [np.array([-1e6])])
    assert math.isfinite(scoring.perplexity(lm, [[1, 2]])[0] or math.inf)


# -- KL


V = np.random.default_rng(1).normal(size=32).astype(np.float32)


def literal_kl(lm, changes, prompts=PROMPTS):
    """One prompt at a time, whole forwards under plain torch hooks; ``changes``: address → change(h, prompt length)."""
    out = []
    for prompt in prompts:
        p, n = len(prompt["token_ids"]), len(prompt["reply_ids"])
        inputs = {"input_ids": torch.tensor([prompt["token_ids"] + prompt["reply_ids"]])}
        base = hooks.forward(lm, inputs)[0, p - 1 : -1].double()
        with contextlib.ExitStack() as stack:
            for address, change in changes:
                module = lm._module.get_submodule(address.path)
                stack.enter_context(hooked(module, address.side, lambda h, c=change, p=p: c(h, p)))
            edited = hooks.forward(lm, inputs)[0, p - 1 : -1].double()
        total = 0.0
        for a, b in zip(base.softmax(-1), edited.softmax(-1), strict=True):
            total += sum(x * math.log(x / y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
        out.append(total / n if n else math.nan)
    return out


def from_position(start, change):
    def apply(h, p):
        h = h.clone()
        flat = h if h.ndim == 3 else h[None]
        flat[:, start(p) :] = change(flat[:, start(p) :])
        return h

    return apply


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "cohere"])
def test_kl_equals_hooks_and_a_literal_sum(name):
    lm = loaded(name)
    edits = [
        et.Add("resid_post", layers=[0], vector=V, strength=2.0),
        et.Scale("mlp_out", layers=[1], strength=0.5, positions="generated"),
    ]
    found = scoring.kl(lm, PROMPTS, edits, batch_size=4)
    expected = literal_kl(
        lm,
        [
            (lm.sites.address("resid_post", 0), from_position(lambda p: p - 1, lambda h: h + 2 * torch.tensor(V))),
            (lm.sites.address("mlp_out", 1), from_position(lambda p: p, lambda h: 0.5 * h)),
        ],
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-7)
    assert np.nanmin(found) > 1e-4
    assert np.isnan(found[4]), "an empty reply has no token"


def test_kl_of_edits_that_change_nothing_is_zero():
    lm = loaded()
    assert np.nanmax(np.abs(scoring.kl(lm, PROMPTS, []))) == 0
    assert np.nanmax(np.abs(scoring.kl(lm, PROMPTS, [et.Scale("mlp_out", layers=[1])]))) < 1e-10


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_kl_does_not_depend_on_batch_order_and_neighbours(batch_size, monkeypatch):
    lm = loaded()
    edits = [et.Ablate("neuron", layers=[0, 1], units=[1, 2, 3])]
    whole = scoring.kl(lm, PROMPTS, edits)
    np.testing.assert_allclose(scoring.kl(lm, PROMPTS[::-1], edits, batch_size)[::-1], whole, rtol=1e-4)
    monkeypatch.setattr(likelihood, "LOGIT_ELEMENTS", 1)
    np.testing.assert_allclose(scoring.kl(lm, PROMPTS, edits, batch_size), whole, rtol=1e-4)


def test_kl_gathers_a_payload_by_the_label_of_each_prompt():
    lm = loaded()
    table = xr.DataArray(np.stack([V, -V]), dims=("emotion", "dim"), coords={"emotion": ["fear", "anger"]})
    prompts = [p | {"emotion": "fear" if i % 2 else "anger"} for i, p in enumerate(PROMPTS)]
    found = scoring.kl(lm, prompts, [et.Add("resid_post", layers=[1], vector=table)])
    for i, sign in enumerate([-1, 1, -1, 1]):
        alone = scoring.kl(lm, [PROMPTS[i]], [et.Add("resid_post", layers=[1], vector=sign * V)])
        assert found[i] == pytest.approx(alone[0], rel=1e-4)


def test_kl_refusals():
    lm = loaded()
    edits = [et.Scale("mlp_out", layers=[1], strength=0.5)]
    with pytest.raises(EmotraceError, match="masked model"):
        scoring.kl(loaded("bert"), [[11, 12]], edits)
    with pytest.raises(EmotraceError, match="with_replies"):
        scoring.kl(lm, [[11, 12]], edits)
    with pytest.raises(EmotraceError, match="never fired"):
        scoring.kl(lm, PROMPTS, [et.Scale("mlp_out", layers=[1], positions=(90, 95))])
    with pytest.raises(EmotraceError, match="no layer 9"):
        scoring.kl(lm, PROMPTS, [et.Scale("mlp_out", layers=[9])])
    with pytest.raises(EmotraceError, match="batch_size=0"):
        scoring.kl(lm, PROMPTS, edits, batch_size=0)
