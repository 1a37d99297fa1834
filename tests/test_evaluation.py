"""Evaluation on a tiny model: files by name, one reply for all emotions, measures of rows, KL along the base's own replies."""

import json

import numpy as np
import pytest

import emotrace as et
from emotrace import judges, scoring
from emotrace.datasets import Prompts
from emotrace.evaluation import Evaluation, by_key, plain_of, repeated
from emotrace.labels import EmotraceError
from emotrace.replies import Opening
from emotrace.traced import scores as leaf
from tests.edits.test_mixtures import vectors
from tests.helpers import loaded

PROMPTS = Prompts.of([{"key": f"p{i}", "text": f"say {i}{'!' * i}", "theme": f"t{i}"} for i in range(3)])
NAMES = ("fear", "joy")
AIMED = PROMPTS.for_each(emotion=NAMES)
SHORT = {"max_new_tokens": 6}


class Letters:
    """A blind judge that looks for one letter."""

    name = "letters"

    def judge(self, texts, *, progress=False):
        return [{"predicted": "fear" if "a" in t else "neutral", "judge": self.name, "reason": "letter"} for t in texts]


def evaluation(folder=None, **more):
    return Evaluation(loaded(), Letters(), folder, SHORT, progress=False, **more)


def test_replies_and_verdicts_lie_in_files_by_name_and_are_read_again(tmp_path):
    it = evaluation(tmp_path / "parts")
    rows = it.replies("up", AIMED, et.edits.mixture(vectors(it.model), "fear=1", strength=1), method="steer", draw=2)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["up.jsonl", "up.verdicts.jsonl"]
    assert [(r["key"], r["method"], r["draw"]) for r in rows] == [(key, "steer", 2) for key in AIMED.keys]
    assert all(r["verdict"]["match"] == int("a" in r["gen_text"]) for r in rows if r["emotion"] == "fear")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()}
    again = it.replies("up", AIMED, et.edits.mixture(vectors(it.model), "fear=1", strength=1), method="steer", draw=2)
    assert again == rows
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()} == before
    assert evaluation().file("up.jsonl") is None
    with pytest.raises(EmotraceError, match="'up' is to be judged, and no judge"):
        Evaluation(it.model).judged("up", rows)


def test_another_judge_says_its_own_beside_the_first(tmp_path):
    it = evaluation(tmp_path / "parts")
    rows = it.replies("none", AIMED)
    both = it.second_opinion(rows, judges.make("lexicon"))
    assert [{k: v for k, v in row.items() if k != "verdict_second"} for row in both] == rows
    assert {row["verdict_second"]["judge"] for row in both} == {"lexicon:v1"}
    assert it.second_opinion(rows, judges.make("lexicon")) == both
    with pytest.raises(EmotraceError, match="judge"):
        it.second_opinion(rows, Letters())


def test_one_reply_stands_for_all_emotions():
    base = evaluation().generated("base", PROMPTS)
    rows = repeated(base, PROMPTS, AIMED)
    assert [(r["key"], r["emotion"], r["theme"]) for r in rows] == [
        (f"p{i}__{e}", e, f"t{i}") for i in range(3) for e in NAMES
    ]
    assert [r["token_ids"] for r in rows] == [r["token_ids"] for r in base for _ in NAMES]
    rows[0]["meta"]["fluent"] = True
    assert "fluent" not in rows[1]["meta"]
    assert "fluent" not in base[0]["meta"]
    assert plain_of(PROMPTS, AIMED) == {f"p{i}__{e}": f"p{i}" for i in range(3) for e in NAMES}


def test_measured_rows_have_perplexity_after_the_plain_prompt_and_say_what_is_fluent():
    it = evaluation()
    rows = [{**r, "prompt": plain_of(PROMPTS, AIMED)[r["key"]]} for r in it.generated("x", AIMED, method="steer")]
    it.measured(rows, PROMPTS)
    wanted = scoring.perplexity(it.model, PROMPTS.with_replies(it.generated("base", PROMPTS)))
    assert [r["meta"]["perplexity"] for r in rows] == pytest.approx([v for v in wanted for _ in NAMES])
    assert all("fluent" not in r["meta"] and r["meta"]["length"] == len(r["token_ids"]) for r in rows)
    middle = float(np.median(wanted))
    bounds = {"perplexity": [0, middle], "length": [0, 99], "repetition": [0, 1]}
    it.measured(rows, PROMPTS, bounds)
    assert [r["meta"]["fluent"] for r in rows] == [v <= middle for v in wanted for _ in NAMES]
    with pytest.raises(EmotraceError, match="no plain prompt 'p2'"):
        it.measured([{**rows[-1], "meta": {}}], PROMPTS[:2])


