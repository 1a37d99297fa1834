"""The paired test: whole clusters, draws averaged, and what it refuses."""

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
