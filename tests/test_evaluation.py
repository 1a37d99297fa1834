"""Evaluation: maxima over draws, fluent matches, the published table, and controls that are what they say."""

import numpy as np
import pytest
import xarray as xr

from emotrace import evaluation, stats
from emotrace.datasets import Prompt, Prompts
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
    found = evaluation.accuracy(rows(18))
    assert found == stats.accuracy_table(rows(18))
    assert found["overall"]["value"] == 18 / 72
    no_draw = [{k: v for k, v in r.items() if k != "draw"} for r in rows(18)]
    assert evaluation.accuracy(no_draw) == found


def test_accuracy_over_draws_is_the_maximum_with_mean_and_draws():
    found = evaluation.accuracy([*rows(9, draw=0), *rows(36, draw=1), *rows(18, draw=2)])
    overall = found["overall"]
    assert overall["value"] == 0.5
    assert overall["draws"] == [9 / 72, 0.5, 0.25]
    assert overall["mean"] == pytest.approx(np.mean(overall["draws"]))
    assert overall["n"] == 72
    best = stats.accuracy_table(rows(36))["overall"]
    assert overall["ci95"] == best["ci95"]
    for part, names in (("by_emotion", EMOTIONS), ("by_valence", VALENCES)):
        assert set(found[part]) == set(names)
        for leaf in found[part].values():
            assert leaf["value"] == max(leaf["draws"])
            assert leaf["mean"] == pytest.approx(np.mean(leaf["draws"]))


def test_of_random_ablations_the_most_destructive_draw_counts():
    drawn = [{**r, "method": "random_ablate"} for d, n in enumerate((36, 9, 18)) for r in rows(n, draw=d)]
    overall = evaluation.accuracy(drawn)["overall"]
    assert (overall["value"], overall["draws"]) == (9 / 72, [0.5, 9 / 72, 0.25])


def test_a_leaf_takes_its_maximum_from_its_own_draw():
    """A draw may be the best for one emotion without being the best of all."""
    first, second = rows(72, draw=0), rows(72, draw=1)
    for row in first:
        row["verdict"]["match"] = int(row["emotion"] != "fear")
    for row in second:
        row["verdict"]["match"] = int(row["emotion"] == "fear")
    found = evaluation.accuracy([*first, *second])
    assert found["overall"]["value"] == pytest.approx(5 / 6)
    assert found["by_emotion"]["fear"]["value"] == 1.0
    assert found["by_emotion"]["fear"]["draws"] == [0.0, 1.0]


def test_unjudged_draws_do_not_hide_judged_ones():
    lost = rows(0, draw=1)
    for row in lost:
        row["verdict"] = {"predicted": None, "match": None, "judge": "j", "reason": "endpoint"}
    overall = evaluation.accuracy([*rows(18, draw=0), *lost])["overall"]
    assert (overall["value"], overall["mean"], overall["draws"]) == (0.25, 0.25, [0.25, None])
    alone = evaluation.accuracy(lost)["overall"]
    assert (alone["value"], alone["n"], alone["n_unjudged"], alone["worst_case"]) == (None, 0, 72, 0.0)


def test_fluent_accuracy_counts_only_matches_that_are_fluent():
    mine = rows(20)
    for row in mine[:5]:
        row["meta"]["fluent"] = False  # match, not fluent
    for row in mine[30:40]:
        row["meta"]["fluent"] = False  # neither
    assert evaluation.accuracy(mine, fluent=True)["overall"]["value"] == 15 / 72
    assert evaluation.accuracy(mine)["overall"]["value"] == 20 / 72
    assert mine[0]["verdict"]["match"] == 1, "the rows are not changed"
    mine[60]["verdict"]["match"] = None
    overall = evaluation.accuracy(mine, fluent=True)["overall"]
    assert (overall["n"], overall["n_unjudged"]) == (71, 1)
    del mine[0]["meta"]["fluent"]
    with pytest.raises(EmotraceError, match=r"no meta\.fluent"):
        evaluation.accuracy(mine, fluent=True)


def test_mark_fluent_measures_every_reply_against_the_bounds():
    bounds = {"perplexity": [2, 6], "length": [2, 5], "repetition": [0, 0.1]}
    cases = [([1, 2, 3, 4], 5.0, True), ([1], 5.0, False), ([1, 2, 3, 4], 7.0, False), ([1, 2, 3, 4], None, False)]
    cases += [([7] * 5, 5.0, False), (list(range(9)), 5.0, False)]
    marked = [{"key": "k", "token_ids": ids, "meta": {"perplexity": p}} for ids, p, _ in cases]
    evaluation.mark_fluent(marked, bounds)
    assert [r["meta"]["fluent"] for r in marked] == [wanted for *_, wanted in cases]
    assert marked[4]["meta"]["repetition"] == pytest.approx(2 / 3)


