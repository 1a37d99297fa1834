"""The tables of a report: maxima over draws, fluent matches, lifts, the published table."""

import numpy as np
import pytest

from emotrace import replies
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError


def rows(hits, method="steer", draw=0, **meta):
    """One row per (skeleton, valence, emotion) of four skeletons; the first ``hits`` of them match."""
    out = []
    for s in range(4):
        for v in VALENCES:
            for e in EMOTIONS:
                n = len(out)
                match = int(n < hits)
                said = e if match else EMOTIONS[(EMOTIONS.index(e) + 1) % 6]
                out.append(
                    {"key": f"s{s}__{v}__{e}", "method": method, "draw": draw, "skeleton_id": f"s{s}", "valence": v}
                    | {"emotion": e, "gen_text": "x", "token_ids": [1, 2, 3, 4]}
                    | {"verdict": {"predicted": said, "match": match, "judge": "j", "reason": ""}}
                    | {"meta": {"perplexity": 5.0, "repetition": 0.0, "length": 4, "fluent": True, **meta}}
                )  # fmt: skip
    return out


def test_accuracy_of_one_draw_is_the_table_of_its_rows():
    found = replies.accuracy_over_draws(rows(18))
    assert found == replies.accuracy_table(rows(18))
    assert found["overall"]["value"] == 18 / 72
    no_draw = [{k: v for k, v in r.items() if k != "draw"} for r in rows(18)]
    assert replies.accuracy_over_draws(no_draw) == found


def test_accuracy_over_draws_is_the_maximum_with_mean_and_draws():
    found = replies.accuracy_over_draws([*rows(9, draw=0), *rows(36, draw=1), *rows(18, draw=2)])
    overall = found["overall"]
    assert overall["value"] == 0.5
    assert overall["draws"] == [9 / 72, 0.5, 0.25]
    assert overall["mean"] == pytest.approx(np.mean(overall["draws"]))
    assert overall["n"] == 72
    best = replies.accuracy_table(rows(36))["overall"]
    assert overall["ci95"] == best["ci95"]
    for part, names in (("by_emotion", EMOTIONS), ("by_valence", VALENCES)):
        assert set(found[part]) == set(names)
        for leaf in found[part].values():
            assert leaf["value"] == max(leaf["draws"])
            assert leaf["mean"] == pytest.approx(np.mean(leaf["draws"]))


def test_of_random_ablations_the_most_destructive_draw_counts():
    drawn = [{**r, "method": "random_ablate"} for d, n in enumerate((36, 9, 18)) for r in rows(n, draw=d)]
    overall = replies.accuracy_over_draws(drawn)["overall"]
    assert (overall["value"], overall["draws"]) == (9 / 72, [0.5, 9 / 72, 0.25])


def test_a_leaf_takes_its_maximum_from_its_own_draw():
    """A draw may be the best for one emotion without being the best of all."""
    first, second = rows(72, draw=0), rows(72, draw=1)
    for row in first:
        row["verdict"]["match"] = int(row["emotion"] != "fear")
    for row in second:
        row["verdict"]["match"] = int(row["emotion"] == "fear")
    found = replies.accuracy_over_draws([*first, *second])
    assert found["overall"]["value"] == pytest.approx(5 / 6)
    assert found["by_emotion"]["fear"]["value"] == 1.0
    assert found["by_emotion"]["fear"]["draws"] == [0.0, 1.0]


def test_unjudged_draws_do_not_hide_judged_ones():
    lost = rows(0, draw=1)
    for row in lost:
        row["verdict"] = {"predicted": None, "match": None, "judge": "j", "reason": "endpoint"}
    overall = replies.accuracy_over_draws([*rows(18, draw=0), *lost])["overall"]
    assert (overall["value"], overall["mean"], overall["draws"]) == (0.25, 0.25, [0.25, None])
    alone = replies.accuracy_over_draws(lost)["overall"]
    assert (alone["value"], alone["n"], alone["n_unjudged"], alone["worst_case"]) == (None, 0, 72, 0.0)


