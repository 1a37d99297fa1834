"""Accuracy by hand, the paired test against all sign patterns, fluency against its bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import replies, stats
from emotrace.labels import ANSWERS, EMOTIONS, VALENCES, EmotraceError


def row(i, emotion="anger", valence="positive", match=1, predicted="anger", **more):
    return {
        "key": f"s_{i:02}__{valence}__{emotion}",
        "skeleton_id": f"s_{i:02}",
        "emotion": emotion,
        "valence": valence,
        "verdict": {"match": match, "predicted": predicted},
        **more,
    }


def design(p, n=40, seed=0):
    rng = np.random.default_rng(seed)
    return [row(i, e, v, int(rng.random() < p)) for i in range(n) for e in EMOTIONS for v in VALENCES]


def test_a_share_that_the_design_fixes_has_no_interval():
    """A reply of one emotion that stands for all six matches one of them, whatever the model says."""
    said = [EMOTIONS[i % 4] for i in range(12)]
    none = [row(i, e, match=int(e == said[i]), gen_text=f"reply {i}") for i in range(12) for e in EMOTIONS]
    overall = replies.accuracy_table(none)["overall"]
    assert overall["value"] == pytest.approx(1 / 6)
    assert overall["ci95"] == pytest.approx([1 / 6, 1 / 6])
    by = replies.accuracy_table(none)["by_emotion"]["anger"]["ci95"]
    assert by[1] - by[0] > 0.2
    neutral = [
        r if r["skeleton_id"] != "s_03" else {**r, "verdict": {"match": 0, "predicted": "neutral"}} for r in none
    ]
    low, high = replies.accuracy_table(neutral)["overall"]["ci95"]
    assert low < high
    apart = [{**r, "gen_text": r["key"]} for r in none]  # as many matches, each of a reply of its own
    low, high = replies.accuracy_table(apart)["overall"]["ci95"]
    assert low < 1 / 6 < high


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: replies.accuracy_table([]), "no rows"),
        (lambda: replies.accuracy_table([row(0, match=2)]), "match"),
        (lambda: replies.accuracy_table([row(1), {k: v for k, v in row(0).items() if k != "valence"}]), "valence"),
        (lambda: replies.confusion_table([row(0, predicted="angre")]), "angre"),
        (lambda: replies.paired_test([row(0)], [row(1)]), "judged in both"),
        (lambda: replies.fluency_bounds([]), "perplexity"),
        (lambda: replies.fluency_bounds([row(0, meta={"length": 3})]), "s_00__positive__anger"),
        (lambda: replies.is_fluent(row(0, meta={}), {"length": [0, 1]}), "fluency_bounds"),
        (lambda: replies.accuracy_table([row(0), row(1), row(0)]), "two rows have key"),
        (
            lambda: replies.is_fluent(row(0), dict.fromkeys(("perplexity", "length", "repetition"), (1, 0))),
            "the lower one first",
        ),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call()


# ---- accuracy


def test_accuracy_leaves_by_hand():
    rows = [row(0), row(1), row(2, match=0), row(3, match=None), row(4, "fear", "negative", match=0)]
    table = replies.accuracy_table(rows)
    json.dumps(table, allow_nan=False)
    leaf = table["overall"]
    assert set(leaf) == {"value", "n", "n_unjudged", "ci95", "worst_case"}
    assert (leaf["value"], leaf["n"], leaf["n_unjudged"], leaf["worst_case"]) == (0.5, 4, 1, 0.4)
    assert leaf["ci95"][0] <= 0.5 <= leaf["ci95"][1]
    assert list(table["by_emotion"]) == ["anger", "fear"]
    assert table["by_emotion"]["anger"]["value"] == pytest.approx(2 / 3)
    assert table["by_emotion"]["anger"]["worst_case"] == pytest.approx(2 / 4)
    assert table["by_valence"]["negative"]["value"] == 0.0
    assert table["by_valence"]["negative"]["ci95"][1] > 0.5  # one cluster says little


def test_nothing_judged_is_no_accuracy():
    leaf = replies.accuracy_table([row(0, match=None), {**row(1), "verdict": None}])["overall"]
    assert leaf == {"value": None, "n": 0, "n_unjudged": 2, "ci95": [None, None], "worst_case": 0.0}


def test_order_of_rows_does_not_matter():
    rows = design(0.8)
    assert replies.accuracy_table(rows) == replies.accuracy_table(rows[::-1])
    assert list(replies.accuracy_table(rows[::-1])["by_emotion"]) == list(EMOTIONS)


def test_fluency_only_takes_away():
    good, bad = {"perplexity": 5, "length": 20, "repetition": 0}, {"perplexity": 500, "length": 20, "repetition": 0}
    bounds = {"perplexity": [2, 9], "length": [10, 30], "repetition": [0, 0.1]}
    rows = [row(0, meta=good), row(1, meta=bad), row(2, match=0, meta=good), row(3, match=None, meta=bad)]
    assert replies.accuracy_table(rows)["overall"]["value"] == pytest.approx(2 / 3)
    leaf = replies.accuracy_table(rows, bounds=bounds)["overall"]
    assert (leaf["value"], leaf["n_unjudged"]) == (pytest.approx(1 / 3), 1)


def test_paired_test_finds_and_signs():
    a, b = design(0.9, seed=1), design(0.6, seed=2)
    ab, ba = replies.paired_test(a, b), replies.paired_test(b, a)
    assert ab["value"] == pytest.approx(-ba["value"])
    assert 0.2 < ab["ci95"][0] < ab["value"] < ab["ci95"][1] < 0.4
    assert (ab["p"] < 0.001, ab["n"], ab["n_clusters"]) == (True, 720, 40)


def test_paired_p_is_uniform_without_a_difference():
    p = [
        replies.paired_test(design(0.5, 8, 2 * i), design(0.5, 8, 2 * i + 1), n=2, permutations=200)["p"]
        for i in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65


def test_paired_p_equals_all_sign_patterns():
    a = [row(0), row(1), row(2, match=0), row(3)]
    b = [row(0, match=0), row(1, match=0), row(2), row(3, match=0)]
    d = np.array([1, 1, -1, 1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1)
    exact = (np.abs(signs.T @ d) >= abs(d.sum())).mean()
    assert replies.paired_test(a, b)["p"] == pytest.approx(exact, abs=0.02)


def test_paired_without_any_difference_still_doubts():
    same = replies.paired_test(design(0.5, 10), design(0.5, 10))
    lo, hi = same["ci95"]
    assert same["value"] == 0
    assert same["p"] == 1
    assert lo == -hi == pytest.approx(-stats.wilson(0, 10)[1])


def test_paired_leaves_out_unjudged():
    found = replies.paired_test([row(0), row(1), row(2, match=None)], [row(0), row(1, match=0), row(2)])
    assert (found["n"], found["n_unpaired"], found["value"]) == (2, 1, 0.5)


def test_confusion_counts_every_row():
    rows = [row(0), row(1, predicted="joy"), row(2, predicted=None), row(3, "fear", predicted="neutral")]
    table = replies.confusion_table(rows)
    assert list(table.columns) == [*ANSWERS, "unjudged"]
    assert list(table.index) == ["anger", "fear"]
    assert table.loc["anger", ["anger", "happiness", "unjudged"]].tolist() == [1, 1, 1]
    assert table.loc["fear", "neutral"] == 1
    assert table.to_numpy().sum() == 4


# ---- fluency


def test_repetition_by_hand():
    assert replies.repetition([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(2 / 5)
    assert replies.repetition([1, 2]) == 0.0


@given(st.lists(st.integers(0, 3), max_size=30))
def test_repetition_is_a_share(ids):
    assert 0 <= replies.repetition(ids) < 1
    assert replies.repetition(ids + ids + ids) >= replies.repetition(ids)


def test_fluency_bounds_hold_98_percent():
    rng = np.random.default_rng(0)
    metas = [
        {"perplexity": float(p), "length": int(n), "repetition": 0.0}
        for p, n in zip(rng.lognormal(size=1000), rng.integers(10, 40, 1000), strict=True)
    ]
    metas[0]["perplexity"] = None
    rows = [row(i, meta=m) for i, m in enumerate(metas)]
    bounds = json.loads(json.dumps(replies.fluency_bounds(rows)))
    share = np.mean([replies.is_fluent(r, bounds) for r in rows])
    assert 0.95 < share < 0.99
    assert not replies.is_fluent(rows[0], bounds)
    assert not replies.is_fluent(row(0, meta={"perplexity": 1.0, "length": 20, "repetition": 0.4}), bounds)


# ---- published


def test_published_accuracy(oracles):
    """Specification §9, row 1."""
    published = oracles.json("emotion_circuits/labeled_sev/accuracy_stats.json")
    rows = [r for part in ("accepted", "rejected") for r in oracles.jsonl(f"emotion_circuits/labeled_sev/{part}.jsonl")]
    table = replies.accuracy_table(rows, "judge")
    for mine, theirs in [
        (table["overall"], {**published["overall"], "total": published["overall"]["total_samples"]}),
        *[(table["by_emotion"][e], published["by_emotion"][e]) for e in EMOTIONS],
        *[(table["by_valence"][v], published["by_valence"][v]) for v in VALENCES],
    ]:
        assert (mine["n"], round(mine["value"] * mine["n"])) == (theirs["total"], theirs["accepted"])
        assert round(100 * mine["value"], 2) == theirs["accuracy"]
        assert mine["ci95"][0] < mine["ci95"][1]
        assert mine["ci95"][0] <= mine["value"] <= mine["ci95"][1]