def test_no_rows_is_an_error():
    with pytest.raises(EmotraceError, match="no rows"):
        evaluation.accuracy([])


def test_summary_has_every_table_and_lifts_against_none():
    found = evaluation.summary([*rows(12, "none"), *rows(48, "steer"), *rows(60, "prompt"), *rows(6, "random_steer")])
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
    found = evaluation.lifts(mine, rows(0))
    assert set(found) == {"overall", *EMOTIONS} - {"fear"}
    assert found["overall"]["n"] == 60
    for row in mine:
        row["verdict"]["match"] = None
    assert evaluation.lifts(mine, rows(0)) == {}


def test_published_stats_equal_the_published_table(oracles):
    def read(name, match):
        for row in oracles.jsonl(f"emotion_circuits/labeled_sev/{name}.jsonl"):
            assert row["judge"]["match"] == match
            yield {"emotion": row["emotion"], "valence": row["valence"], "verdict": row["judge"]}

    published = oracles.json("emotion_circuits/labeled_sev/accuracy_stats.json")
    assert evaluation.published_stats([*read("accepted", 1), *read("rejected", 0)], "sev") == published


def test_published_stats_count_unjudged_as_rejected():
    mine = rows(71)
    mine[0]["verdict"]["match"] = None
    found = evaluation.published_stats(mine, "mine")
    assert found["overall"] == {"total_samples": 72, "accepted": 70, "rejected": 2, "accuracy": 97.22}
    assert found["by_emotion"]["anger"] == {"total": 12, "accepted": 11, "rejected": 1, "accuracy": 91.67}
    assert sum(v["accepted"] for v in found["by_valence"].values()) == 70


def directions():
    values = np.random.default_rng(0).standard_normal((6, 2, 3, 8)).astype(np.float32)
    norms = np.linalg.norm(values, axis=-1)
    return xr.DataArray(
        values / norms[..., None],
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={
            "emotion": list(EMOTIONS), "layer": [3, 4], "sublayer": ["a", "b", "c"],
            "norm": (("emotion", "layer", "sublayer"), norms),
        },
    )  # fmt: skip


def test_random_directions_have_unit_norm_and_nothing_of_the_real_ones():
    real, a, b = directions(), evaluation.random_like(directions(), 1), evaluation.random_like(directions(), 2)
    assert a.dims == real.dims
    np.testing.assert_allclose(np.linalg.norm(a.values, axis=-1), 1, atol=1e-6)
    assert list(a["emotion"].values) == list(EMOTIONS)
    np.testing.assert_array_equal(a, evaluation.random_like(directions(), 1))
    assert not np.allclose(a, b)
    assert abs(float((a * real).sum("dim").mean())) < 0.3


@pytest.mark.parametrize("n", [2, 3, 6])
def test_deranged_has_no_fixed_point_and_loses_no_direction(n):
    real = directions().isel(emotion=slice(n))
    for seed in range(40):
        moved = evaluation.deranged(real, seed)
        assert list(moved["emotion"].values) == list(EMOTIONS[:n])
        assert not (moved.values == real.values).all(axis=(1, 2, 3)).any()
        assert sorted(moved.values.reshape(n, -1)[:, 0]) == sorted(real.values.reshape(n, -1)[:, 0])
        at = [int((real.values == v).all(axis=(1, 2, 3)).argmax()) for v in moved.values]
        np.testing.assert_array_equal(moved["norm"], real["norm"].values[at], err_msg="the norm goes with its vector")
    with pytest.raises(EmotraceError, match="only one emotion"):
        evaluation.deranged(directions().isel(emotion=[0]), 0)


def skeletons(themes=4, each=5):
    return Prompts(
        Prompt(f"{t}_{i}_{v}", text="x", labels={"skeleton_id": f"{t}_{i}", "theme": f"t{t}"})
        for t in range(themes)
        for i in range(each)
        for v in "ab"
    )


@pytest.mark.parametrize("share", [0.01, 0.2, 0.25, 0.5, 0.99])
def test_split_is_disjoint_whole_and_spread_over_themes(share):
    prompts = skeletons()
    fit, held = evaluation.split(prompts, share, seed=3)
    assert not fit & held
    assert fit | held == {p.labels["skeleton_id"] for p in prompts}
    assert len(held) == min(19, max(1, round(share * 20)))
    counts = [sum(name.startswith(f"{t}_") for name in held) for t in range(4)]
    assert max(counts) - min(counts) <= 1
    assert evaluation.split(prompts, share, seed=3) == (fit, held)


