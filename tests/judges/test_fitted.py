"""Judges made from labelled rows: what they learn, what their card says, and what may not be told them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import emotrace as et
from emotrace import judges
from emotrace.judges import features, fitted
from emotrace.labels import EmotraceError
from emotrace.testing import tiny

WORDS = {"Wut": "furious rage shout", "Freude": "lovely smile sunny", "Stolz": "proud medal won"}


def rows(n: int = 12, seed: int = 0, noise: float = 0.0) -> list[dict[str, str]]:
    """Texts of three moods, two to a scene; ``noise`` is the share whose label is drawn."""
    rng = random.Random(seed)
    out = []
    for i in range(n):
        for mood, words in WORDS.items():
            for _ in range(2):
                text = " ".join(rng.sample([*words.split(), "the", "day", "was", "here", f"w{rng.randrange(30)}"], 6))
                label = rng.choice(list(WORDS)) if rng.random() < noise else mood
                out.append({"text": text, "mood": label, "scene": f"s{i}"})
    return out


@pytest.fixture(scope="module")
def judge() -> judges.FittedJudge:
    return judges.fit(rows(), "mood", name="moods", groups="scene")


def test_it_names_labels_of_ones_own_and_leaves_what_it_does_not_know(judge: judges.FittedJudge) -> None:
    found = judge.judge(["What a lovely smile!", "proud of the medal", "zyx", " "])
    assert [v["predicted"] for v in found] == ["Freude", "Stolz", None, None]
    assert [v["reason"] for v in found[2:]] == [fitted.UNKNOWN, "empty text"]
    assert {v["judge"] for v in found} == {"fitted:moods"}
    assert judge.choices == ("Freude", "Stolz", "Wut")
    done = judges.judge_rows([{"key": "a", "gen_text": "furious rage", "emotion": "Wut"}], judge, progress=False)
    assert done[0]["verdict"]["match"] == 1
    with pytest.raises(EmotraceError, match="no name for the emotion"):
        judges.judge_rows([{"key": "a", "gen_text": "x", "emotion": "anger"}], judge, progress=False)


@pytest.mark.parametrize("moods", [tuple(WORDS), ("Wut", "Freude")])
def test_its_probabilities_are_those_of_scikit_learn(moods: tuple[str, ...]) -> None:
    some = [row for row in rows(noise=0.2) if row["mood"] in moods]
    mine = judges.fit(some, "mood", name="moods")
    texts, labels = [r["text"] for r in some], [r["mood"] for r in some]
    regression = LogisticRegression(C=10.0, class_weight="balanced", max_iter=5000)
    theirs = make_pipeline(features.vectorizer((1, 2), least=2), regression).fit(texts, labels)
    np.testing.assert_allclose(mine.probabilities(texts), theirs.predict_proba(texts), atol=1e-9)


def test_it_is_read_as_it_was_written(judge: judges.FittedJudge, tmp_path) -> None:
    tested = judge.test(rows(5, seed=9), "mood", on="other texts")
    path = tested.save(tmp_path / "judge")
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".safetensors"]
    same = judges.make(f"fitted:{path.parent}")
    assert (same.depends_on, same.tested, same.name) == (judge.depends_on, tested.tested, judge.name)
    texts = [row["text"] for row in rows(4, seed=3)]
    assert same.judge(texts) == judge.judge(texts)
    assert judges.fit(rows(), "mood", name="moods", groups="scene").depends_on == judge.depends_on
    assert judges.fit(rows(), "mood", name="moods", ngrams=(1, 1)).depends_on != judge.depends_on
    path.write_text(path.read_text().replace("Wut", "Mut"))
    with pytest.raises(EmotraceError, match="damaged"):
        judges.load_judge(path.parent)


def test_labels_drawn_by_lot_are_not_learnt_and_rows_that_belong_together_teach_nothing() -> None:
    rng = random.Random(1)
    lot = [{"text": f"a{i % 40} b{i % 40} the day", "mood": rng.choice("xy")} for i in range(40)]
    twice = [{**row, "text": f"{row['text']} {copy}", "scene": str(i)} for i, row in enumerate(lot) for copy in "qr"]
    apart, together = (
        judges.fit(twice, "mood", name="lot", groups=groups, least=1).card["cross_validated"]
        for groups in (None, "scene")
    )
    assert apart["accuracy"][0] > 0.9  # the copy of a text gives its label away
    assert together["accuracy"][1] < 0.5 < together["accuracy"][2]
    assert judges.fit([*lot, *lot], "mood", name="lot").card["n_groups"] == 40


def test_its_card_says_how_often_it_is_right_and_how_sure(judge: judges.FittedJudge) -> None:
    card = judges.fit(rows(20, noise=0.4), "mood", name="moods").card
    crossed = card["cross_validated"]
    assert 0.5 < crossed["macro_f1"][0] < 0.95
    assert crossed["accuracy"][1] < crossed["accuracy"][0] < crossed["accuracy"][2]
    assert sum(n for row in crossed["confusion"].values() for n in row.values()) == card["n"] == 120
    assert set(crossed["recall"]) == set(WORDS)
    bins = crossed["calibration"]["bins"]
    assert sum(b["n"] for b in bins) == 120
    by_hand = sum(b["n"] * abs(b["right"] - b["probability"]) for b in bins) / 120
    assert crossed["calibration"]["expected_error"] == pytest.approx(by_hand)
    assert judge.card["n_groups"] == 12


def test_a_claim_may_rest_on_it_only_if_it_was_right_on_rows_it_had_not_seen(judge: judges.FittedJudge) -> None:
    assert not judges.standing(judge).may_claim
    good = judge.test(rows(6, seed=5), "mood", on="others", groups="scene")
    assert judges.standing(good).may_claim
    assert "100.0% of 36 others" in judges.standing(good).why
    bad = good.test(rows(10, seed=6, noise=1.0), "mood", on="labels by lot")
    assert not judges.standing(bad).may_claim
    with pytest.raises(EmotraceError, match="among those that it was made from"):
        judge.test(rows(1), "mood", on="the same")


@pytest.mark.parametrize(
    ("change", "options", "word"),
    [
        (lambda r: [], {}, "no labelled rows"),
        (lambda r: r[:2], {}, "one value"),
        (lambda r: r[:12], {}, "'Freude' is in 4 groups"),
        (lambda r: [{**r[0], "mood": None}, *r], {}, "row 0: mood"),
        (lambda r: [*r, {"text": "x"}], {}, "unknown field 'mood'"),
        (lambda r: r, {"ngrams": (2, 1)}, "ngrams"),
        (lambda r: r, {"least": 10_000}, "no word is in 10000"),
        (lambda r: r, {"folds": 1}, "folds"),
    ],
)
def test_refused(change, options, word: str) -> None:
    with pytest.raises(EmotraceError, match=word):
        judges.fit(change(rows(6)), "mood", name="moods", **options)


def test_measuring_counts_what_a_judge_says() -> None:
    texts = [
        {"text": t, "emotion": e, "scene": s}
        for t, e, s in (("How dare you!", "anger", "a"), ("I am so sad.", "sadness", "a"), ("Nothing.", "joy", "b"))
    ]
    found = judges.measure_judge(judges.make("lexicon"), texts, on="three texts", groups="scene")
    assert (found.n, found.n_groups, found.accuracy.value) == (3, 2, pytest.approx(2 / 3))
    assert found.confusion["happiness"]["neutral"] == 1
    assert found.macro_f1.value == pytest.approx(2 / 3)
    assert found.recall["happiness"][:2] == (0, 0)
    assert judges.Measurement.of(found.record) == found
    assert "recall of      sadness 100.0%" in str(found)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_sentence_embeddings_of_a_local_model_may_be_what_it_weighs(family: str, tmp_path) -> None:
    """The mean over the tokens of a causal or a masked model, as they come out of a plain forward."""
    tiny.save(family, tmp_path / "model", num_hidden_layers=2)
    some = rows(6)
    mine = judges.fit(
        some, "mood", name="moods", groups="scene", ngrams=None, embeddings=tmp_path / "model", layers=[0]
    )
    assert mine.card["cross_validated"]["accuracy"][0] > 0.8
    assert mine.card["embeddings"]["layers"] == [0]
    lm = et.load(tmp_path / "model")
    text = some[0]["text"]
    ids = torch.tensor([lm.sites.encoder.ids(et.datasets.Prompts.of([text]))[0]])
    hidden = lm._module(ids, output_hidden_states=True).hidden_states[1][0].detach().double().numpy()
    own = [i for i, t in enumerate(ids[0].tolist()) if t not in lm.sites.encoder.tokenizer.all_special_ids]
    np.testing.assert_allclose(mine.features.raw([text])[0, 0], hidden[own].mean(0), atol=1e-5)
    mine.save(tmp_path / "judge")
    again = judges.load_judge(tmp_path / "judge")
    told = ["lovely smile", "proud medal won", " ", some[3]["text"]]
    np.testing.assert_allclose(again.probabilities(told), mine.probabilities(told), atol=1e-5)  # float32, other batches
    assert [v["predicted"] is None for v in again.judge(told)] == [False, False, True, False]
    assert again.depends_on == mine.depends_on
    tiny.save(family, tmp_path / "model", seed=5, num_hidden_layers=2)
    with pytest.raises(EmotraceError, match="another model is there now"):
        judges.load_judge(tmp_path / "judge").judge(["lovely smile"])
    with pytest.raises(EmotraceError, match=r"fit\(layers=\[1\]\)"):
        judges.fit(some, "mood", name="moods", layers=[1])


def test_features_stand_one_behind_the_other_and_every_set_is_measured_on_folds_it_is_not_made_from(tmp_path) -> None:
    tiny.save("gpt2", tmp_path / "model", num_hidden_layers=2)
    some = [{**row, "on": "seen at home" if i % 3 else "seen at work"} for i, row in enumerate(rows(12))]
    mine = judges.fit(
        iter(some),
        "mood",
        name="moods",
        groups="scene",
        sets="on",
        characters=(2, 3),
        embeddings=tmp_path / "model",
        layers=[1, 0],
    )
    told = [row["text"] for row in some[:9]]
    parts = [sparse.csr_matrix(part.of(told)).toarray() for part in mine.features.parts]
    np.testing.assert_array_equal(mine.features.of(told).toarray(), np.hstack(parts))
    np.testing.assert_allclose(
        [np.linalg.norm(x, axis=1) for x in parts], [[1.0] * 9, [1.0] * 9, [2**0.5] * 9], atol=1e-9
    )
    assert [m.on for m in mine.tested] == ["seen at home, 5 folds", "seen at work, 5 folds"]
    assert [m.n for m in mine.tested] == [
        sum(row["on"] == on for row in some) for on in ("seen at home", "seen at work")
    ]
    pooled = sum(m.n * m.accuracy.value for m in mine.tested) / len(some)
    assert pooled == pytest.approx(mine.card["cross_validated"]["accuracy"][0])
    assert judges.standing(mine).may_claim == (min(m.macro_f1.value for m in mine.tested) >= 0.7)
    again = judges.load_judge(mine.save(tmp_path / "judge").parent)
    np.testing.assert_allclose(again.probabilities(told), mine.probabilities(told), atol=1e-5)
    assert (again.depends_on, again.tested) == (mine.depends_on, mine.tested)
    assert not judges.fit(some, "mood", name="moods", groups="scene").tested, (
        "without sets the folds are for the card alone"
    )
    with pytest.raises(EmotraceError, match="the name of a labelled set is due"):
        judges.fit([{**row, "on": None} for row in some], "mood", name="moods", sets="on")
    with pytest.raises(EmotraceError, match="nothing to weigh"):
        judges.fit(some, "mood", name="moods", ngrams=None)


def test_a_set_weighs_as_much_as_another_however_many_rows_it_has() -> None:
    few = [
        {"text": "a dull grey day", "mood": "calm", "on": "few"},
        {"text": "a cold wet day", "mood": "glum", "on": "few"},
    ] * 6
    many = [
        {"text": "a dull grey day", "mood": "glum", "on": "many"},
        {"text": "a cold wet day", "mood": "calm", "on": "many"},
    ] * 60
    for one in (few, many):  # groups apart, so that equal texts may be in several folds
        one[:] = [{**row, "text": f"{row['text']} no {i}"} for i, row in enumerate(one)]
    p = judges.fit([*few, *many], "mood", name="days", sets="on", least=6).probabilities(["a dull grey day"])[0]
    assert abs(p[0] - 0.5) < 0.1
    assert judges.fit([*few, *many], "mood", name="days", least=6).probabilities(["a dull grey day"])[0][1] > 0.75
