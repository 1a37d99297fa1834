"""The paired test: whole clusters, draws averaged, and what it refuses."""

import itertools

import numpy as np
import pytest

from emotrace import replies, stats
from emotrace.labels import EmotraceError


def rows(matches, method=None, cluster_of=lambda i: f"s{i}"):
    return [
        {"key": f"k{i}", "skeleton_id": cluster_of(i), "draw": 0, "verdict": None if m is None else {"match": m}}
        for i, m in enumerate(matches)
    ]


def test_skeletons_are_flipped_as_a_whole():
    a, b = rows([1] * 12, cluster_of=lambda i: i // 4), rows([0] * 12, cluster_of=lambda i: i // 4)
    found = replies.paired_test(a, b)
    assert (found["p"], found["n"], found["n_clusters"], found["exact"]) == (2 / 2**3, 12, 3, True)
    assert replies.paired_test(a, b, "key")["p"] == pytest.approx(2 / 2**12)
    assert found["value"] == 1.0
    assert found["ci95"] == [stats.wilson(3, 3)[0], 1.0]


def test_sums_over_clusters_by_hand():
    a = rows([1, 1, 0, 1, None, 1], cluster_of=lambda i: "abcabc"[i])
    b = rows([0, 1, 1, 0, 1], cluster_of=lambda i: "abcabc"[i])
    found = replies.paired_test(a, b)  # a: +2, b: 0, c: −1
    assert (found["value"], found["n"], found["n_clusters"], found["n_unpaired"]) == (0.25, 4, 3, 2)
    assert found["p"] == 1.0
    back = replies.paired_test(b, a)
    assert back["value"] == -found["value"]
    assert back["ci95"] == pytest.approx([-found["ci95"][1], -found["ci95"][0]], abs=0.02)


def test_draws_are_averaged_and_fluency_only_takes_away():
    meta = {"perplexity": 5.0, "length": 20, "repetition": 0.0}
    bounds = {"perplexity": [1, 9], "length": [1, 30], "repetition": [0, 1]}
    a = [{**r, "meta": meta} for r in rows([1, 1])] + [{**r, "meta": meta, "draw": 1} for r in rows([0, 1])]
    b = [{**r, "meta": meta | {"perplexity": 50.0}} for r in rows([1, 0])]
    assert replies.paired_test(a, b)["value"] == pytest.approx((-0.5 + 1) / 2)
    assert replies.paired_test(a, b, bounds=bounds)["value"] == pytest.approx((0.5 + 1) / 2)


def test_refusals():
    with pytest.raises(EmotraceError, match="none of 1 and 1 keys"):
        replies.paired_test(rows([1]), rows([None]))
    with pytest.raises(EmotraceError, match="'k0' has another skeleton_id"):
        replies.paired_test(rows([1]), rows([1], cluster_of=lambda i: "other"))
    with pytest.raises(EmotraceError, match="no 'theme'"):
        replies.paired_test(rows([1]), rows([1]), "theme")
    with pytest.raises(EmotraceError, match="match"):
        replies.paired_test(rows([1]), rows([2]))


def fluent_rows(shares, n, seed):
    """Per skeleton n replies, of which a share is fluent; of the fluent ones another share matches."""
    rng = np.random.default_rng(seed)
    return [
        {"key": f"s{c}__{i}", "skeleton_id": f"s{c}", "emotion": "fear", "valence": "neutral", "meta": {"fluent": fluent},
         "verdict": {"match": int(fluent and rng.random() < shares[1])}}
        for c in range(10) for i in range(n) for fluent in [bool(rng.random() < shares[0])]
    ]  # fmt: skip


def test_among_fluent_replies_shares_are_compared_whichever_prompts_they_reply_to():
    a, b = fluent_rows((0.3, 0.9), 12, 1), fluent_rows((0.6, 0.4), 12, 2)
    found = replies.fluent_test(a, b)
    share = [[r["verdict"]["match"] for r in rows if r["meta"]["fluent"]] for rows in (a, b)]
    assert found["value"] == pytest.approx(np.mean(share[0]) - np.mean(share[1]))
    assert found["n"] == sum(map(len, share))
    assert found["ci95"][0] < found["value"] < found["ci95"][1]
    # every pattern of exchanged skeletons, one by one
    names = sorted({r["skeleton_id"] for r in a})
    more = 0
    for pattern in itertools.product((0, 1), repeat=len(names)):
        mine, theirs = [], []
        for swap, name in zip(pattern, names, strict=True):
            parts = [
                [r["verdict"]["match"] for r in rows if r["meta"]["fluent"] and r["skeleton_id"] == name]
                for rows in (a, b)
            ]
            mine += parts[swap]
            theirs += parts[1 - swap]
        more += abs(np.mean(mine) - np.mean(theirs)) >= abs(found["value"]) - 1e-9
    assert found["p"] == more / 2 ** len(names)
    table = replies.accuracy_table(a, given_fluent=True)["overall"]
    assert (table["value"], table["n"]) == (pytest.approx(np.mean(share[0])), len(share[0]))
    none = [{**r, "meta": {"fluent": False}} for r in a]
    assert replies.accuracy_table(none, given_fluent=True)["overall"]["value"] is None
    with pytest.raises(EmotraceError, match=r"0 and .* fluent replies were judged"):
        replies.fluent_test(none, b)


def test_of_two_arms_that_do_the_same_few_are_found_apart():
    """At a nominal .1: of 100 pairs no more than chance allows (P < .001 for 20)."""
    p = [
        replies.fluent_test(fluent_rows((0.5, 0.5), 4, i), fluent_rows((0.5, 0.5), 4, i + 500), n=50)["p"]
        for i in range(100)
    ]
    assert (np.array(p) < 0.1).sum() < 20
    assert replies.fluent_test(fluent_rows((0.5, 0.5), 4, 0), fluent_rows((0.5, 0.5), 4, 0))["p"] == 1
