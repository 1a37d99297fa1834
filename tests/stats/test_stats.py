from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import stats
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


# ---- intervals


def literal_bootstrap(values, clusters, n, seed, level=0.95):
    names = sorted(set(clusters))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)
    means = []
    for draw in draws:
        sample = []
        for name, times in zip(names, draw, strict=True):
            sample += [v for v, c in zip(values, clusters, strict=True) if c == name] * times
        means.append(np.mean(sample))
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def test_bootstrap_equals_its_literal_twin():
    rng = np.random.default_rng(3)
    values = rng.normal(size=50)
    clusters = rng.choice(list("abcdefg"), size=50)
    assert stats.bootstrap_ci(values, clusters, 300, 5) == pytest.approx(literal_bootstrap(values, clusters, 300, 5))


def test_bootstrap_columns_equal_single_calls():
    rng = np.random.default_rng(0)
    values, clusters = rng.random((30, 2, 3)), np.repeat(np.arange(10), 3)
    lo, hi = stats.bootstrap_ci(values, clusters, 200)
    assert lo.shape == hi.shape == (2, 3)
    assert (lo[1, 2], hi[1, 2]) == pytest.approx(stats.bootstrap_ci(values[:, 1, 2], clusters, 200))


def test_clusters_widen_the_interval():
    per_cluster = np.random.default_rng(0).normal(size=20)
    values = np.repeat(per_cluster, 20)
    lo, hi = stats.bootstrap_ci(values, np.repeat(np.arange(20), 20))
    lo_rows, hi_rows = stats.bootstrap_ci(values, np.arange(400))
    assert hi - lo > 3 * (hi_rows - lo_rows)


def test_bootstrap_covers():
    rng = np.random.default_rng(1)
    inside = 0
    for i in range(200):
        values = np.repeat(rng.normal(size=40), 3) + rng.normal(size=120)
        lo, hi = stats.bootstrap_ci(values, np.repeat(np.arange(40), 3), 300, i)
        inside += lo <= 0 <= hi
    assert 178 <= inside <= 199


def test_zero_width_becomes_wilson_over_clusters():
    lo, hi = stats.bootstrap_ci(np.ones(60), np.repeat(np.arange(20), 3), shares=True)
    assert (lo, hi) == stats.wilson(20, 20)
    assert lo == pytest.approx(20 / (20 + 1.959964**2))
    assert hi == 1.0
    assert stats.bootstrap_ci([1, 0, 1, 0], [0, 0, 1, 1], shares=True) == stats.wilson(1, 2)  # both clusters half right
    for value in (0.0, 0.5, 1.0, 1.5, 2.5, -0.5):  # what is no share has no width, wherever it lies
        assert stats.bootstrap_ci(np.full(6, value), np.arange(6)) == (value, value)
    table = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 0]])  # each column as alone
    lo, hi = stats.bootstrap_ci(table, range(4), 200, shares=True)
    alone = [stats.bootstrap_ci(column, range(4), 200, shares=True) for column in table.T]
    assert list(zip(lo.tolist(), hi.tolist(), strict=True)) == alone
    with pytest.raises(EmotraceError, match=r"values from 0 to 2; shares lie in 0 … 1"):
        stats.bootstrap_ci([0, 2], [0, 1], shares=True)


