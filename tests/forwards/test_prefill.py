"""A reply that begins with given tokens goes on as if the model had said them itself, under any edit, here and elsewhere."""

from __future__ import annotations

import json

import pytest
import torch

import emotrace as et
from emotrace.labels import EmotraceError
from tests.forwards.test_generate import VECTOR
from tests.helpers import loaded

SHARED = list(range(10, 10 + 40))
"""So long that what prompts begin with is computed once."""
BEGUN = ((5, 6), (7,), (5, 6, 8, 9))
PROMPTS = [
    {"key": k, "token_ids": [*SHARED, *ids], "reply_ids": list(begun)}
    for k, ids, begun in zip("abc", ([60], [61, 62, 63], [64]), BEGUN, strict=True)
]


def said(lm, prompt, most):
    """Plain generation behind prompt and beginning, one at a time."""
    ids = [*prompt["token_ids"], *prompt["reply_ids"]]
    out = lm._module.generate(
        torch.tensor([ids]), max_new_tokens=most, do_sample=False, pad_token_id=0, eos_token_id=2
    )[0, len(ids) :].tolist()
    return [*prompt["reply_ids"], *(out[: out.index(2)] if 2 in out else out)]


def run(prompts=PROMPTS, edits=(), lm=None, **options):
    options = {"max_new_tokens": 5, "prefill": True, "batch_size": 2, "progress": False, **options}
    return et.generate(lm or loaded(), prompts, list(edits), **options)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_replies_go_on_behind_what_they_were_begun_with(name):
    lm = loaded(name)
    rows = run(lm=lm)
    assert [r["token_ids"] for r in rows] == [said(lm, p, 5) for p in PROMPTS]
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert (row["meta"]["prefill"], row["meta"]["prompt_length"]) == (
            len(prompt["reply_ids"]), len(prompt["token_ids"])
        )  # fmt: skip
        assert row["gen_text"] == lm.sites.encoder.decode(row["token_ids"])
    whole = run(prefill=False, lm=lm)
    assert [r["token_ids"] for r in whole] != [r["token_ids"] for r in rows]
    assert "prefill" not in whole[0]["meta"]


def test_to_edits_the_beginning_is_generated():
    """What the model would have said itself under an edit, given as the beginning, changes nothing."""
    edits = [et.Add("resid_post", layers=[0, 2], vector=VECTOR, strength=4.0, scale="rms", positions="generated")]
    whole = run(edits=edits, prefill=False, max_new_tokens=8)
    begun = [{**p, "reply_ids": r["token_ids"][:3]} for p, r in zip(PROMPTS, whole, strict=True)]
    assert all(len(r["token_ids"]) > 3 for r in whole)
    assert [r["token_ids"] for r in run(begun, edits)] == [r["token_ids"] for r in whole]
    assert [r["token_ids"] for r in run(begun)] != [r["token_ids"] for r in whole], "the edit changes nothing"


def test_rows_of_another_beginning_are_refused(tmp_path):
    out = tmp_path / "rows.jsonl"
    rows = run(out=out)
    assert run(out=out) == rows
    other = [{**PROMPTS[0], "reply_ids": [9, 9]}, *PROMPTS[1:]]
    for prompts, options in ((other, {}), (PROMPTS, {"prefill": False})):
        with pytest.raises(EmotraceError, match=r"row '[abc]' \(none\).*prompt: '\w{16}' there, '\w{16}' now"):
            run(prompts, out=out, **options)
    assert [json.loads(line)["key"] for line in out.read_text().splitlines()].count("a") == 1


@pytest.mark.parametrize(
    ("begun", "words"),
    [([], "1 of 3 prompts carry no reply_ids to begin with .*'a'"), ([5, 2], "'a' begins its reply with 2, the token")],
)
def test_what_cannot_be_begun_is_refused(begun, words):
    with pytest.raises(EmotraceError, match=words):
        run([{**PROMPTS[0], "reply_ids": begun}, *PROMPTS[1:]])