def test_fluent_accuracy_counts_only_matches_that_are_fluent():
    mine = rows(20)
    for row in mine[:5]:
        row["meta"]["fluent"] = False  # match, not fluent
    for row in mine[30:40]:
        row["meta"]["fluent"] = False  # neither
    assert replies.accuracy_over_draws(mine, fluent=True)["overall"]["value"] == 15 / 72
    assert replies.accuracy_over_draws(mine)["overall"]["value"] == 20 / 72
    assert mine[0]["verdict"]["match"] == 1, "the rows are not changed"
    mine[60]["verdict"]["match"] = None
    overall = replies.accuracy_over_draws(mine, fluent=True)["overall"]
    assert (overall["n"], overall["n_unjudged"]) == (71, 1)
    del mine[0]["meta"]["fluent"]
    with pytest.raises(EmotraceError, match=r"no meta\.fluent"):
        replies.accuracy_over_draws(mine, fluent=True)


def test_mark_fluent_measures_every_reply_against_the_bounds():
    bounds = {"perplexity": [2, 6], "length": [2, 5], "repetition": [0, 0.1]}
    cases = [([1, 2, 3, 4], 5.0, True), ([1], 5.0, False), ([1, 2, 3, 4], 7.0, False), ([1, 2, 3, 4], None, False)]
    cases += [([7] * 5, 5.0, False), (list(range(9)), 5.0, False)]
    marked = [{"key": "k", "token_ids": ids, "meta": {"perplexity": p}} for ids, p, _ in cases]
    replies.add_length_and_repetition(marked)
    replies.mark_fluent(marked, bounds)
    with pytest.raises(EmotraceError, match="has no 'token_ids'"):
        replies.add_length_and_repetition([{"key": "k", "gen_text": "x"}])
    assert [r["meta"]["fluent"] for r in marked] == [wanted for *_, wanted in cases]
    assert marked[4]["meta"]["repetition"] == pytest.approx(2 / 3)


def test_no_rows_is_an_error():
    with pytest.raises(EmotraceError, match="no rows"):
        replies.accuracy_over_draws([])
    with pytest.raises(EmotraceError, match="no rows"):
        replies.summary([])
    with pytest.raises(EmotraceError, match=r"unknown arm 'stear'.*Did you mean 'steer'"):
        replies.summary(rows(2, "stear"))


def test_a_draw_may_lack_an_emotion():
    some = [
        *rows(12, "random_steer"),
        *({**row, "draw": 1} for row in rows(12, "random_steer") if row["emotion"] != "fear"),
    ]
    found = replies.accuracy_over_draws(some)["by_emotion"]
    assert [len(found[e]["draws"]) for e in ("anger", "fear")] == [2, 1]


def test_summary_has_every_table_and_lifts_against_none():
    found = replies.summary([*rows(12, "none"), *rows(48, "steer"), *rows(60, "prompt"), *rows(6, "random_steer")])
    assert list(found["accuracy"]) == ["none", "prompt", "steer", "random_steer"]
    assert "accuracy_target" not in found
    assert found["lift"]["steer"]["overall"]["value"] == pytest.approx(36 / 72)
    assert set(found["lift"]) == {"prompt", "steer"}
    assert set(found["lift"]["steer"]) == {"overall", *EMOTIONS}
    assert found["fluency"]["by_method"]["steer"]["share_fluent"] == 1.0
    assert sum(found["confusion"]["steer"]["anger"].values()) == 12


def test_a_lift_that_no_key_allows_is_left_out():
    mine = rows(48)
    for row in mine:
        if row["emotion"] == "fear":
            row["verdict"]["match"] = None
    found = replies.lifts(mine, rows(0))
    assert set(found) == {"overall", *EMOTIONS} - {"fear"}
    assert found["overall"]["n"] == 60
    for row in mine:
        row["verdict"]["match"] = None
    assert replies.lifts(mine, rows(0)) == {}


def test_published_stats_equal_the_published_table(oracles):
    def read(name, match):
        for row in oracles.jsonl(f"emotion_circuits/labeled_sev/{name}.jsonl"):
            assert row["judge"]["match"] == match
            yield {"emotion": row["emotion"], "valence": row["valence"], "verdict": row["judge"]}

    published = oracles.json("emotion_circuits/labeled_sev/accuracy_stats.json")
    assert replies.published_stats([*read("accepted", 1), *read("rejected", 0)], "sev") == published


def test_published_stats_count_unjudged_as_rejected():
    mine = rows(71)
    mine[0]["verdict"]["match"] = None
    found = replies.published_stats(mine, "mine")
    assert found["overall"] == {"total_samples": 72, "accepted": 70, "rejected": 2, "accuracy": 97.22}
    assert found["by_emotion"]["anger"] == {"total": 12, "accepted": 11, "rejected": 1, "accuracy": 91.67}
    assert sum(v["accepted"] for v in found["by_valence"].values()) == 70