def test_wilson_known_value():
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert stats.wilson(0, 20)[0] == 0.0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: stats.bootstrap_ci([], []), "cluster"),
        (lambda: stats.bootstrap_ci([1.0, 2.0], [0]), "cluster"),
        (lambda: stats.bootstrap_ci([1.0, math.nan], [0, 1]), "finite"),
        (lambda: stats.bootstrap_ci([1.0], [0], level=95), "0.95"),
        (lambda: stats.wilson(3, 2), "successes"),
        (lambda: stats.fdr_bh([0.1, 1.2]), "p-value"),
        (lambda: stats.accuracy_table([]), "no rows"),
        (lambda: stats.accuracy_table([row(0, match=2)]), "match"),
        (lambda: stats.accuracy_table([{k: v for k, v in row(0).items() if k != "valence"}]), "valence"),
        (lambda: stats.confusion([row(0, predicted="angre")]), "angre"),
        (lambda: stats.paired_test([row(0)], [row(1)]), "judged in both"),
        (lambda: stats.fluency_bounds([]), "perplexity"),
        (lambda: stats.fluency_bounds([row(0, meta={"length": 3})]), "s_00__positive__anger"),
        (lambda: stats.is_fluent(row(0, meta={}), {"length": [0, 1]}), "fluency_bounds"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call()


def test_fdr_by_hand():
    assert stats.fdr_bh([[0.01, 0.04], [0.03, 0.5]]) == pytest.approx(np.array([[0.04, 0.16 / 3], [0.16 / 3, 0.5]]))


# ---- accuracy


def test_accuracy_leaves_by_hand():
    rows = [row(0), row(1), row(2, match=0), row(3, match=None), row(4, "fear", "negative", match=0)]
    table = stats.accuracy_table(rows)
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
    leaf = stats.accuracy_table([row(0, match=None), {**row(1), "verdict": None}])["overall"]
    assert leaf == {"value": None, "n": 0, "n_unjudged": 2, "ci95": [None, None], "worst_case": 0.0}


def test_order_of_rows_does_not_matter():
    rows = design(0.8)
    assert stats.accuracy_table(rows) == stats.accuracy_table(rows[::-1])
    assert list(stats.accuracy_table(rows[::-1])["by_emotion"]) == list(EMOTIONS)


def test_fluency_only_takes_away():
    good, bad = {"perplexity": 5, "length": 20, "repetition": 0}, {"perplexity": 500, "length": 20, "repetition": 0}
    bounds = {"perplexity": [2, 9], "length": [10, 30], "repetition": [0, 0.1]}
    rows = [row(0, meta=good), row(1, meta=bad), row(2, match=0, meta=good), row(3, match=None, meta=bad)]
    assert stats.accuracy_table(rows)["overall"]["value"] == pytest.approx(2 / 3)
    leaf = stats.accuracy_table(rows, bounds=bounds)["overall"]
    assert (leaf["value"], leaf["n_unjudged"]) == (pytest.approx(1 / 3), 1)


def test_paired_test_finds_and_signs():
    a, b = design(0.9, seed=1), design(0.6, seed=2)
    ab, ba = stats.paired_test(a, b), stats.paired_test(b, a)
    assert ab["value"] == pytest.approx(-ba["value"])
    assert 0.2 < ab["ci95"][0] < ab["value"] < ab["ci95"][1] < 0.4
    assert (ab["p"] < 0.001, ab["n"], ab["n_clusters"]) == (True, 720, 40)


def test_paired_p_is_uniform_without_a_difference():
    p = [
        stats.paired_test(design(0.5, 8, 2 * i), design(0.5, 8, 2 * i + 1), n=2, permutations=200)["p"]
        for i in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65


def test_paired_p_equals_all_sign_patterns():
    a = [row(0), row(1), row(2, match=0), row(3)]
    b = [row(0, match=0), row(1, match=0), row(2), row(3, match=0)]
    d = np.array([1, 1, -1, 1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1)
    exact = (np.abs(signs.T @ d) >= abs(d.sum())).mean()
    assert stats.paired_test(a, b)["p"] == pytest.approx(exact, abs=0.02)


def test_paired_without_any_difference_still_doubts():
    same = stats.paired_test(design(0.5, 10), design(0.5, 10))
    lo, hi = same["ci95"]
    assert same["value"] == 0
    assert same["p"] == 1
    assert lo == -hi == pytest.approx(-stats.wilson(0, 10)[1])


def test_paired_leaves_out_unjudged():
    found = stats.paired_test([row(0), row(1), row(2, match=None)], [row(0), row(1, match=0), row(2)])
    assert (found["n"], found["n_unpaired"], found["value"]) == (2, 1, 0.5)


def test_confusion_counts_every_row():
    rows = [row(0), row(1, predicted="joy"), row(2, predicted=None), row(3, "fear", predicted="neutral")]
    table = stats.confusion(rows)
    assert list(table.columns) == [*ANSWERS, "unjudged"]
    assert list(table.index) == ["anger", "fear"]
    assert table.loc["anger", ["anger", "happiness", "unjudged"]].tolist() == [1, 1, 1]
    assert table.loc["fear", "neutral"] == 1
    assert table.to_numpy().sum() == 4


# ---- fluency


def test_repetition_by_hand():
    assert stats.repetition([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(2 / 5)
    assert stats.repetition([1, 2]) == 0.0


@given(st.lists(st.integers(0, 3), max_size=30))
def test_repetition_is_a_share(ids):
    assert 0 <= stats.repetition(ids) < 1
    assert stats.repetition(ids + ids + ids) >= stats.repetition(ids)


def test_fluency_bounds_hold_98_percent():
    rng = np.random.default_rng(0)
    metas = [
        {"perplexity": float(p), "length": int(n), "repetition": 0.0}
        for p, n in zip(rng.lognormal(size=1000), rng.integers(10, 40, 1000), strict=True)
    ]
    metas[0]["perplexity"] = None
    rows = [row(i, meta=m) for i, m in enumerate(metas)]
    bounds = json.loads(json.dumps(stats.fluency_bounds(rows)))
    share = np.mean([stats.is_fluent(r, bounds) for r in rows])
    assert 0.95 < share < 0.99
    assert not stats.is_fluent(rows[0], bounds)
    assert not stats.is_fluent(row(0, meta={"perplexity": 1.0, "length": 20, "repetition": 0.4}), bounds)


# ---- published


def test_published_accuracy(oracles):
    """Specification §9, row 1."""
    published = oracles.json("emotion_circuits/labeled_sev/accuracy_stats.json")
    rows = [r for part in ("accepted", "rejected") for r in oracles.jsonl(f"emotion_circuits/labeled_sev/{part}.jsonl")]
    table = stats.accuracy_table(rows, "judge")
    for mine, theirs in [
        (table["overall"], {**published["overall"], "total": published["overall"]["total_samples"]}),
        *[(table["by_emotion"][e], published["by_emotion"][e]) for e in EMOTIONS],
        *[(table["by_valence"][v], published["by_valence"][v]) for v in VALENCES],
    ]:
        assert (mine["n"], round(mine["value"] * mine["n"])) == (theirs["total"], theirs["accepted"])
        assert round(100 * mine["value"], 2) == theirs["accuracy"]
        assert mine["ci95"][0] < mine["ci95"][1]
        assert mine["ci95"][0] <= mine["value"] <= mine["ci95"][1]
