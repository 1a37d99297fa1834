"""Dose response on a tiny model: paired arms, KL against scoring, calibration, resuming."""

import shutil

import numpy as np
import pytest

import emotrace as et
from emotrace import dose, edits, replies, scoring
from emotrace.labels import EmotraceError
from tests.edits.test_mixtures import vectors
from tests.helpers import loaded

PROMPTS = et.datasets.Prompts.of([{"key": f"p{i}", "text": f"say {i}{'!' * i}"} for i in range(3)])


class Words:
    """A blind judge that looks for one letter."""

    name = "words"

    def judge(self, texts, *, progress=False):
        return [
            {"predicted": "anger" if "a" in t else "neutral", "judge": self.name, "reason": "letter"} for t in texts
        ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    lm = loaded()
    out = tmp_path_factory.mktemp("dose") / "d"
    found = dose.dose_response(
        lm, PROMPTS, vectors(lm), Words(), doses=(1, -1), decoding={"max_new_tokens": 6}, out=out, progress=False
    )
    return found, out


def test_arms_are_paired_and_dose_zero_is_the_model_itself(rows):
    found, _ = rows
    lm = loaded()
    assert sorted({r["dose"] for r in found}) == [-1, 0, 1]
    for d in (-1, 0, 1):
        assert [(r["prompt"], r["emotion"]) for r in found if r["dose"] == d] == [
            (p, e) for p in PROMPTS.keys for e in ("anger", "fear", "joy")
        ]
    plain = {r["key"]: r["token_ids"] for r in et.generate(lm, PROMPTS, max_new_tokens=6, progress=False)}
    assert all(r["token_ids"] == plain[r["prompt"]] for r in found if r["dose"] == 0)
    up = edits.mixture(vectors(lm), "fear=1", strength=-1)
    alone = et.generate(lm, PROMPTS, up, max_new_tokens=6, progress=False)
    mine = [r["token_ids"] for r in found if r["dose"] == -1 and r["emotion"] == "fear"]
    assert mine == [r["token_ids"] for r in alone]


def test_kl_is_along_the_base_replies(rows):
    found, _ = rows
    lm = loaded()
    base = et.generate(lm, PROMPTS, max_new_tokens=6, progress=False)
    forced = PROMPTS.with_replies([r for r in base if r["token_ids"]])
    wanted = dict(zip(forced.keys, scoring.kl(lm, forced, edits.mixture(vectors(lm), "joy=1")), strict=True))
    for r in found:
        if r["dose"] == 0:
            assert r["meta"].get("kl", 0.0) == 0.0
        if r["dose"] == 1 and r["emotion"] == "joy" and r["prompt"] in wanted:
            assert r["meta"]["kl"] == pytest.approx(wanted[r["prompt"]], rel=1e-4)


def test_the_table_comes_out_of_the_rows(rows):
    found, _ = rows
    zero = [r for r in found if r["dose"] == 0 and r["emotion"] == "joy"]
    bounds = dose.fluency_of(loaded(), PROMPTS, zero, progress=False)
    lengths = sorted(len(r["token_ids"]) for r in zero)
    assert lengths[0] <= bounds["length"][0] <= bounds["length"][1] <= lengths[-1]
    known = [r["meta"]["perplexity"] for r in zero if r["meta"]["perplexity"] is not None]
    np.testing.assert_allclose(bounds["perplexity"], np.percentile(known, [1, 99]), rtol=1e-6)
    table = replies.dose_table(found, bounds=bounds)
    assert len(table) == 3 * 4
    hits = [r["verdict"]["match"] for r in found if r["dose"] == 1 and r["emotion"] == "anger"]
    line = table[(table["dose"] == 1) & (table["emotion"] == "anger")].iloc[0]
    assert line["on_target"] == np.mean(hits)
    assert all(r["verdict"]["match"] == int("a" in r["gen_text"]) for r in found if r["emotion"] == "anger")


def test_again_it_generates_nothing(rows, monkeypatch):
    found, out = rows
    lm = loaded()
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    again = dose.dose_response(
        lm, PROMPTS, vectors(lm), Words(), doses=(1, -1), decoding={"max_new_tokens": 6}, out=out, progress=False
    )
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert [r["gen_text"] for r in again] == [r["gen_text"] for r in found]
    with pytest.raises(EmotraceError, match=r"edits: .* there, .* now"):
        dose.dose_response(
            lm,
            PROMPTS,
            vectors(lm, seed=5),
            Words(),
            doses=(1,),
            decoding={"max_new_tokens": 6},
            out=out,
            progress=False,
        )


def test_replies_verdicts_and_scores_of_others_are_refused(rows, tmp_path):
    lm, out = loaded(), tmp_path / "d"
    shutil.copytree(rows[1], out)

    class Other(Words):
        identity = {"letter": "b"}  # noqa: RUF012

    def run(prompts, judge):
        options = {"decoding": {"max_new_tokens": 6}, "out": out, "progress": False}
        return dose.dose_response(lm, prompts, vectors(lm), judge, doses=(1, -1), **options)

    other = [{"key": p.key, "text": f"{p.text}?"} for p in PROMPTS]
    with pytest.raises(EmotraceError, match=r"base\.jsonl: row 'p\d' .*prompt: "):
        run(other, Words())
    with pytest.raises(EmotraceError, match=r"dose_-1\.verdicts\.jsonl: row .*judge_settings: "):
        run(PROMPTS, Other())
    for file in out.glob("*.jsonl"):
        if not file.name.endswith(".scores.jsonl"):
            file.unlink()  # replies of now, scores of before
    found = run(other, Words())
    assert [r["meta"] for r in found] == [r["meta"] for r in run(other, Words())]  # kept, beside those of before
    shutil.rmtree(out)
    fresh = run(other, Words())
    for name in ("perplexity", "kl"):
        np.testing.assert_array_equal(*([r["meta"].get(name) for r in some] for some in (found, fresh)))
    (out / "dose_1.scores.jsonl").write_text(
        '{"key": "p0__anger", "perplexity": 1.0, "made": {}}\n'
    )  # of an earlier version
    with pytest.raises(EmotraceError, match=r"dose_1\.scores\.jsonl: a row has no field 'score'"):
        run(other, Words())
    assert dose._name(0.1234567) != dose._name(0.1234568)
    assert dose._name(-1.0) == "dose_-1"


@pytest.mark.parametrize("scale", ["raw", "share"])
def test_strength_at_a_given_kl(scale):
    lm = loaded()
    base = et.generate(lm, PROMPTS, max_new_tokens=6, progress=False)
    forced = PROMPTS.with_replies(base)
    found = dose.strength_at_kl(lm, forced, vectors(lm), "anger=1,joy=-1", 0.2, start=0.1, scale=scale)
    assert found["reached"]
    at = edits.mixture(vectors(lm), "anger=1,joy=-1", strength=found["strength"], scale=scale)
    assert np.nanmean(scoring.kl(lm, forced, at)) == pytest.approx(0.2, rel=0.021)


def test_dose_refuses():
    lm = loaded()
    with pytest.raises(EmotraceError, match=r"nan.*a finite number"):
        dose.dose_response(lm, PROMPTS, vectors(lm), Words(), doses=(float("nan"),))
    with pytest.raises(EmotraceError, match="there are no replies"):
        dose.fluency_of(lm, PROMPTS, [])
    pair = [{"key": str(i), "prompt": "p1", "token_ids": ids} for i, ids in enumerate(([30, 31], [40, 41, 42]))]
    again = [{**row, "key": "0"} for row in pair]  # of two draws, say
    assert dose.fluency_of(lm, PROMPTS, again, progress=False) == dose.fluency_of(lm, PROMPTS, pair, progress=False)
    with pytest.raises(EmotraceError, match="no plain prompt 'q'"):
        dose.fluency_of(lm, PROMPTS, [{"key": "a", "prompt": "q", "token_ids": [1]}])