def test_split_depends_on_the_seed_and_not_on_the_order_of_prompts():
    prompts = skeletons()
    splits = {tuple(sorted(evaluation.split(prompts, 0.25, seed=s)[1])) for s in range(6)}
    assert len(splits) > 3
    assert evaluation.split(Prompts(list(prompts)[::-1]), 0.25, 0) == evaluation.split(prompts, 0.25, 0)
    for wrong, message in (
        ((skeletons(1, 1), 0.2), "1 skeleton cannot"),
        ((prompts, 0), "share=0"),
        ((prompts, 1.0), "share=1"),
    ):
        with pytest.raises(EmotraceError, match=message):
            evaluation.split(*wrong)
    with pytest.raises(EmotraceError, match="skeleton_id"):
        evaluation.split(Prompts.of(["a", "b"]), 0.5)


@pytest.mark.parametrize("n", [1, *range(2, 81)])
def test_layer_windows_are_contiguous_distinct_and_inside_the_model(n):
    windows = evaluation.layer_windows(n)
    assert all(w == list(range(w[0], w[-1] + 1)) for w in windows)
    assert all(w[0] >= 0 and w[-1] < n for w in windows)
    assert len({tuple(w) for w in windows}) == len(windows)
    half = list(range(min(n - 1, round(n / 4)), max(1, round(3 * n / 4))))
    assert half in windows, "the middle half"
    if n >= 3:
        assert any(0 in w for w in windows)
        assert any(n - 1 in w for w in windows)
        assert len(windows) >= 3


def searched(scores, sizes=(1, 2, 3), keep=(2, 1), accuracy=None):
    """Points and choice where setting (line, i) scores ``scores[line][i][size]``; and what was measured."""
    asked = []

    def measure(setting, size):
        asked.append((setting, size))
        line, i = setting
        found = scores[line][i]
        score = found[size] if isinstance(found, dict) else found
        return {
            "setting": setting,
            "size": size,
            "accuracy_fluent": score,
            "accuracy": (accuracy or {}).get(setting, score),
        }

    lines = [[(line, i) for i in range(len(row))] for line, row in enumerate(scores)]
    points, best = evaluation.search(lines, measure, sizes, keep)
    return points, best, asked


def test_search_measures_all_on_few_and_the_best_on_more():
    points, best, asked = searched([[0.1, 0.5], [0.6, 0.4, 0.55]])
    assert [s for s, size in asked if size == 1] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [s for s, size in asked if size == 2] == [(1, 0), (1, 2)]
    assert [s for s, size in asked if size == 3] == [(1, 0)]
    assert best["setting"] == (1, 0)
    assert {p["setting"]: p["size"] for p in points} == {(0, 0): 1, (0, 1): 1, (1, 0): 3, (1, 1): 1, (1, 2): 2}


def test_search_does_not_compare_scores_of_samples_of_different_size():
    lucky = {1: 0.9, 2: 0.95, 3: 0.3}
    points, best, _ = searched([[lucky, {1: 0.8, 2: 0.7, 3: 0.6}, 0.75]], keep=(3, 2))
    assert best["setting"] == (0, 2)
    assert max(p["accuracy_fluent"] for p in points) == 0.75
    points, best, _ = searched([[{1: 0.99, 2: 0.2, 3: 0.99}, 0.5]], keep=(2, 1))
    assert best["setting"] == (0, 1)


def test_search_leaves_a_line_after_two_collapsed_doses():
    points, _, asked = searched([[0.2, 0.8, 0.3, 0.7, 0.3, 0.39, 0.9]], sizes=(1,), keep=())
    assert [s[1] for s, _ in asked] == [0, 1, 2, 3, 4, 5]
    assert len(points) == 6


def test_search_breaks_ties_by_matches_and_then_by_order():
    _, best, _ = searched([[0.5, 0.5, 0.5]], sizes=(4,), keep=(), accuracy={(0, 1): 0.6, (0, 2): 0.6})
    assert best["setting"] == (0, 1)


def test_search_leaves_out_samples_that_are_no_larger():
    _, _, asked = searched([[0.5, 0.6]], sizes=(2, 2, 2), keep=(1, 1))
    assert [size for _, size in asked] == [2, 2]


@pytest.mark.parametrize(
    "wrong", [{"lines": []}, {"sizes": (1, 2)}, {"keep": (0,), "sizes": (1, 2)}, {"sizes": (0,), "keep": ()}]
)
def test_search_refuses_what_does_not_fit(wrong):
    given = {"lines": [["a"]], "measure": lambda s, n: {"accuracy_fluent": 1, "accuracy": 1}, "sizes": (1,), "keep": ()}
    with pytest.raises(EmotraceError, match="search"):
        evaluation.search(**{**given, **wrong})


def test_search_takes_an_unjudged_point_as_the_worst():
    _, best, _ = searched([[None, 0.1]], sizes=(1,), keep=())
    assert best["setting"] == (0, 1)