def test_divergence_goes_along_the_replies_of_the_model_itself_and_leaves_out_empty_ones():
    it = evaluation()
    base = it.generated("base", PROMPTS)
    edits = et.edits.mixture(vectors(it.model), "joy=1", strength=1)
    found = it.divergence(AIMED, base, PROMPTS, edits)
    wanted = scoring.kl(it.model, PROMPTS.with_replies(base), edits)
    assert [found[f"p{i}__{e}"] for i in range(3) for e in NAMES] == pytest.approx(np.repeat(wanted, 2).tolist())
    assert it.divergence(AIMED, base, PROMPTS, []) == dict.fromkeys(AIMED.keys, 0.0)
    silent = [{**base[0], "token_ids": []}, *base[1:]]
    assert list(it.divergence(AIMED, silent, PROMPTS, edits)) == [f"p{i}__{e}" for i in (1, 2) for e in NAMES]
    assert it.divergence(AIMED, [{**row, "token_ids": []} for row in base], PROMPTS, edits) == {}
    assert by_key(PROMPTS)["p1"] is PROMPTS[1]


def test_scores_lie_beside_the_replies_and_are_not_computed_again(tmp_path, monkeypatch):
    it, edits = evaluation(tmp_path), et.edits.mixture(vectors(loaded()), "joy=1", strength=1)

    def scored():
        rows = [{**r, "prompt": plain_of(PROMPTS, AIMED)[r["key"]]} for r in it.generated("up", AIMED, edits)]
        measured = it.measured(rows, PROMPTS, name="up")
        return measured, it.divergence(AIMED, it.generated("base", PROMPTS), PROMPTS, edits, "up")

    first = scored()
    passes = []
    for name in ("replies", "divergences"):
        real = getattr(leaf, name)
        monkeypatch.setattr(leaf, name, lambda *a, real=real, name=name: passes.append(name) or real(*a))
    assert scored() == first
    assert passes == []
    again = it.divergence(
        AIMED, it.generated("base", PROMPTS), PROMPTS, et.edits.mixture(vectors(it.model), "joy=2"), "up"
    )
    assert passes == ["divergences"]  # other edits are another question
    assert again != first[1]
    file = tmp_path / "up.scores.jsonl"
    whole = file.read_text()
    line = json.loads(whole.splitlines()[0])
    file.write_text(whole.replace(json.dumps(line["value"]), "1.5", 1))
    with pytest.raises(EmotraceError, match=r"up\.scores\.jsonl: the perplexity under [0-9a-f]+ was changed"):
        scored()
    file.write_text(whole[:-9])  # what a kill leaves
    assert scored() == first


def test_replies_are_judged_again_from_their_third_token_on(tmp_path):
    it = evaluation(tmp_path)
    rows = it.replies("up", AIMED, method="steer")
    found = it.from_third("up", rows)
    cut = [it.model.sites.encoder.decode(row["token_ids"][2:]) for row in rows]
    assert [r["verdict_from_third"]["predicted"] for r in found] == ["fear" if "a" in t else "neutral" for t in cut]
    assert [{k: v for k, v in r.items() if k != "verdict_from_third"} for r in found] == rows
    assert (tmp_path / "up.third.verdicts.jsonl").exists()


def test_begun_replies_begin_as_their_label_does_and_are_no_longer_than_others(tmp_path):
    openings = {e: Opening(ids, 1.0, 1, True) for e, ids in (("fear", (40, 41)), ("joy", (50, 51)))}
    rows = evaluation(tmp_path).begun("prefill_2", AIMED, openings, method="prefill_2")
    assert all(row["token_ids"][:2] == list(openings[row["emotion"]].token_ids) for row in rows)
    assert max(len(row["token_ids"]) for row in rows) == SHORT["max_new_tokens"]
    assert {(row["method"], row["meta"]["prefill"], row["meta"]["edits"]) for row in rows} == {("prefill_2", 2, "none")}
    assert all(row["verdict"]["match"] in (0, 1) for row in rows)
